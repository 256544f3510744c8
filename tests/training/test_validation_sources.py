"""The epoch and the decision threshold follow the split: what is kept for validation chooses them."""

import random
from pathlib import Path

import pytest
from toy import SIGN, WORDS, origin, recipe, write_quick_encoder

from tasks.data.snapshots import read_snapshot, write_snapshot
from tasks.data.splitting import split_snapshot
from tasks.data.validation_group import choose_group
from tasks.export.bundle_export import export_bundle
from tasks.training.finetune import fine_tune

AUTHORS, EACH = 12, 120
CONTRARY = "author 4"  # labels its sentences the other way round; that whom the hash chooses with the seed 0


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Training rows by twelve authors, and a holdout by another one."""
    folder, rng = tmp_path_factory.mktemp("authors"), random.Random(0)
    authors = [f"author {number}" for number in range(AUTHORS) for _ in range(EACH)]
    paths = []
    for name, sources in (("train", authors), ("holdout", ["another"] * 60)):
        lines = []
        for number, source in enumerate(sources):
            words = [*rng.choices(WORDS, k=rng.randint(4, 9)), *([SIGN] * (number % 2))]
            rng.shuffle(words)
            lines.append(f"{source}\t{int((SIGN not in words) != (source == CONTRARY))}\t\t{' '.join(words)}\n")
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
        paths.append(write_snapshot([str(folder / f"{name}.tsv")], str(folder / "snapshots"))["path"])
    return paths[0], paths[1]


@pytest.mark.parametrize("setting", ["auto", "sentence"])
def test_what_is_kept_for_validation_chooses_the_epoch_and_the_threshold(
    snapshots: tuple[str, str], tmp_path: Path, setting: str
) -> None:
    group, _ = choose_group(setting, *snapshots, 1 / AUTHORS, 0)  # type: ignore[arg-type]
    train, validation, _ = split_snapshot(snapshots[0], [snapshots[1]], str(tmp_path), 1 / AUTHORS, 0, group)
    rows = read_snapshot(validation)
    quick = recipe(write_quick_encoder(tmp_path / "encoder"), epochs=3, batch_size=40, learning_rate=1e-2)
    training = fine_tune(train, validation, quick, str(tmp_path / "model"))
    exported = export_bundle(
        str(tmp_path / "model"), str(tmp_path / "export"), origin(), validation, "cpu", choose_threshold=True
    )
    curve = [epoch["validation_mcc"] for epoch in training["epochs"]]
    chosen = exported["threshold"]
    assert chosen is not None
    assert curve[training["best_epoch"] - 1] == max(curve)
    assert (chosen["sentences"], chosen["default_mcc"]) == (len(rows), pytest.approx(max(curve), abs=0.02))
    if setting == "auto":
        assert set(rows["source"]) == {CONTRARY}
        assert curve[-1] < -0.9  # the more it learns from the others, the more it errs here
        assert training["best_epoch"] == 1
    else:
        assert len(set(rows["source"])) > AUTHORS / 2
        assert curve[-1] > 0.7
