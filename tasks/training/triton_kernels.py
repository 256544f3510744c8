"""Triton kernels of the training step. This module is imported only where they run, as it needs Triton.

Each kernel replaces several operators of torch whose results would be written to memory and read again; at the sizes of
this project (some hundred tokens a batch) memory traffic and launches are what a step costs. Weights, activations and
gradients are bf16 or fp32; all arithmetic is in fp32. With TRITON_INTERPRET=1 in the environment before the import they
run on CPU tensors, which is how the tests compare them with torch.

Arguments are pointers to contiguous tensors unless a stride is named, and scalars. A program is one instance of a
kernel; `grid` is the number of programs. Upper-case arguments are compile-time constants: block sizes, powers of two
that may be larger than the tensor; masks cut off the rest. Triton compiles a kernel again for other types, constants,
and for other alignment of addresses and numbers; numbers for which that does not pay are named in `do_not_specialize`.

Dropout: an element is kept where `tl.rand(seed + stream, index) >= dropout_p` (Philox, a uniform number in [0, 1)), and
then divided by `1 - dropout_p`. `seed` is a tensor [] int32, so that a CUDA graph can be replayed with other masks;
`stream` differs between modules; `index` is the element's. The backward kernels draw the same numbers again.

Shapes: B sentences of S tokens, H heads of width W; M = B * S rows of N features; P parameters.
"""

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
    clip_factor,  # noqa: ANN001
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
    """Update `count` parameters by AdamW, and write their copies in the compute type.

        g = clip_factor * grads;  r = scale * learning_rate
        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        master = master * (1 - r * weight_decay) - r * (m / bias1) / (sqrt(v / bias2) + epsilon);  compute = master

    master, exp_avg (m) and exp_avg_sq (v) are fp32 [count]; compute and grads bf16 or fp32 [count]. learning_rate,
    clip_factor and the bias corrections bias1 = 1 - beta1^t, bias2 = 1 - beta2^t are tensors [] fp32, as they change
    from replay to replay. Grid: ceil(count / BLOCK).
    Fused: clipping, update and cast in one pass over memory instead of three.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    rate = tl.load(learning_rate) * scale
    gradient = tl.load(grads + at, mask=inside).to(tl.float32) * tl.load(clip_factor)
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


@triton.jit(do_not_specialize=["rows"])
def column_sum_kernel(  # type: ignore[no-untyped-def]
    values,  # noqa: ANN001
    sums,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
) -> None:
    """Sum over the rows: sums[n] = sum_m values[m, n], the gradient of a bias.

    values [rows, columns], sums [columns] of any type. A program sums COLUMNS columns, reading ROWS rows at once.
    Grid: ceil(columns / COLUMNS).
    Why: one program sums a column whole, so there is no second pass over partial sums as in torch.sum.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        total += tl.sum(
            tl.load(values + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32), 0
        )
    tl.store(sums + column, total.to(sums.dtype.element_ty), mask=column < columns)


