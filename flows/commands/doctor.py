"""Checks everything that a run depends on: libraries, GPU, ONNX Runtime, encoder, MLflow, Prefect, disk."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from flows.extras import explain_missing
from flows.services.server_watch import check_servers, external_servers
from tasks.core.errors import VerdictError, first_line, is_disk_full, is_out_of_memory
from tasks.core.packages import is_installed
from tasks.core.printable import redact_address
from tasks.core.provenance import library_versions
from tasks.core.signing import describe_key, signature_required, trusted_keys
from tasks.export.subprocess_call import start_forkserver
from tasks.inference.sessions import has_gpu, open_session
from tasks.training.pretrained import PACKAGED, locate_encoder

DEFAULT_PROFILE = "sample"  # of the commands that train
MIN_FREE_DISK_GB = 2.0  # 10^9 bytes; a run with a base-sized encoder needs that much


class DoctorCheck(TypedDict):
    """One check: its name, whether it passed, and what was found."""

    check: str
    works: bool
    seen: str


def run_checks(home: str, encoder: str | None = None) -> list[DoctorCheck]:
    """Run every check; a failed check is an entry, not an exception.

    Args:
        home: folder of the stores.
        encoder: folder or hub id of an encoder that is checked as before a training, or packaged; None: the packaged
            one is compared with its digest only.
    """
    if encoder:
        start_forkserver()  # imports beside the other checks what the encoder's export needs
    checks: dict[str, Callable[[], str]] = {
        "versions": _libraries,
        "GPU": _gpu,
        "ONNX Runtime": _onnxruntime,
        "encoder": lambda: _encoder(encoder),
        "MLflow store": lambda: _store(home),
        "signatures": _signatures,
        "Prefect": _prefect,
        "disk": lambda: _disk(home),
    }
    return [_run(name, check) for name, check in checks.items()]


def _run(name: str, check: Callable[[], str]) -> DoctorCheck:
    try:
        return DoctorCheck(check=name, works=True, seen=check())
    except ModuleNotFoundError as error:  # an installation need not have every extra, but each needs ONNX Runtime
        missing = str(error.name).partition(".")[0]
        if missing == "onnxruntime":
            return DoctorCheck(check=name, works=False, seen=explain_missing(missing, "predict"))
        return DoctorCheck(check=name, works=True, seen=f"not checked: {missing} is not installed")
    except Exception as error:
        expected = isinstance(error, (VerdictError, ImportError, OSError))
        if not (expected or is_disk_full(error) or is_out_of_memory(error)):
            raise
        return DoctorCheck(check=name, works=False, seen=first_line(error))


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch built for CUDA {torch.version.cuda}"
    if has_gpu():
        raise VerdictError(
            f"the driver shows a GPU, but torch {torch.__version__} cannot use it; install a CUDA build: "
            "make clean install GPU=1"
        )
    return "none; runs use the CPU"


def _onnxruntime() -> str:
    """Open a real session: the list of available providers only says what was compiled in."""
    both = {"onnxruntime", "onnxruntime-gpu"} & {item.metadata["Name"] for item in importlib.metadata.distributions()}
    if len(both) == 2:
        raise VerdictError("onnxruntime and onnxruntime-gpu are both installed and overwrite each other; remove one")
    if has_gpu() and "onnxruntime-gpu" not in both:
        raise VerdictError(
            "the driver shows a GPU, which the package onnxruntime cannot use; expected onnxruntime-gpu: "
            "make clean install GPU=1, or pip uninstall onnxruntime and pip install 'verdict-mlops[gpu]'"
        )
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Add", ["x", "x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save_model(model, path)
        session = open_session(path, "cuda" if has_gpu() else "cpu")
    return f"a session runs on {session.get_providers()[0]}"


def _encoder(wanted: str | None) -> str:
    """Find the packaged encoder, or check another with the settings of a plain `verdict retrain`."""
    if not is_installed("transformers"):
        raise ModuleNotFoundError(name="transformers")
    located = locate_encoder(wanted or PACKAGED)
    if wanted is None:
        return f"{located['name']}, weights as expected"
    from tasks.core.settings_loader import load_settings
    from tasks.export.encoder_check import describe_report, examine_encoder

    report = examine_encoder(located, load_settings(DEFAULT_PROFILE).settings.finetune.max_length)
    return f"{located['name']}: {describe_report(report)}"


def _store(home: str) -> str:
    from tasks.inference.bundle import CHAMPION
    from tasks.registry.lookup import find_alias
    from tasks.registry.mlflow_client import check_database
    from tasks.registry.store import is_uninitialised, locate_store
    from tasks.registry.verification import inspect_version

    store = locate_store(home)
    check_servers(external_servers(), wait=False)
    check_database(store)
    if is_uninitialised(store):
        return f"{store['uri']}, not created yet"
    champion = find_alias(store, CHAMPION, fetch=False)
    if champion:
        fault, signature = inspect_version(store, champion["version"])
        if fault:
            raise VerdictError(fault)
        return f"{store['uri']}, champion {champion['version']}, its files are intact, {signature}"
    return f"{store['uri']}, champion none"


def _signatures() -> str:
    """Name the keys, and fail where one cannot be read."""
    trusted = sorted(name for name, _ in trusted_keys().values())
    required = ", and they are required" if signature_required() else ""
    return f"what is written here is {describe_key()}; trusted: {', '.join(trusted) or 'no key'}{required}"


def _prefect() -> str:
    from flows.services.embedded_prefect import external_api

    url = external_api()
    if not url:
        return "embedded server, started for each run"
    from prefect import __version__

    from flows.services.prefect_status import check_workers, connect_prefect

    with connect_prefect("start it (make up), or unset PREFECT_API_URL") as client:
        version, workers = client.api_version(), check_workers(client)
    url = redact_address(url)
    if version != __version__:
        raise VerdictError(f"{url} is Prefect {version}, installed is {__version__}; run the same on both sides")
    return f"{url} answers, {workers}"


def _libraries() -> str:
    """Name the installed versions; fail on a combination that is known to break silently."""
    found = library_versions()
    if found.get("prefect", "").startswith("3.8.") and (
        database := importlib.metadata.version("sqlalchemy")
    ).startswith("2.1."):
        raise VerdictError(
            f"with SQLAlchemy {database} the schedules of Prefect {found['prefect']} never fire; "
            "install the pinned one: make install"
        )
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _disk(home: str) -> str:
    folder = Path(home)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < MIN_FREE_DISK_GB:
        raise VerdictError(f"{free:.1f} GB free at {folder}, expected at least {MIN_FREE_DISK_GB}")
    return f"{free:.0f} GB free at {folder}"
