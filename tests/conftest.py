"""Small real things that tests share: a corpus a tiny model can learn, the tiny model, and a Prefect server."""

import gc
import itertools
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings
from ray_nodes import TOKEN
from toy import Trainer, origin, recipe, write_quick_encoder, write_tokenizer, write_toy_data
from xdist.scheduler import LoadFileScheduling

from flows import environment
from tasks.core.quick_imports import collection_paused

# Tiny models gain nothing from threads, and two processes that spin for them on two cores stand still.
os.environ["OMP_NUM_THREADS"] = "1"

# Ray reads its token once in a process: that of whatever cluster a test starts first.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}

settings.register_profile("unhurried", deadline=None)  # slow is not wrong
settings.load_profile("unhurried")

# A shell that starts the tests in the background has them ignore SIGINT, which the processes that they start inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton reads this when it is imported: kernels are interpreted, on CPU tensors. With a GPU they are compiled.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


# Files whose tests use the Prefect server, in groups that take about as long: one worker of a run has all files of a
# group, so that at most as many servers start.
PREFECT_GROUPS = (
    ("test_retrain.py", "test_killed_runs.py"),
    (
        "test_watch.py", "test_deploy.py", "test_approval.py", "test_rejudging_flow.py", "test_cli.py",
        "test_batch_scoring.py", "test_embedded_prefect.py", "test_status.py", "test_kubernetes.py", "test_webhook.py",
        "test_secrets.py", "test_plan.py", "test_sweep_flow.py",
    ),
)  # fmt: skip
PREFECT_FILES = tuple(itertools.chain(*PREFECT_GROUPS))

# Takes longest, and waits most of that: the tests of the services on shared servers.
LONGEST_FILE = "test_services.py"

# Other files of more than ten seconds, which start first so that none of them runs alone at the end.
SLOW_FILES = (
    "test_default_run.py", "test_own_machine.py", "test_stack_up.py", "test_ray_cluster.py", "test_ray_sweep.py",
    "test_ray_serve.py", "test_images.py", "test_inference_distribution.py", "test_models_serve.py",
    "test_sweep_trials.py", "test_launcher.py", "test_promotion_kills.py", "test_demo_page.py", "test_torchrun.py",
    "test_soup.py", "test_server.py",
    "test_finetune.py", "test_onnx_export.py", "test_concurrent_promotions.py", "test_report_page.py",
    "test_versions.py", "test_readme.py", "test_review.py", "test_pyfunc.py", "test_corruption.py", "test_trainer.py",
    "test_layout.py", "test_triton_kernels.py", "test_cuda_graph_step.py", "test_prepare_installation.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest file first, then the tests of the Prefect server and slow files; all else stays as it is.

    Raises:
        UsageError: if a file uses the server and is in none of PREFECT_GROUPS.
    """
    users = {item.path.name for item in items if "prefect_server" in getattr(item, "fixturenames", ())}
    if unknown := users - set(PREFECT_FILES):
        raise pytest.UsageError(f"{sorted(unknown)} use the Prefect server; add them to PREFECT_GROUPS of {__file__}")
    order = {name: number for number, name in enumerate((LONGEST_FILE, *PREFECT_FILES, *SLOW_FILES))}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: compressed ones hold the time, and all workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


class GroupScheduling(LoadFileScheduling):
    """Gives a worker one file at a time, and all files of a group of the Prefect server to one worker.

    pytest-xdist's own groups (--dist loadgroup) have no effect with pytest 9.2: they are written to a field of a test
    that it no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        name = Path(file).name
        return next((f"prefect {number}" for number, files in enumerate(PREFECT_GROUPS) if name in files), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all tests without garbage collections, and leave what they brought out of all later ones."""
    with collection_paused():
        result = yield
    gc.freeze()
    return result


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the tasks say on the log; Prefect, once it is set up, keeps that from the root logger."""
    monkeypatch.setattr(logging.getLogger("tasks"), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        initializer_range=0.2,  # so that so small a model learns in two epochs
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_split(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Paths of training rows, validation rows and the holdout's snapshot."""
    from tasks.data.ingestion import ingest
    from tasks.data.sources import Sources
    from tasks.data.splitting import split_snapshot
    from tasks.data.table_format import TableFormat

    folder = tmp_path_factory.mktemp("split")
    train, holdout = (str(toy_data / name) for name in ("in_domain_train.tsv", "out_of_domain_dev.tsv"))
    sources = Sources(train=[train], holdout=[holdout], secondary=[])
    data = ingest(sources, str(folder), TableFormat(), 0.2)
    paths = split_snapshot(data["train"]["path"], [data["holdout"]["path"]], str(folder), 0.2, 0)
    return paths[0], paths[1], data["holdout"]["path"]


@pytest.fixture(scope="session")
def quick_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_quick_encoder(tmp_path_factory.mktemp("quick") / "encoder")


@pytest.fixture(scope="session")
def make_trainer(
    toy_split: tuple[str, str, str], quick_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Trainer]:
    return lambda: Trainer(toy_split, quick_encoder, tmp_path_factory.mktemp("trainer"))


@pytest.fixture
def trainer(make_trainer: Callable[[], Trainer]) -> Trainer:
    return make_trainer()


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], Any]) -> Path:
    """Return a folder that one worker of a run builds and all workers read (the recipe of pytest-xdist's manual)."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker whose build failed
            folder.mkdir(parents=True)
            build(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def trained(toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The training record of a tiny model that learned the toy corpus, and its folder under "model"."""
    from tasks.training.finetune import fine_tune, load_training

    def build(folder: Path) -> None:
        fine_tune(*toy_split[:2], recipe(tiny_encoder), str(folder / "model"))

    model = str(build_once(tmp_path_factory, "trained", build) / "model")
    training = load_training(model)
    assert training is not None
    return {**training, "model": model}


@pytest.fixture(scope="session")
def exported(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The export record of that model, fp32 alone."""
    from tasks.export.bundle_export import export_bundle, load_export

    folder = build_once(tmp_path_factory, "exported", lambda to: export_bundle(trained["model"], str(to), origin()))
    return load_export(str(folder))


@pytest.fixture(scope="session")
def complete(trained: Any, toy_split: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The export record of that model in every variant."""
    from tasks.export.bundle_export import export_bundle, load_export

    def build(folder: Path) -> None:
        export_bundle(trained["model"], str(folder), origin(), toy_split[1])

    return load_export(str(build_once(tmp_path_factory, "complete", build)))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server on loopback, the one that runs embed; yields its address."""
    home = str(tmp_path_factory.mktemp("prefect"))
    environment.set_process_defaults()
    os.environ.pop("PREFECT_API_URL", None)
    from flows.services.embedded_prefect import connected, prefect_api

    with prefect_api(home) as server, connected(server):
        assert server is not None
        yield server.api_url


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database; copying it saves each test five seconds."""
    environment.set_process_defaults()
    from tasks.registry import tracking as runs

    def build(folder: Path) -> None:
        runs.recent_runs({"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")})

    return build_once(tmp_path_factory, "store", build) / "mlflow.db"


@pytest.fixture
def own_mlflow_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test point MLflow at a store of its own: no later test is led there."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow writes its address there too
