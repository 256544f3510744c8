"""Looks at what a run depends on and says for each thing whether it works here."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import onnx
from onnx import TensorProto, helper

from tasks.core.errors import VerdictError
from tasks.core.provenance import library_versions
from tasks.inference.sessions import has_gpu, open_session
from tasks.training.pretrained import PACKAGED, locate_encoder

if TYPE_CHECKING:
    import httpx

MIN_FREE_DISK_GB = 2.0  # GB that a run with a base-sized encoder needs


class DoctorCheck(TypedDict):
    """One look: what, whether it works, and what was seen."""

    check: str
    works: bool
    seen: str


def run_checks(home: str) -> list[DoctorCheck]:
    """Run every check; none of them raises."""
    checks: dict[str, Callable[[], str]] = {
        "versions": _libraries,
        "GPU": _gpu,
        "ONNX Runtime": _onnxruntime,
        "encoder": lambda: f"{locate_encoder(PACKAGED)['name']}, weights as expected",
        "MLflow store": lambda: _store(home),
        "Prefect": _prefect,
        "disk": lambda: _disk(home),
    }
    return [_run(name, look) for name, look in checks.items()]


def _run(name: str, look: Callable[[], str]) -> DoctorCheck:
    try:
        return DoctorCheck(check=name, works=True, seen=look())
    except (VerdictError, ImportError, OSError) as error:
        return DoctorCheck(check=name, works=False, seen=str(error))


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch built for CUDA {torch.version.cuda}"
    if has_gpu():
        raise VerdictError(f"the driver shows a GPU, but torch {torch.__version__} cannot use it; install a CUDA build")
    return "none; runs use the CPU"


def _onnxruntime() -> str:
    """Open a real session: the list of available providers says only what was compiled in."""
    both = {"onnxruntime", "onnxruntime-gpu"} & {item.metadata["Name"] for item in importlib.metadata.distributions()}
    if len(both) == 2:
        raise VerdictError("onnxruntime and onnxruntime-gpu are both installed and overwrite each other; remove one")
    node = helper.make_node("Add", ["x", "x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save_model(model, path)
        session = open_session(path, "cuda" if has_gpu() else "cpu")
    return f"a session runs on {session.get_providers()[0]}"


def _store(home: str) -> str:
    from tasks.registry import versions as registry
    from tasks.registry.verification import verify_version

    store = registry.locate_store(home)
    if registry.is_uninitialised(store):
        return f"{store['uri']}, not created yet"
    champion = registry.find_alias(store, registry.CHAMPION, fetch=False)
    if champion:
        verify_version(store, champion["version"])
    return f"{store['uri']}, champion {champion['version'] + ', its files are intact' if champion else 'none'}"


def _prefect() -> str:
    import httpx
    from prefect import __version__
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:
        return "embedded server, started for each run"
    url, secret = settings.api.url, settings.api.auth_string
    name, _, password = secret.get_secret_value().partition(":") if secret else ("", "", "")
    try:
        with httpx.Client(base_url=url, auth=(name, password) if secret else None, timeout=5) as client:
            client.get("/health").raise_for_status()
            version = client.get("/admin/version").raise_for_status().json()
            workers = _workers(client)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != 401:
            raise VerdictError(f"{url} fails ({error.response.status_code}); see its log: make logs") from error
        raise VerdictError(f"{url} refuses us (401); set PREFECT_API_AUTH_STRING=NAME:PASSWORD") from error
    except httpx.HTTPError as error:
        raise VerdictError(f"{url} does not answer ({error}); start it (make up), or unset PREFECT_API_URL") from error
    if version != __version__:
        raise VerdictError(f"{url} is Prefect {version}, installed is {__version__}; run the same on both sides")
    return f"{url} answers, {workers}"


def _workers(client: "httpx.Client") -> str:
    """Say how many workers take runs; a pool that nobody made has none.

    Raises:
        VerdictError: if there are schedules and no worker.
    """
    token = client.get("/csrf-token", params={"client": "doctor"})
    known = {"Prefect-Csrf-Token": token.json()["token"], "Prefect-Csrf-Client": "doctor"} if token.is_success else {}
    pool = client.post("/work_pools/verdict/workers/filter", json={}, headers=known)
    if pool.status_code == 404:
        return "no work pool; schedules come with: verdict deploy"
    workers = pool.raise_for_status().json()
    online = [worker["name"] for worker in workers if worker["status"] == "ONLINE"]
    if not online:
        raise VerdictError("no worker takes runs from the pool verdict; start one: make up")
    return f"{len(online)} worker{'s' * (len(online) != 1)} online"


def _libraries() -> str:
    """Name what is installed; refuse what is known not to go together and does not say so itself."""
    found = library_versions()
    database = importlib.metadata.version("sqlalchemy")
    if database.startswith("2.1.") and found.get("prefect", "").startswith("3.8."):
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
