"""Batches gathered on the device are the batches that padding gives, and padding rows have no loss."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny import tiny_bert, toy_encoded

from tasks.inference.tokenization import TokenIds, pad
from tasks.training.dataset import BUCKETS, Inputs, TokenDataset, bucket_of
from tasks.training.losses import classification_loss

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong
sentences = st.lists(
    st.lists(st.integers(0, 30_000), min_size=1, max_size=70).map(lambda row: np.array(row, np.int64)),
    min_size=1,
    max_size=12,
)


def encode(ids: list[TokenIds], pad_id: int = 0) -> TokenDataset:
    return TokenDataset(ids, np.arange(len(ids)) % 2, pad_id, "cpu")


@unhurried
@given(ids=sentences, pad_id=st.integers(0, 3), data=st.data())
def test_a_gathered_batch_is_the_padded_one(ids: list[TokenIds], pad_id: int, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=20)))
    inputs, targets = encode(ids, pad_id).batch(rows)
    expected, mask = pad([ids[row] for row in rows], pad_id)
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert np.array_equal(inputs["input_ids"].numpy(), expected)
    assert np.array_equal(inputs["attention_mask"].numpy(), mask)
    assert targets.tolist() == [[0.0, 1.0] if row % 2 else [1.0, 0.0] for row in rows]
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}
    assert targets.dtype == torch.float32


@unhurried
@given(ids=sentences, pad_id=st.integers(0, 3), data=st.data())
def test_a_longer_batch_only_has_more_padding(ids: list[TokenIds], pad_id: int, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=20)))
    encoded = encode(ids, pad_id)
    (own, own_targets), longest = encoded.batch(rows), int(encoded.lengths[rows].max())
    length = encoded.bucket(rows)
    assert length == bucket_of(longest)
    inputs, targets = encoded.gather(torch.from_numpy(rows), length)
    assert torch.equal(inputs["input_ids"][:, :longest], own["input_ids"])
    assert torch.equal(inputs["attention_mask"][:, :longest], own["attention_mask"])
    assert (inputs["input_ids"][:, longest:] == pad_id).all()
    assert not inputs["attention_mask"][:, longest:].any()
    assert torch.equal(targets, own_targets)


@pytest.mark.parametrize("pad_id", [0, 1])
def test_the_padding_row_is_one_token_that_is_not_counted(pad_id: int) -> None:
    encoded = encode([np.array([5, 6, 7]), np.array([8])], pad_id)
    assert encoded.count == 2
    inputs, targets = encoded.gather(torch.tensor([encoded.count, 0]), 4)
    assert inputs["input_ids"].tolist() == [[pad_id] * 4, [5, 6, 7, pad_id]]
    assert inputs["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert targets.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_labels_are_targets_that_are_certain() -> None:
    ids, labels = [np.array([5]), np.array([6, 7]), np.array([8])], np.array([1, 0, 1])
    of_labels, of_targets = TokenDataset(ids, labels, 0, "cpu"), TokenDataset(ids, np.eye(2)[labels], 0, "cpu")
    rows = np.array([2, 1, 0])
    assert torch.equal(of_labels.batch(rows)[1], of_targets.batch(rows)[1])
    assert of_labels.labels.tolist() == of_targets.labels.tolist() == [1, 0, 1]


def test_probabilities_come_as_they_are_and_the_larger_one_is_the_label() -> None:
    ids, probabilities = [np.array([5]), np.array([6, 7]), np.array([8])], [[0.75, 0.25], [0.125, 0.875], [0.0, 1.0]]
    encoded = TokenDataset(ids, np.array(probabilities), 0, "cpu")
    _, targets = encoded.batch(np.array([1, 0, 2]))
    assert targets.tolist() == [probabilities[row] for row in (1, 0, 2)]
    assert targets.dtype == torch.float32
    assert encoded.labels.tolist() == [0, 1, 1]
    _, targets = encoded.gather(torch.tensor([3, 1]), 4)
    assert targets.tolist() == [[0.0, 0.0], probabilities[1]]


@given(length=st.integers(1, 10_000))
def test_a_bucket_is_the_smallest_that_holds_a_sentence(length: int) -> None:
    allowed = [*BUCKETS, *range(128, 10_064, 64)]
    assert bucket_of(length) == min(bucket for bucket in allowed if bucket >= length)


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, 8), (8, 8), (9, 12), (33, 48), (64, 64), (65, 128), (128, 128), (129, 192), (512, 512)]
)
def test_buckets_above_the_last_are_its_multiples(length: int, bucket: int) -> None:
    assert bucket_of(length) == bucket


@given(length=st.integers(1, 600), positions=st.integers(1, 600))
def test_a_bucket_has_no_more_tokens_than_the_model_has_positions(length: int, positions: int) -> None:
    assume(length <= positions)
    assert bucket_of(length, positions) == min(bucket_of(length), positions)


@pytest.mark.parametrize(("positions", "buckets"), [(None, [128, 64, 12]), (128, [128, 64, 12]), (80, [80, 64, 12])])
def test_sentences_near_the_last_position_have_a_bucket_of_their_own(positions: int | None, buckets: list[int]) -> None:
    ids = [np.zeros(length, np.int64) for length in (10, 60, 70, 80)]
    encoded = TokenDataset(ids, np.array([0, 1, 0, 1]), 0, "cpu", positions=positions)
    assert encoded.buckets() == buckets
    assert [encoded.bucket(np.array([row])) for row in range(4)] == [12, 64, buckets[0], buckets[0]]


@unhurried
@given(ids=sentences, data=st.data())
def test_every_batch_has_one_of_the_listed_lengths(ids: list[TokenIds], data: st.DataObject) -> None:
    encoded = encode(ids)
    rows = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1)))
    assert encoded.bucket(rows) in encoded.buckets()
    assert encoded.buckets() == sorted(set(encoded.buckets()), reverse=True)


@pytest.mark.parametrize("fillers", [0, 1, 13])
@pytest.mark.parametrize("r_drop", [0.0, 2.0])
def test_padding_rows_and_longer_padding_change_neither_loss_nor_gradients(r_drop: float, fillers: int) -> None:
    encoded = toy_encoded(20)
    rows = np.array([3, 14, 15, 9, 2])

    def measure(inputs: Inputs, targets: torch.Tensor) -> tuple[float, int, list[torch.Tensor]]:
        model = tiny_bert().train()
        logits = model(**inputs).logits
        if r_drop:
            logits = torch.cat([logits, 2 * logits])  # as if dropout had made the second pass another one
        loss, correct = classification_loss(logits, targets, len(rows), r_drop)
        loss.backward()
        return loss.item(), int(correct), [parameter.grad for parameter in model.parameters()]

    loss, correct, gradients = measure(*encoded.batch(rows))
    filled = torch.tensor([*rows, *[encoded.count] * fillers])
    found_loss, found_correct, found_gradients = measure(*encoded.gather(filled, 16))
    assert found_loss == pytest.approx(loss, abs=1e-6)
    assert found_correct == correct
    torch.testing.assert_close(found_gradients, gradients, rtol=1e-4, atol=1e-6)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-2
