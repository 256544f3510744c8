"""Triton kernels; imported only where a GPU computes."""

import triton
import triton.language as tl


@triton.jit
def adamw_kernel(  # type: ignore[no-untyped-def]
    master,  # noqa: ANN001 (Triton's pointers and scalars have no types of their own)
    compute,  # noqa: ANN001
    grads,  # noqa: ANN001
    exp_avg,  # noqa: ANN001
    exp_avg_sq,  # noqa: ANN001
    learning_rate,  # noqa: ANN001
    factor,  # noqa: ANN001
    bias1,  # noqa: ANN001
    bias2,  # noqa: ANN001
    count,  # noqa: ANN001
    scale,  # noqa: ANN001
    weight_decay,  # noqa: ANN001
    beta1,  # noqa: ANN001
    beta2,  # noqa: ANN001
    epsilon,  # noqa: ANN001
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Apply AdamW to `count` weights: clip by `factor`, update moments, decay, write master and compute weights."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    rate = tl.load(learning_rate) * scale
    gradient = tl.load(grads + at, mask=inside).to(tl.float32) * tl.load(factor)
    weight = tl.load(master + at, mask=inside)
    mean = beta1 * tl.load(exp_avg + at, mask=inside) + (1 - beta1) * gradient
    square = beta2 * tl.load(exp_avg_sq + at, mask=inside) + (1 - beta2) * gradient * gradient
    corrected_mean = mean / tl.load(bias1)
    corrected_square = square / tl.load(bias2)
    weight = weight * (1 - rate * weight_decay) - rate * corrected_mean / (tl.sqrt(corrected_square) + epsilon)
    tl.store(exp_avg + at, mean, mask=inside)
    tl.store(exp_avg_sq + at, square, mask=inside)
    tl.store(master + at, weight, mask=inside)
    tl.store(compute + at, weight.to(compute.dtype.element_ty), mask=inside)


@triton.jit
def column_sum_kernel(  # type: ignore[no-untyped-def]
    values,  # noqa: ANN001
    sums,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
) -> None:
    """Add up the rows of values [M, N] into sums [N], in fp32; one program takes `COLUMNS` columns."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        total += tl.sum(
            tl.load(values + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32), 0
        )
    tl.store(sums + column, total.to(sums.dtype.element_ty), mask=column < columns)


@triton.jit
def dropout_add_norm_kernel(  # type: ignore[no-untyped-def]
    branch,  # noqa: ANN001
    residual,  # noqa: ANN001
    offset,  # noqa: ANN001
    weight,  # noqa: ANN001
    bias,  # noqa: ANN001
    seed,  # noqa: ANN001
    salt,  # noqa: ANN001
    dropped,  # noqa: ANN001
    epsilon,  # noqa: ANN001
    width,  # noqa: ANN001
    sums,  # noqa: ANN001
    means,  # noqa: ANN001
    scales,  # noqa: ANN001
    normed,  # noqa: ANN001
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Normalise dropout(branch + offset) + residual, one row of `width` values a program.

    `sums`, `means` and `scales` keep what the way back needs.
    """
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    at = row * width + column
    value = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(offset + column, mask=inside, other=0.0).to(tl.float32)
    kept = tl.rand(tl.load(seed) + salt, at) >= dropped
    value = tl.where(kept, value / (1.0 - dropped), 0.0)
    value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / width
    centred = tl.where(inside, value - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + epsilon)
    gain = tl.load(weight + column, mask=inside).to(tl.float32)
    shift = tl.load(bias + column, mask=inside).to(tl.float32)
    tl.store(sums + at, value.to(sums.dtype.element_ty), mask=inside)
    tl.store(normed + at, (centred * scale * gain + shift).to(normed.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)


@triton.jit
def dropout_add_norm_backward_kernel(  # type: ignore[no-untyped-def]
    gradient,  # noqa: ANN001
    sums,  # noqa: ANN001
    means,  # noqa: ANN001
    scales,  # noqa: ANN001
    weight,  # noqa: ANN001
    seed,  # noqa: ANN001
    salt,  # noqa: ANN001
    dropped,  # noqa: ANN001
    rows,  # noqa: ANN001
    width,  # noqa: ANN001
    to_branch,  # noqa: ANN001
    to_residual,  # noqa: ANN001
    partial,  # noqa: ANN001
    ROWS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Take the gradient back through normalisation and dropout, `ROWS` rows a program.

    `partial` [programs, 3 * width] receives each program's share of the gradients of offset, weight and bias.
    """
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    offset_share = tl.zeros((WIDTH,), tl.float32)
    weight_share = tl.zeros((WIDTH,), tl.float32)
    bias_share = tl.zeros((WIDTH,), tl.float32)
    for row in range(program * ROWS, min(program * ROWS + ROWS, rows)):
        at = row * width + column
        incoming = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        unit = (tl.load(sums + at, mask=inside, other=0.0).to(tl.float32) - tl.load(means + row)) * scale
        unit = tl.where(inside, unit, 0.0)
        weight_share += incoming * unit
        bias_share += incoming
        inner = incoming * gain
        inner = (inner - tl.sum(inner, 0) / width - unit * (tl.sum(inner * unit, 0) / width)) * scale
        kept = tl.rand(tl.load(seed) + salt, at) >= dropped
        tl.store(to_residual + at, inner.to(to_residual.dtype.element_ty), mask=inside)
        branch = tl.where(kept, inner / (1.0 - dropped), 0.0)
        offset_share += branch
        tl.store(to_branch + at, branch.to(to_branch.dtype.element_ty), mask=inside)
    place = partial + program * 3 * width + column
    tl.store(place, offset_share, mask=inside)
    tl.store(place + width, weight_share, mask=inside)
    tl.store(place + 2 * width, bias_share, mask=inside)


@triton.jit
def attention_kernel(  # type: ignore[no-untyped-def]
    query,  # noqa: ANN001
    key,  # noqa: ANN001
    value,  # noqa: ANN001
    mask,  # noqa: ANN001
    seed,  # noqa: ANN001
    salt,  # noqa: ANN001
    dropped,  # noqa: ANN001
    scaling,  # noqa: ANN001
    heads,  # noqa: ANN001
    length,  # noqa: ANN001
    row,  # noqa: ANN001
    mixed,  # noqa: ANN001
    LENGTH: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Attend within one sentence and head a program; everything [B, S, H, WIDTH], mask [B, S], S at most `LENGTH`.

    Tokens of query, key and value lie `row` elements apart, so that the three may lie side by side.
    """
    sentence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token = tl.arange(0, LENGTH)
    column = tl.arange(0, WIDTH)
    inside = token < length
    at = (sentence * length + token[:, None]) * row + head * WIDTH + column[None, :]
    q = tl.load(query + at, mask=inside[:, None], other=0.0)
    k = tl.load(key + at, mask=inside[:, None], other=0.0)
    v = tl.load(value + at, mask=inside[:, None], other=0.0)
    seen = tl.load(mask + sentence * length + token, mask=inside, other=0) != 0
    scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)) * scaling, -1e30)
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    place = (tl.program_id(0) * LENGTH + token[:, None]) * LENGTH + token[None, :]
    kept = tl.rand(tl.load(seed) + salt, place) >= dropped
    weights = tl.where(kept, weights / (1.0 - dropped), 0.0)
    tight = ((sentence * length + token[:, None]) * heads + head) * WIDTH + column[None, :]
    tl.store(mixed + tight, tl.dot(weights.to(v.dtype), v).to(mixed.dtype.element_ty), mask=inside[:, None])


