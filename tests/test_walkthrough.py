"""The notebook beside the code runs from its first cell to its last, with the tests' small data and encoder.

Its cells are executed as plain Python, one after the other in one namespace: they use nothing of IPython, and Jupyter's
packages (a kernel, its protocol, a web stack) would be installed for this one test.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "tasks" / "walkthrough.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == kind]


def test_the_notebook_goes_from_sentences_to_a_verdict(
    toy_data: Path,
    quick_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, *others = ["".join(cell["source"]) for cell in cells("code")]
    namespace: dict[str, Any] = {"__name__": "walkthrough"}
    exec(first, namespace)
    namespace |= {"DATA": str(toy_data), "ENCODER": str(quick_encoder)}
    for source in others:
        exec(compile(source, str(NOTEBOOK), "exec"), namespace)
    assert namespace["verdict"]["decision"] in ("PROMOTE", "REJECT")
    assert namespace["evidence"]["candidate"]["rows"] == 80
    printed = capsys.readouterr().out
    assert printed.startswith("epochs: 1 set by: flag\ntrain: 400 rows, snapshot ")
    assert f"\n{namespace['verdict']['decision']}: " in printed


def test_the_notebook_holds_no_output_of_a_run() -> None:
    assert [cell for cell in cells("code") if cell["outputs"] or cell["execution_count"]] == []


def test_the_notebook_takes_the_functions_that_the_flow_takes() -> None:
    flow = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("jobs", "commands")
        for path in (NOTEBOOK.parents[1] / "flows" / folder).glob("*.py")
    )
    source = "\n".join("".join(cell["source"]) for cell in cells("code"))
    steps = ("locate_sources", "ingest", "validate_data", "raise_if_failed", "locate_encoder", "split_snapshot",
             "resolve_recipe", "fine_tune", "export_bundle", "gather_evidence", "judge")  # fmt: skip
    assert [step for step in steps if f"{step}(" not in source or step not in flow] == []
