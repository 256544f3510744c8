"""The distribution verdict-inference: built, installed into an empty environment, and used as a program uses it."""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from stage import ROOT, Clock
from toy import SIGN

pytestmark = pytest.mark.services

ANSWER = """
import json, sys, time
begun = time.perf_counter()
from verdict_inference import Classifier
answers = Classifier.from_bundle(sys.argv[1], "cpu").predict(sys.argv[2:])
print(json.dumps({"seconds": time.perf_counter() - begun, "labels": [answer["label"] for answer in answers]}))
heavy = {"mlflow", "pandas", "torch", "transformers", "tasks", "flows"}
assert not heavy & {name.partition(".")[0] for name in sys.modules}
"""
FOLLOW = """
from verdict_inference import Champion, UsageError
try:
    Champion.open()
except UsageError as error:
    print(error)
"""
TYPED = """
from verdict_inference import Champion, ChampionAnswer, Classifier, Prediction

classifier: Classifier = Classifier.from_bundle("bundle")
answers: list[Prediction] = classifier.predict(["a sentence"])
probability: float = answers[0]["probability"]
followed: list[ChampionAnswer] = Champion.open().predict(["a sentence"])
reveal_type(Classifier.from_bundle)
answers[0]["score"]  # there is no such key
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, "infra/inference")
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Path:
    """The interpreter of an environment that holds the wheel and its dependencies, as constraints.txt pins them."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--only-binary", ":all:"]
    with clock("verdict-inference installed with its dependencies"):
        run(*pip, "--constraint", "constraints.txt", wheel)
    return folder / "bin" / "python"


def site_packages(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def test_the_wheel_is_small_and_needs_three_libraries(wheel: Path, python: Path) -> None:
    script = "import importlib.metadata as m, json; print(json.dumps(m.metadata('verdict-inference').json))"
    metadata = json.loads(run(python, "-c", script))
    print(f"\n{wheel.name}: {wheel.stat().st_size} bytes, {metadata['requires_dist']}")
    assert wheel.stat().st_size < 80_000
    required = [line for line in metadata["requires_dist"] if "extra ==" not in line]
    assert sorted(line.partition("<")[0].partition(">")[0] for line in required) == [
        "numpy",
        "onnxruntime",
        "tokenizers",
    ]
    assert metadata["provides_extra"] == ["mlflow", "signatures"]
    version = f'version = "{metadata["version"]}"'
    assert version in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()


def test_nothing_of_the_application_is_installed(python: Path) -> None:
    installed = {path.name for path in site_packages(python).iterdir()}
    print(f"\ninstalled: {sorted(name.partition('-')[0] for name in installed if name.endswith('.dist-info'))}")
    assert "verdict_inference" in installed
    assert (site_packages(python) / "verdict_inference" / "py.typed").is_file()
    assert installed & {"tasks", "flows", "mlflow", "pandas", "onnx", "torch", "transformers"} == set()


def test_a_new_process_answers_with_a_bundle(python: Path, exported: Any, tmp_path: Path, clock: Clock) -> None:
    sentences = ["the cat sees the dog", f"the cat {SIGN} sees the dog"]
    run(python, "-c", ANSWER, exported["bundle"], *sentences, cwd=tmp_path)  # once, so that the files are cached
    with clock("verdict-inference: new process to first answer"):
        out = json.loads(run(python, "-c", ANSWER, exported["bundle"], *sentences, cwd=tmp_path))
    print(f"\nfirst answer {out['seconds']:.2f} s after the interpreter started")
    assert out["labels"] == ["acceptable", "unacceptable"]


def test_following_an_alias_without_mlflow_names_the_extra(python: Path, tmp_path: Path) -> None:
    assert run(python, "-c", FOLLOW, cwd=tmp_path) == (
        "model 'models:/acceptability@champion' is not a folder, and registry addresses need MLflow; "
        "run: pip install 'verdict-inference[mlflow]'\n"
    )


def test_public_names_are_listed_and_typed(python: Path, tmp_path: Path) -> None:
    script = (
        "import verdict_inference as v; print(*[name for name in v.__all__ if not hasattr(v, name)], len(v.__all__))"
    )
    assert int(run(python, "-c", script, cwd=tmp_path)) > 10
    (tmp_path / "program.py").write_text(TYPED)
    mypy = [Path(sys.executable).with_name("mypy"), "--strict", "--python-executable", python, "program.py"]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True)
    *notes, count = done.stdout.splitlines()
    assert [line.partition(": ")[2] for line in notes] == [
        'note: Revealed type is "def (path: str | pathlib.Path, device: str =, variant: str | None =, *, spin: bool =,'
        " expected: str =, threads: int =, gpu: int =)"
        ' -> verdict_inference.inference.classifier.Classifier"',
        'error: TypedDict "Prediction" has no key "score"  [typeddict-item]',
    ]
    assert count.startswith("Found 1 error in 1 file")
