"""The loss of a step: exact values, what does not count, and that parts of a batch add up to it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tasks.training.losses import classification_loss, smooth_labels

unhurried = settings(deadline=None)  # slow is not wrong
LOGITS = torch.tensor([[0.3, -1.2], [2.0, 0.5], [-0.7, 0.4]])
# The margins of an even answer and of one of 3:1, and how far they differ both ways: (3/4 - 1/2) * log 3.
EVEN, THREE_TO_ONE = [0.0, 0.0], [0.0, math.log(3)]
BOTH_WAYS = math.log(3) / 4


def one_hot(*labels: int) -> torch.Tensor:
    return torch.eye(2)[list(labels)]


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two passes' logits [2, B, 2] and targets [B, 2], some of them of padding rows."""
    count = draw(st.integers(1, 12))
    logit = st.floats(-8, 8, width=32)
    logits = draw(st.lists(st.lists(logit, min_size=2, max_size=2), min_size=2 * count, max_size=2 * count))
    targets = st.one_of(
        st.just([0.0, 0.0]), st.sampled_from([[1.0, 0.0], [0.0, 1.0]]), st.floats(0, 1).map(lambda p: [1 - p, p])
    )
    return torch.tensor(logits).view(2, count, 2), torch.tensor(draw(st.lists(targets, min_size=count, max_size=count)))


@pytest.mark.parametrize("labels", [(0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1)])
def test_cross_entropy_of_labels_is_torchs(labels: tuple[int, ...]) -> None:
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    loss, correct = classification_loss(ours, one_hot(*labels), 3)
    expected = cross_entropy(theirs, torch.tensor(labels))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-7)
    assert int(correct) == sum(label == answer for label, answer in zip(labels, (0, 0, 1), strict=True))
    gradients = [torch.autograd.grad(each, of)[0] for each, of in ((loss, ours), (expected, theirs))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-7)


def test_loss_of_probabilities_weighs_both_answers() -> None:
    """An answer of 3:1 to what is 1:3, and to what is even."""
    targets = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    loss, _ = classification_loss(torch.tensor([THREE_TO_ONE, THREE_TO_ONE]), targets, 2)
    first = -0.75 * math.log(0.25) - 0.25 * math.log(0.75)
    second = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert float(loss) == pytest.approx((first + second) / 2, abs=1e-6)


def test_the_more_probable_answer_is_the_correct_one() -> None:
    targets = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.05, 0.95], [0.05, 0.95]])
    _, correct = classification_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2), targets, 4)
    assert int(correct) == 2
    _, correct = classification_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), targets, 4)
    assert int(correct) == 4


def test_the_first_pass_tells_what_is_correct() -> None:
    passes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    _, correct = classification_loss(passes, one_hot(0, 0), 2, 1.0)
    assert int(correct) == 1


@pytest.mark.parametrize("answer", [[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]])
def test_padding_rows_count_neither_in_the_loss_nor_in_correct_predictions(answer: list[float]) -> None:
    logits = torch.tensor([EVEN, [0.0, 100.0], [100.0, 0.0], answer])
    loss, correct = classification_loss(logits, torch.cat([one_hot(0, 1, 0), torch.zeros(1, 2)]), 3)
    assert float(loss) == pytest.approx(math.log(2) / 3)
    assert int(correct) == 3


@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_padding_rows_have_no_gradient(r_drop: float) -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0], [2.0, 0.0], [-1.0, 4.0]], requires_grad=True)
    loss, _ = classification_loss(logits, torch.cat([one_hot(0), torch.zeros(1, 2)]), 1, r_drop)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[[1, 3]] == 0).all()
    assert (gradient[[0, 2]] != 0).all()


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("total", [1, 3, 12])
def test_the_loss_is_divided_by_the_number_of_the_whole_step(total: int, passes: int) -> None:
    logits = torch.cat([LOGITS, LOGITS.flip(0)][:passes])
    whole, correct = classification_loss(logits, one_hot(0, 1, 1), 1, 2.0)
    for divisor in (total, torch.tensor(total)):
        loss, same = classification_loss(logits, one_hot(0, 1, 1), divisor, 2.0)
        assert float(loss) == pytest.approx(float(whole) / total, rel=1e-6)
        assert int(same) == int(correct)