@triton.jit(do_not_specialize=["stream"])
def dropout_add_norm_kernel(  # type: ignore[no-untyped-def]
    branch,  # noqa: ANN001
    residual,  # noqa: ANN001
    offset,  # noqa: ANN001
    weight,  # noqa: ANN001
    bias,  # noqa: ANN001
    seed,  # noqa: ANN001
    stream,  # noqa: ANN001
    dropout_p,  # noqa: ANN001
    epsilon,  # noqa: ANN001
    width,  # noqa: ANN001
    sums,  # noqa: ANN001
    means,  # noqa: ANN001
    scales,  # noqa: ANN001
    normed,  # noqa: ANN001
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Compute the end of a transformer block: normed = LayerNorm(dropout(branch + offset) + residual).

        x = dropout(branch + offset) + residual;  normed = (x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias

    branch, residual, normed [M, width]; offset (the bias of the linear layer that made the branch), weight, bias
    [width]. For the backward pass it writes sums = x [M, width], means [M] and scales = 1 / sqrt(var + epsilon) [M],
    both fp32. Dropout's index is the element's position in branch. WIDTH >= width. Grid: M, one row each.
    Fused: bias, dropout, addition and LayerNorm read and write each row once, and no mask of dropout is stored.
    """
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < width
    at = row * width + column
    value = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(offset + column, mask=inside, other=0.0).to(tl.float32)
    kept = tl.rand(tl.load(seed) + stream, at) >= dropout_p
    value = tl.where(kept, value / (1.0 - dropout_p), 0.0)
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


@triton.jit(do_not_specialize=["stream", "rows"])
def dropout_add_norm_backward_kernel(  # type: ignore[no-untyped-def]
    grad_normed,  # noqa: ANN001
    sums,  # noqa: ANN001
    means,  # noqa: ANN001
    scales,  # noqa: ANN001
    weight,  # noqa: ANN001
    seed,  # noqa: ANN001
    stream,  # noqa: ANN001
    dropout_p,  # noqa: ANN001
    rows,  # noqa: ANN001
    width,  # noqa: ANN001
    grad_branch,  # noqa: ANN001
    grad_residual,  # noqa: ANN001
    partial,  # noqa: ANN001
    ROWS: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Compute the gradients of `dropout_add_norm_kernel`.

        u = (sums - means) * scales;  d = grad_normed * weight
        grad_residual = (d - mean(d) - u * mean(d * u)) * scales;  grad_branch = dropout mask * grad_residual / (1 - p)
        grad_offset = sum_m grad_branch;  grad_weight = sum_m grad_normed * u;  grad_bias = sum_m grad_normed

    grad_normed, sums, grad_branch, grad_residual [rows, width]; means, scales [rows] fp32; weight [width]. A program
    takes ROWS rows and writes its share of the sums over m to partial [programs, 3 * width] fp32, in the order offset,
    weight, bias; `column_sum_kernel` adds the shares up. Grid: ceil(rows / ROWS).
    Fused: the five gradients in one pass; the mask of dropout is drawn again, not read.
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
        gradient = tl.load(grad_normed + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        unit = (tl.load(sums + at, mask=inside, other=0.0).to(tl.float32) - tl.load(means + row)) * scale
        unit = tl.where(inside, unit, 0.0)
        weight_share += gradient * unit
        bias_share += gradient
        inner = gradient * gain
        inner = (inner - tl.sum(inner, 0) / width - unit * (tl.sum(inner * unit, 0) / width)) * scale
        kept = tl.rand(tl.load(seed) + stream, at) >= dropout_p
        tl.store(grad_residual + at, inner.to(grad_residual.dtype.element_ty), mask=inside)
        branch = tl.where(kept, inner / (1.0 - dropout_p), 0.0)
        offset_share += branch
        tl.store(grad_branch + at, branch.to(grad_branch.dtype.element_ty), mask=inside)
    share = partial + program * 3 * width + column
    tl.store(share, offset_share, mask=inside)
    tl.store(share + width, weight_share, mask=inside)
    tl.store(share + 2 * width, bias_share, mask=inside)


@triton.jit(do_not_specialize=["stream", "heads", "length"])
def attention_kernel(  # type: ignore[no-untyped-def]
    query,  # noqa: ANN001
    key,  # noqa: ANN001
    value,  # noqa: ANN001
    mask,  # noqa: ANN001
    seed,  # noqa: ANN001
    stream,  # noqa: ANN001
    dropout_p,  # noqa: ANN001
    scaling,  # noqa: ANN001
    heads,  # noqa: ANN001
    length,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    mixed,  # noqa: ANN001
    LENGTH: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Compute attention: mixed = dropout(softmax(scaling * Q K^T, padding masked)) V.

    query, key, value [B, length, heads, WIDTH]: heads and features are contiguous, tokens `row_stride` elements apart,
    3 * heads * WIDTH if the three are chunks of one matrix; mixed has their shape and is contiguous. mask [B, length]
    int, 0 for padding: masked scores are -1e30, so every row needs one visible token. Dropout's index is the position
    in [B * heads, LENGTH, LENGTH]. LENGTH >= length, at least 16 as tl.dot demands. Grid: B * heads, each with all
    LENGTH x LENGTH scores in registers, hence short sentences only.
    Fused: scores and weights are never written to memory, and the chunks of the QKV product are read as they lie.
    """
    sentence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token = tl.arange(0, LENGTH)
    column = tl.arange(0, WIDTH)
    inside = token < length
    at = (sentence * length + token[:, None]) * row_stride + head * WIDTH + column[None, :]
    q = tl.load(query + at, mask=inside[:, None], other=0.0)
    k = tl.load(key + at, mask=inside[:, None], other=0.0)
    v = tl.load(value + at, mask=inside[:, None], other=0.0)
    visible = tl.load(mask + sentence * length + token, mask=inside, other=0) != 0
    scores = tl.where(visible[None, :], tl.dot(q, tl.trans(k)) * scaling, -1e30)
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    index = (tl.program_id(0) * LENGTH + token[:, None]) * LENGTH + token[None, :]
    kept = tl.rand(tl.load(seed) + stream, index) >= dropout_p
    weights = tl.where(kept, weights / (1.0 - dropout_p), 0.0)
    contiguous = ((sentence * length + token[:, None]) * heads + head) * WIDTH + column[None, :]
    tl.store(mixed + contiguous, tl.dot(weights.to(v.dtype), v).to(mixed.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["stream", "heads", "length"])
def attention_backward_kernel(  # type: ignore[no-untyped-def]
    query,  # noqa: ANN001
    key,  # noqa: ANN001
    value,  # noqa: ANN001
    mask,  # noqa: ANN001
    grad_mixed,  # noqa: ANN001
    seed,  # noqa: ANN001
    stream,  # noqa: ANN001
    dropout_p,  # noqa: ANN001
    scaling,  # noqa: ANN001
    heads,  # noqa: ANN001
    length,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    grad_query,  # noqa: ANN001
    grad_key,  # noqa: ANN001
    grad_value,  # noqa: ANN001
    LENGTH: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
) -> None:
    """Compute the gradients of `attention_kernel`, with A = softmax(...) and D = dropout(A):

        grad_value = D^T grad_mixed;  grad_A = dropout mask * (grad_mixed V^T) / (1 - p)
        grad_S = A * (grad_A - rowsum(grad_A * A)) * scaling;  grad_query = grad_S K;  grad_key = grad_S^T Q

    Shapes, strides, index and grid are those of `attention_kernel`. grad_mixed is contiguous; grad_query, grad_key and
    grad_value have the strides of query, key and value, so that three chunks of one matrix have gradients that are one
    matrix again.
    Fused: A is computed again from Q and K, which costs less than writing it in the forward pass and reading it here.
    """
    sentence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token = tl.arange(0, LENGTH)
    column = tl.arange(0, WIDTH)
    inside = token < length
    at = (sentence * length + token[:, None]) * row_stride + head * WIDTH + column[None, :]
    q = tl.load(query + at, mask=inside[:, None], other=0.0)
    k = tl.load(key + at, mask=inside[:, None], other=0.0)
    v = tl.load(value + at, mask=inside[:, None], other=0.0)
    contiguous = ((sentence * length + token[:, None]) * heads + head) * WIDTH + column[None, :]
    gradient = tl.load(grad_mixed + contiguous, mask=inside[:, None], other=0.0)
    visible = tl.load(mask + sentence * length + token, mask=inside, other=0) != 0
    scores = tl.where(visible[None, :], tl.dot(q, tl.trans(k)) * scaling, -1e30)
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    index = (tl.program_id(0) * LENGTH + token[:, None]) * LENGTH + token[None, :]
    kept = tl.rand(tl.load(seed) + stream, index) >= dropout_p
    dropped = tl.where(kept, weights / (1.0 - dropout_p), 0.0)
    tl.store(grad_value + at, tl.dot(tl.trans(dropped).to(v.dtype), gradient).to(v.dtype), mask=inside[:, None])
    grad_weights = tl.where(kept, tl.dot(gradient, tl.trans(v)) / (1.0 - dropout_p), 0.0)
    grad_scores = weights * (grad_weights - tl.sum(grad_weights * weights, 1)[:, None]) * scaling
    grad_scores = grad_scores.to(q.dtype)
    tl.store(grad_query + at, tl.dot(grad_scores, k).to(q.dtype), mask=inside[:, None])
    tl.store(grad_key + at, tl.dot(tl.trans(grad_scores), q).to(q.dtype), mask=inside[:, None])