@triton.jit
def attention_backward_kernel(  # type: ignore[no-untyped-def]
    query,  # noqa: ANN001
    key,  # noqa: ANN001
    value,  # noqa: ANN001
    mask,  # noqa: ANN001
    gradient,  # noqa: ANN001
    seed,  # noqa: ANN001
    salt,  # noqa: ANN001
    dropped,  # noqa: ANN001
    scaling,  # noqa: ANN001
    heads,  # noqa: ANN001
    length,  # noqa: ANN001
    row,  # noqa: ANN001
    to_query,  # noqa: ANN001
    to_key,  # noqa: ANN001
    to_value,  # noqa: ANN001
    LENGTH: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Take the gradient back through attention; the weights are computed again, which costs less than keeping them.

    Tokens of query, key and value and of their gradients lie `row` elements apart; those of `gradient` follow tightly.
    """
    sentence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token = tl.arange(0, LENGTH)
    column = tl.arange(0, WIDTH)
    inside = token < length
    at = (sentence * length + token[:, None]) * row + head * WIDTH + column[None, :]
    q = tl.load(query + at, mask=inside[:, None], other=0.0)
    k = tl.load(key + at, mask=inside[:, None], other=0.0)
    v = tl.load(value + at, mask=inside[:, None], other=0.0)
    tight = ((sentence * length + token[:, None]) * heads + head) * WIDTH + column[None, :]
    incoming = tl.load(gradient + tight, mask=inside[:, None], other=0.0)
    seen = tl.load(mask + sentence * length + token, mask=inside, other=0) != 0
    scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)) * scaling, -1e30)
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    place = (tl.program_id(0) * LENGTH + token[:, None]) * LENGTH + token[None, :]
    kept = tl.rand(tl.load(seed) + salt, place) >= dropped
    used = tl.where(kept, weights / (1.0 - dropped), 0.0)
    tl.store(to_value + at, tl.dot(tl.trans(used).to(v.dtype), incoming).to(v.dtype), mask=inside[:, None])
    to_weights = tl.where(kept, tl.dot(incoming, tl.trans(v)) / (1.0 - dropped), 0.0)
    to_scores = weights * (to_weights - tl.sum(to_weights * weights, 1)[:, None]) * scaling
    to_scores = to_scores.to(q.dtype)
    tl.store(to_query + at, tl.dot(to_scores, k).to(q.dtype), mask=inside[:, None])
    tl.store(to_key + at, tl.dot(tl.trans(to_scores), q).to(q.dtype), mask=inside[:, None])