@pytest.mark.parametrize("passes", [1, 2])
def test_loss_is_computed_in_fp32(passes: int) -> None:
    """In bf16, log(2) would be 0.6914."""
    loss, _ = classification_loss(torch.zeros(passes, 2, dtype=torch.bfloat16), one_hot(0), 1, 1.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
        (0.1, [[0.95, 0.05], [0.05, 0.95], [0.05, 0.95]]),
        (0.5, [[0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]),
        (1.0, [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_smoothing_spreads_a_share_over_both_classes(share: float, expected: list[list[float]]) -> None:
    found = smooth_labels(np.array([0, 1, 1]), share)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


@given(labels=st.lists(st.integers(0, 1), min_size=1), share=st.floats(0, 0.999))
def test_smoothed_labels_are_probabilities_and_still_the_labels(labels: list[int], share: float) -> None:
    found = smooth_labels(np.array(labels), share)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-15)
    assert (found >= 0).all()
    assert found.argmax(-1).tolist() == labels


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_smoothed_labels_give_torchs_loss_with_label_smoothing(share: float) -> None:
    labels = np.array([0, 1, 0])
    loss, _ = classification_loss(LOGITS, torch.from_numpy(smooth_labels(labels, share)).float(), 3)
    expected = cross_entropy(LOGITS, torch.from_numpy(labels), label_smoothing=share)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("r_drop", [0.0, 0.5, 5.0])
def test_two_equal_passes_give_the_plain_loss_and_its_gradient(r_drop: float) -> None:
    targets = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]])
    once, twice = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    plain, correct = classification_loss(once, targets, 2)
    loss, same = classification_loss(torch.cat([twice, twice]), targets, 2, r_drop)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    assert int(same) == int(correct)
    gradients = [torch.autograd.grad(each, of)[0] for each, of in ((loss, twice), (plain, once))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_without_a_weight_the_loss_of_two_passes_is_their_mean() -> None:
    first, second = LOGITS, LOGITS.flip(0)
    targets = one_hot(0, 1, 1)
    both = [float(classification_loss(each, targets, 3)[0]) for each in (first, second)]
    assert float(classification_loss(torch.cat([first, second]), targets, 3)[0]) == pytest.approx(
        sum(both) / 2, abs=1e-6
    )
    assert both[0] != pytest.approx(both[1], abs=0.1)


@pytest.mark.parametrize("r_drop", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_difference_of_two_passes_counts_both_ways(swapped: bool, r_drop: float) -> None:
    """Half of equation 4 of Wu et al. 2021: the mean of two cross entropies, and a quarter of both divergences."""
    passes = [THREE_TO_ONE, EVEN] if swapped else [EVEN, THREE_TO_ONE]
    loss, _ = classification_loss(torch.tensor(passes), one_hot(1), 1, r_drop)
    entropies = (-math.log(0.5) - math.log(0.75)) / 2
    forth = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert forth + back == pytest.approx(BOTH_WAYS)
    assert float(loss) == pytest.approx(entropies + r_drop / 4 * (forth + back), abs=1e-6)


def test_the_difference_of_a_padding_rows_passes_does_not_count() -> None:
    targets = torch.cat([one_hot(1), torch.zeros(1, 2)])
    loss, _ = classification_loss(torch.tensor([EVEN, EVEN, EVEN, THREE_TO_ONE]), targets, 1, 4.0)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)


def test_the_difference_counts_whole_whatever_the_target() -> None:
    """Probabilities weigh the cross entropy; a sentence of which nothing is known counts as one."""
    logits = torch.tensor([EVEN, THREE_TO_ONE])
    for targets in (one_hot(0), one_hot(1), torch.tensor([[0.5, 0.5]])):
        without, with_it = (float(classification_loss(logits, targets, 1, r_drop)[0]) for r_drop in (0.0, 4.0))
        assert with_it - without == pytest.approx(BOTH_WAYS, abs=1e-6)


def test_the_gradient_of_the_difference_pulls_both_passes_together() -> None:
    logits = torch.tensor([EVEN, THREE_TO_ONE], requires_grad=True)
    with_it, without = (
        torch.autograd.grad(classification_loss(logits, one_hot(1), 1, r)[0], logits)[0] for r in (1.0, 0.0)
    )
    first, second = (with_it - without)[:, 1]
    # d/da of (s(a) - s(b)) * (a - b) is s'(a) * (a - b) + s(a) - s(b).
    assert float(first) == pytest.approx((-0.25 * math.log(3) - 0.25) / 4, abs=1e-6)
    assert float(second) == pytest.approx((0.1875 * math.log(3) + 0.25) / 4, abs=1e-6)
    torch.testing.assert_close((with_it - without).sum(-1), torch.zeros(2), rtol=0, atol=1e-6)
    closer = logits.detach() - 0.1 * (with_it - without)
    assert float(closer[1, 1] - closer[0, 1]) < math.log(3)


@unhurried
@given(batch=batches(), r_drop=st.floats(0, 5))
def test_passes_that_differ_cost_no_less(batch: tuple[torch.Tensor, torch.Tensor], r_drop: float) -> None:
    passes, targets = batch
    without, with_it = (
        float(classification_loss(passes.flatten(0, 1), targets, 1, weight)[0]) for weight in (0.0, r_drop)
    )
    assert with_it >= without - 1e-5 * abs(without)


@unhurried
@given(batch=batches(), doubled=st.booleans(), r_drop=st.floats(0, 5), data=st.data())
def test_the_losses_of_parts_add_up_to_that_of_the_whole(
    batch: tuple[torch.Tensor, torch.Tensor], doubled: bool, r_drop: float, data: st.DataObject
) -> None:
    passes, targets = batch
    passes = (passes if doubled else passes[:1]).requires_grad_()
    count = len(targets)
    total = max(1, int(targets.any(-1).sum()))
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    loss, correct = classification_loss(passes.flatten(0, 1), targets, total, r_drop)
    parts = [
        classification_loss(passes[:, start:end].flatten(0, 1), targets[start:end], total, r_drop)
        for start, end in zip([0, *cuts], [*cuts, count], strict=True)
    ]
    added = torch.stack([part for part, _ in parts]).sum()
    torch.testing.assert_close(added, loss, rtol=1e-5, atol=1e-5)
    assert sum(int(right) for _, right in parts) == int(correct)
    gradients = [torch.autograd.grad(each, passes)[0] for each in (added, loss)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
