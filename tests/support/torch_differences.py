"""How far a graph's logits are from torch's, for tests of what writes graphs."""

from pathlib import Path

from tasks.export.parity import compare_variant
from tasks.export.torch_reference import HalfReference, LogitsModule, ParityCase, TorchReference


def _no_model() -> LogitsModule:
    raise AssertionError("half precision is measured on real sentences only")


def differences_from_torch(cases: list[ParityCase], graph: Path) -> dict[str, float]:
    """Return the largest difference of a logit from torch's in fp32, by the cases' names; the graph runs on a CPU."""
    parity = compare_variant("fp32", graph, TorchReference(cases, [], HalfReference(_no_model, []), pad_id=0))
    assert parity["not_finite"] == []
    return parity["difference"]
