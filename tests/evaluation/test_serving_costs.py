"""What a variant costs to serve is measured in a process of its own."""

from pathlib import Path
from typing import Any

import pytest

from tasks.evaluation.serving_costs import MIN_CALLS, measure_variant_costs
from tasks.inference.classifier import Classifier
from tasks.training.device import describe_hardware


def test_every_variant_of_an_export_has_its_costs(complete: Any) -> None:
    costs, bundle = complete["costs"], Path(complete["bundle"])
    assert costs["hardware"] == describe_hardware()
    assert list(costs["variants"]) == list(complete["variants"])
    for variant, name in (("fp32", "model.onnx"), ("int8", "model.cpu.onnx")):
        found = costs["variants"][variant]
        assert found["provider"] == "CPUExecutionProvider"
        assert found["size_mb"] == pytest.approx((bundle / name).stat().st_size / 1e6, abs=5e-4)
        assert 0 < found["latency_ms"] <= found["latency_p95_ms"]
        assert found["sentences_per_second"] > 1_000 / found["latency_p95_ms"]
        assert 0 < found["memory_mb"] < 1_000


def test_a_slow_call_is_repeated_a_few_times_only(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.evaluation.serving_costs.SECONDS", 0.0)
    calls: list[int] = []
    real = Classifier.answer

    def answer(self: Classifier, sentences: list[str]) -> Any:
        calls.append(len(sentences))
        return real(self, sentences)

    monkeypatch.setattr(Classifier, "answer", answer)
    measure_variant_costs(exported["bundle"], "fp32", "cpu", ["the cat sees the dog"])
    assert calls == [64, 1, *[1] * MIN_CALLS, *[64] * MIN_CALLS]


@pytest.mark.parametrize(
    ("text", "name"), [("model name\t: Some CPU @ 2 GHz\nflags : a\n", "Some CPU @ 2 GHz, "), ("", "")]
)
def test_the_hardware_is_named(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert describe_hardware(tmp_path / "cpuinfo").startswith(name)
    assert " CPUs" in describe_hardware(tmp_path / "missing")
