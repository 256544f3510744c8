"""A bundle proves itself: any file that changed, vanished or appeared is named, and the digest covers what answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from tasks.core.errors import VerdictError
from tasks.core.files import json_digest, sha256_of, write_json
from tasks.inference.bundle import (
    BUNDLE_SCHEMA,
    FP32_MODEL,
    MANIFEST,
    TOKENIZER,
    Manifest,
    ModelInfo,
    _digest,
    _manifest_digest,
    serving_variant,
    variants_of,
    verify,
    write_manifest,
)
from tasks.inference.decision import threshold_of

FILES = {FP32_MODEL: b"\x08\x0agraph", TOKENIZER: b"{}", "card.md": b"# Card\n", "report.html": b"<html>"}
METRICS = {"fp32": {"mcc": 0.5}}


def facts(**changes: Any) -> ModelInfo:
    values = {
        "labels": ["unacceptable", "acceptable"],
        "max_length": 16,
        "pad_id": 0,
        "encoder": "tiny",
        "dataset": "d" * 64,
        "git_commit": "unknown",
    }
    return values | changes  # type: ignore[return-value]


def build(folder: Path, files: dict[str, bytes] | None = None, **changes: Any) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (FILES | (files or {})).items():
        (folder / name).write_bytes(content)
    return write_manifest(folder, facts(**changes), METRICS)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    build(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(bundle: Path, **changes: Any) -> None:
    """Change keys of bundle.json, as somebody with an editor would."""
    write_json(bundle / MANIFEST, json.loads((bundle / MANIFEST).read_text()) | changes)


def reseal(bundle: Path, **changes: Any) -> None:
    """Change keys of bundle.json together with its own digest."""
    manifest = json.loads((bundle / MANIFEST).read_text()) | changes
    digest = json_digest({key: value for key, value in manifest.items() if key != "manifest_digest"})
    write_json(bundle / MANIFEST, manifest | {"manifest_digest": digest})


def listed(bundle: Path) -> dict[str, str]:
    return json.loads((bundle / MANIFEST).read_text())["files"]


def refusal(bundle: Path) -> str:
    with pytest.raises(VerdictError) as caught:
        verify(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)
    return str(caught.value)


def test_a_decision_threshold_is_part_of_what_determines_predictions(bundle: Path, tmp_path: Path) -> None:
    default, chosen = verify(bundle), build(tmp_path / "chosen", decision_threshold=0.7)
    assert verify(tmp_path / "chosen")["decision_threshold"] == 0.7
    assert (threshold_of(default), threshold_of(chosen)) == (0.5, 0.7)
    assert "decision_threshold" not in default
    assert default["digest"] != chosen["digest"]
    reseal(bundle, decision_threshold=0.7)
    assert "contradicts its own digest" in refusal(bundle)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1, -0.1, float("nan"), float("inf"), "0.7", None, True])
def test_an_impossible_decision_threshold_is_refused(tmp_path: Path, threshold: Any) -> None:
    manifest: Any = build(tmp_path / "bundle") | {"decision_threshold": threshold}
    manifest["digest"] = _digest(manifest["files"], manifest)
    manifest["manifest_digest"] = _manifest_digest(manifest)
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    assert f"decision_threshold {threshold!r}, expected a number above 0 and below 1" in refusal(tmp_path / "bundle")


def test_sealed_bundle_verifies_to_the_manifest_it_was_sealed_with(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    assert verify(tmp_path) == manifest
    assert manifest == {
        **facts(),
        "schema_version": 2,
        "digest": manifest["digest"],
        "manifest_digest": json_digest({key: value for key, value in manifest.items() if key != "manifest_digest"}),
        "onnxruntime": onnxruntime.__version__,
        "files": {name: sha256_of(tmp_path / name) for name in FILES},
        "metrics": METRICS,
    }


def test_sealing_again_gives_the_same_manifest(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    assert write_manifest(bundle, facts(), METRICS) == verify(bundle)
    assert (bundle / MANIFEST).read_bytes() == before


def test_bundle_may_lie_anywhere(bundle: Path, tmp_path: Path) -> None:
    manifest = verify(bundle)
    moved = bundle.rename(tmp_path / "moved")
    assert verify(moved) == manifest


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_is_refused(bundle: Path, name: str, place: int) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[place] ^= 1
    (bundle / name).write_bytes(content)
    assert refusal(bundle) == (
        f"bundle {bundle}: {name} does not match its SHA-256 in bundle.json; fetch it again from the registry"
    )


@pytest.mark.parametrize("name", FILES)
def test_cut_off_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(FILES[name][:-1])
    assert f"{name} does not match its SHA-256 in bundle.json" in refusal(bundle)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert refusal(bundle) == f"bundle {bundle} lacks {name}; fetch it again from the registry"


@pytest.mark.parametrize("name", ["model.onnx.data", "extra.py", ".hidden"])
def test_added_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"")
    assert refusal(bundle) == f"bundle {bundle} holds {name}, which {MANIFEST} does not list; fetch it again"


def test_added_folder_is_refused(bundle: Path) -> None:
    (bundle / "deep").mkdir()
    assert f"holds deep, which {MANIFEST} does not list" in refusal(bundle)


def test_file_that_left_folder_and_list_alike_is_refused_where_answers_need_it(bundle: Path) -> None:
    (bundle / TOKENIZER).unlink()
    write_manifest(bundle, facts(), METRICS)
    assert f"lacks {TOKENIZER}" in refusal(bundle)


@pytest.mark.parametrize("place", ["bundle", "none"])
def test_folder_without_a_manifest_is_no_bundle(bundle: Path, tmp_path: Path, place: str) -> None:
    (bundle / MANIFEST).unlink()
    folder = tmp_path / place
    assert refusal(folder) == (f"{folder} is no bundle: it holds no {MANIFEST}; expected a folder that `verdict` wrote")


def test_manifest_that_is_no_json_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).write_text('{"schema_version": 1,')
    assert f"{bundle / MANIFEST} cannot be read as JSON" in refusal(bundle)


@pytest.mark.parametrize("schema", [BUNDLE_SCHEMA + 1, 0, None])
def test_other_schema_is_refused_with_both_versions(bundle: Path, schema: Any) -> None:
    edit(bundle, schema_version=schema)
    assert refusal(bundle).startswith(
        f"bundle {bundle}: bundle.json has schema version {schema!r}, this program reads {BUNDLE_SCHEMA};"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "0" * 64},
        {"labels": ["acceptable", "unacceptable"]},
        {"max_length": 17},
        {"pad_id": 1},
        {"encoder": "another"},
        {"dataset": "e" * 64},
        {"git_commit": "c" * 40},
        {"onnxruntime": "99.0"},
        {"metrics": {"fp32": {"mcc": 0.9}}},
        {"manifest_digest": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_edited_manifest_contradicts_its_digest(bundle: Path, changes: dict[str, Any]) -> None:
    edit(bundle, **changes)
    assert refusal(bundle) == (
        f"bundle {bundle}: {MANIFEST} contradicts its own digest; fetch it again from the registry"
    )


@pytest.mark.parametrize("name", [FP32_MODEL, TOKENIZER])
def test_file_exchanged_together_with_its_listed_sum_contradicts_the_digest(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"another")
    reseal(bundle, files=listed(bundle) | {name: sha256_of(bundle / name)})
    assert f"{MANIFEST} contradicts its own digest" in refusal(bundle)


def test_listed_path_outside_of_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    reseal(bundle, files=listed(bundle) | {"../secret": sha256_of(tmp_path / "secret")})
    assert f"bundle {bundle} lacks ../secret" in refusal(bundle)


ALTERED: dict[str, Callable[[Path], Manifest]] = {
    "graph": lambda folder: build(folder, {FP32_MODEL: b"other"}),
    "tokenizer": lambda folder: build(folder, {TOKENIZER: b"[]"}),
    "second graph": lambda folder: build(folder, {"model.cpu.onnx": b"int8"}),
    "labels": lambda folder: build(folder, labels=["no", "yes"]),
    "length": lambda folder: build(folder, max_length=32),
    "padding": lambda folder: build(folder, pad_id=1),
}
DOCUMENTED: dict[str, Callable[[Path], Manifest]] = {
    "card": lambda folder: build(folder, {"card.md": b"# Another\n"}),
    "report": lambda folder: build(folder, {"report.html": b"<html lang=en>"}),
    "another document": lambda folder: build(folder, {"notes.txt": b"x"}),
    "encoder": lambda folder: build(folder, encoder="renamed"),
    "data": lambda folder: build(folder, dataset="e" * 64),
    "commit": lambda folder: build(folder, git_commit="abc"),
}


@pytest.mark.parametrize("change", ALTERED)
def test_what_decides_answers_changes_the_digest(tmp_path: Path, change: str) -> None:
    assert ALTERED[change](tmp_path / "other")["digest"] != build(tmp_path / "one")["digest"]


@pytest.mark.parametrize("change", DOCUMENTED)
def test_what_only_describes_changes_the_digest_of_the_manifest_alone(tmp_path: Path, change: str) -> None:
    one, other = build(tmp_path / "one"), DOCUMENTED[change](tmp_path / "other")
    assert (other["digest"] == one["digest"], other["manifest_digest"] == one["manifest_digest"]) == (True, False)


def test_a_bundle_in_place_of_the_expected_one_is_refused(tmp_path: Path) -> None:
    expected, held = build(tmp_path / "one"), build(tmp_path / "other", {"card.md": b"# Another\n"})
    digests = [manifest["manifest_digest"] for manifest in (held, expected)]
    assert verify(tmp_path / "one", digests[1]) == expected
    with pytest.raises(VerdictError, match=f"its manifest is {digests[0][:12]}, expected was {digests[1][:12]}"):
        verify(tmp_path / "other", digests[1])


IMPOSSIBLE = [
    {"max_length": -1}, {"max_length": 0}, {"max_length": 10**30}, {"max_length": True}, {"max_length": 16.0},
    {"pad_id": -1}, {"pad_id": 2**31}, {"pad_id": None}, {"labels": ["acceptable"]}, {"labels": ["a", "a"]},
    {"labels": ["a", ""]}, {"labels": ["a", "b", "c"]}, {"labels": "ab"}, {"labels": [[], "b"]}, {"encoder": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", IMPOSSIBLE, ids=str)
def test_facts_that_no_model_can_have_are_refused_though_the_digests_fit(bundle: Path, changes: Any) -> None:
    write_manifest(bundle, facts(**changes), METRICS)
    ((name, value),) = changes.items()
    assert refusal(bundle).startswith(f"bundle {bundle}: {MANIFEST} has {name} {value!r:.20}")


@pytest.mark.parametrize("content", ["[]", "null", '{"schema_version": 1}', '{"schema_version": 1, "files": {}}'])
def test_a_manifest_that_is_none_is_refused_in_one_line(bundle: Path, content: str) -> None:
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(VerdictError, match=r"bundle\.json") as caught:
        verify(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fast", "variants", "cuda", "cpu"),
    [
        ([], ["fp32"], "fp32", "fp32"),
        (["model.cuda.onnx"], ["fp32", "fp16"], "fp16", "fp32"),
        (["model.cpu.onnx"], ["fp32", "int8"], "fp32", "int8"),
        (["model.cuda.onnx", "model.cpu.onnx"], ["fp32", "fp16", "int8"], "fp16", "int8"),
    ],
)
def test_the_fast_variant_serves_where_the_bundle_holds_it(
    fast: list[str], variants: list[str], cuda: str, cpu: str, tmp_path: Path
) -> None:
    manifest = build(tmp_path, dict.fromkeys(fast, b"graph"))
    assert variants_of(manifest) == variants
    assert (serving_variant(manifest, "cuda"), serving_variant(manifest, "cpu")) == (cuda, cpu)
