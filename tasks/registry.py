"""The MLflow store: runs, model versions, aliases. The only module that imports mlflow.

A run is one job from data to verdict. A version is one bundle: registering the same bundle twice gives one version.
Aliases: `champion` is what downstream systems load, `challenger` is the last candidate on HOLD.
"""

import contextlib
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import mlflow
import mlflow.artifacts
import mlflow.data
import mlflow.pyfunc
from mlflow.entities import DatasetInput, InputTag, LoggedModelStatus, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types import ColSpec, Schema
from sqlalchemy.exc import SQLAlchemyError

from tasks.bundle import MODEL, PROFILE
from tasks.drift import Profile
from tasks.errors import Unreachable, VerdictError, WrongUsage
from tasks.files import read_json
from tasks.reading import load_rows

MODEL_NAME = "acceptability"
EXPERIMENT = "verdict"
CHAMPION, CHALLENGER = "champion", "challenger"
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"

# What a downstream process needs to answer; travels inside each logged model.
SERVING_MODULES = ("__init__", "batching", "bundle", "errors", "external", "files", "predict")
SERVING_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "tokenizers", "numpy", "pandas")
BATCH_LIMIT = 1_000  # metrics in one call, MLflow's limit
DIGEST_LENGTH = 32  # characters; MLflow allows 36

# MLflow keeps its address for the whole process and in the environment, so its callers take turns.
_turn = threading.RLock()


class NoChampion(VerdictError):
    """The store answers, and nobody set the alias yet."""


class UnknownModel(VerdictError):
    """The store answers, and holds no such model or version."""


class Store(TypedDict):
    """An MLflow tracking address and, for a local database, the folder of its artifacts."""

    uri: str
    artifacts: str


class Version(TypedDict):
    """A registered bundle; `bundle` is its folder on local disk, empty where it was not fetched."""

    version: str
    digest: str
    mcc: float | None
    verdict: str | None
    dataset: str | None
    bundle: str


def locate_store(home: str) -> Store:
    """Return the store that MLFLOW_TRACKING_URI names, else a SQLite one under `home`."""
    folder = Path(home).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    return Store(uri=uri, artifacts=str(folder / "artifacts"))


def is_new(store: Store) -> bool:
    """Tell whether the store is a local database that nothing has been written to; asking it would create it."""
    return store["uri"].startswith("sqlite:///") and not Path(store["uri"].removeprefix("sqlite:///")).exists()


def open_run(store: Store, job: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Start a run for a job, or go on with the one that a killed process left running; return its id.

    The caller holds the job's lock, so a run of this job that says RUNNING belongs to a dead process.
    """
    with _client(store) as client:
        experiment = _experiment(client, store)
        left = client.search_runs([experiment], f"tags.job = '{job}' and attributes.status = 'RUNNING'")
        run = left[0] if left else client.create_run(experiment, run_name=f"retrain-{job[:8]}", tags={"job": job})
        client.log_batch(
            run.info.run_id,
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        return run.info.run_id


def tag_run(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    with _client(store) as client:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def close_run(store: Store, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED."""
    with _client(store) as client:
        client.set_terminated(run_id, status)


def running_jobs(store: Store, host: str) -> dict[str, str]:
    """Return run id to job of every run that says it is running on this host."""
    with _client(store) as client:
        runs = client.search_runs(
            [_experiment(client, store)], f"tags.host = '{host}' and attributes.status = 'RUNNING'"
        )
        return {run.info.run_id: run.data.tags["job"] for run in runs if "job" in run.data.tags}


def log_metrics(store: Store, run_id: str, metrics: Mapping[str, float | None], step: int = 0) -> None:
    """Log figures of one step; None is left out."""
    log_series(store, run_id, {name: {step: value} for name, value in metrics.items()})


def log_series(store: Store, run_id: str, series: Mapping[str, Mapping[int, float | None]]) -> None:
    """Log figures by name and step; None is left out."""
    now = int(time.time() * 1_000)
    metrics = [
        Metric(name, value, now, step)
        for name, values in series.items()
        for step, value in values.items()
        if value is not None
    ]
    with _client(store) as client:
        for start in range(0, len(metrics), BATCH_LIMIT):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH_LIMIT])


def log_dataset(store: Store, run_id: str, name: str, context: str, digest: str, path: str, address: str) -> None:
    """Log a snapshot as an input of a run, so that versions lead back to their rows."""
    rows = load_rows(path)
    with _client(store) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's hints on integer columns and ambiguous folders
        dataset = mlflow.data.from_pandas(
            # MLflow knows no addresses such as hf:...; the snapshot is where the very rows are.
            rows,
            source=path,
            targets="label",
            name=name,
            digest=digest[:DIGEST_LENGTH],
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("address", address[:500])]
        entry = DatasetInput(dataset._to_mlflow_entity(), tags)
        client.log_inputs(run_id, [entry])


def log_files(store: Store, run_id: str, paths: Sequence[str], folder: str) -> None:
    """Store files with a run, in a folder of its artifacts."""
    with _client(store) as client:
        for path in paths:
            client.log_artifact(run_id, path, folder)


def find_version(store: Store, digest: str) -> str | None:
    """Return the version that holds a bundle, or None."""
    with _client(store) as client:
        found = client.search_model_versions(f"name = '{MODEL_NAME}' and tags.bundle_digest = '{digest}'")
        return min((str(version.version) for version in found), key=int, default=None)


def register_bundle(
    store: Store, run_id: str, bundle: str, digest: str, tags: Mapping[str, str], description: str
) -> str:
    """Store a bundle as a model version and return its number; a bundle that has one already keeps it.

    The version is created last, in one call with its tags: a process killed before leaves no version, one killed
    after leaves a whole one.
    """
    existing = find_version(store, digest)
    if existing:
        return existing
    with _client(store) as client:
        experiment = _experiment(client, store)
        model_id = _find_logged(client, experiment, digest) or _log_model(experiment, run_id, bundle, digest)
        if not client.search_registered_models(f"name = '{MODEL_NAME}'"):
            client.create_registered_model(
                MODEL_NAME, description="Sentence acceptability; load it by alias, @champion."
            )
        version = client.create_model_version(
            MODEL_NAME,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={**tags, "bundle_digest": digest},
            description=description,
        )
        return str(version.version)


def move_alias(store: Store, alias: str, version: str) -> None:
    """Point an alias at a version and check that it does."""
    with _client(store) as client:
        client.set_registered_model_alias(MODEL_NAME, alias, version)
        found = client.get_model_version_by_alias(MODEL_NAME, alias).version
        if str(found) != version:
            raise VerdictError(
                f"alias {alias} points at version {found}, expected {version}; run again: verdict retrain"
            )


def find_alias(store: Store, alias: str, fetch: bool = True) -> Version | None:
    """Return the version an alias points at; None when nobody set the alias.

    Args:
        store: where to look.
        alias: champion or challenger.
        fetch: bring the bundle to local disk.

    Raises:
        VerdictError: if the store cannot be asked: that is not the same as an alias that nobody set.
    """
    with _client(store) as client:
        found = _version_by_alias(client, MODEL_NAME, alias)
        return _describe(found, fetch) if found else None


def fetch_profile(store: Store) -> Profile | None:
    """Return the profile of the data that the champion was trained on.

    None when there is no champion, or one whose bundle holds no profile.

    Raises:
        Unreachable: if the store cannot be asked.
    """
    if is_new(store):
        return None
    with _client(store) as client:
        champion = _version_by_alias(client, MODEL_NAME, CHAMPION)
        if champion is None:
            return None
        folder = f"models:/{MODEL_NAME}/{champion.version}/data/bundle"
        held = {Path(entry.path).name for entry in mlflow.artifacts.list_artifacts(artifact_uri=folder)}
        if PROFILE not in held:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return read_json(Path(mlflow.artifacts.download_artifacts(f"{folder}/{PROFILE}", dst_path=scratch)))


def fetch_version(store: Store, uri: str = CHAMPION_URI) -> Version:
    """Return the version behind models:/NAME@ALIAS or models:/NAME/VERSION, with its bundle on local disk.

    Raises:
        WrongUsage: if the address has another form.
        VerdictError: if there is no such version.
    """
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    if not uri.startswith("models:/") or (not separator and name.count("/") != 1):
        raise WrongUsage(f"model {uri!r} is no registry address; expected {CHAMPION_URI} or models:/{MODEL_NAME}/1")
    if is_new(store):
        raise VerdictError(f"there is no model yet in {store['uri']}; run: verdict retrain")
    with _client(store) as client:
        found = _version_by_alias(client, name, alias) if separator else _version_by_number(client, *name.split("/"))
        if found is None:
            missing = "there is no champion yet" if uri == CHAMPION_URI else f"{uri} does not exist"
            raise VerdictError(f"{missing} in {store['uri']}; run: verdict retrain, or see: verdict status")
        return _describe(found, fetch=True)


def resolve_version(store: Store, uri: str = CHAMPION_URI) -> Version:
    """Return the version behind models:/NAME@ALIAS or models:/NAME/VERSION; its bundle stays where it is.

    Raises:
        WrongUsage: if the address has another form.
        Unreachable: if the store cannot be asked.
        NoChampion: if the store answers, and nobody set the alias.
        UnknownModel: if the store answers, and holds no such model or version.
    """
    name, alias, number = split_address(uri)
    if is_new(store):
        raise NoChampion(f"there is no champion yet: {store['uri']} is new; run: verdict retrain")
    with _client(store) as client:
        found = _version_by_alias(client, name, alias) if alias else _version_by_number(client, name, number)
        if found:
            return _describe(found, fetch=False)
        held = sorted(str(model.name) for model in client.search_registered_models(max_results=100))
    # The product's own model is registered by the first run that deserves it: until then it is missing, not unknown.
    if name != MODEL_NAME and name not in held:
        raise UnknownModel(
            f"model {name!r} is unknown in {store['uri']}, which holds {', '.join(held[:5]) or 'no model'}; "
            f"expected for example {CHAMPION_URI}"
        )
    if alias:
        what = "champion" if alias == CHAMPION else f"version with the alias {alias!r}"
        raise NoChampion(f"there is no {what} yet in {store['uri']}; run: verdict retrain, or see: verdict status")
    raise UnknownModel(f"model {name!r} has no version {number!r} in {store['uri']}; see: verdict status")


def split_address(uri: str) -> tuple[str, str, str]:
    """Return name, alias and version number of a registry address; one of the last two is empty.

    Raises:
        WrongUsage: if it has another form.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, slash, number = name.partition("/")
    whole = name and bool(alias) == bool(at) and bool(number) == bool(slash) and bool(at) != bool(slash)
    if not uri.startswith("models:/") or not whole or "/" in number + alias:
        raise WrongUsage(
            f"model {uri!r} is no registry address and no folder; expected {CHAMPION_URI}, models:/{MODEL_NAME}/1 or "
            "a bundle's folder"
        )
    return name, alias, number


def fetch_bundle(store: Store, name: str, version: str, folder: str) -> str:
    """Copy a version's bundle below a folder and return where it lies.

    Raises:
        Unreachable: if it cannot be fetched.
    """
    with _client(store):
        return str(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}/data/bundle", dst_path=folder))


def recent_runs(store: Store, limit: int = 5) -> list[dict[str, Any]]:
    """Return the latest runs, newest first: start (seconds since 1970), status, verdict, version and MCC."""
    with _client(store) as client:
        runs = client.search_runs(
            [_experiment(client, store)], max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return [
            {
                "run": run.info.run_id,
                "job": run.data.tags.get("job"),
                "start": run.info.start_time / 1_000,
                "status": run.info.status,
                "verdict": run.data.tags.get("verdict"),
                "version": run.data.tags.get("version"),
                "mcc": run.data.metrics.get("mcc"),
            }
            for run in runs
        ]


@contextlib.contextmanager
def _client(store: Store) -> Iterator[mlflow.MlflowClient]:
    """Yield a client; a store that cannot be asked becomes one clear line.

    Raises:
        Unreachable: instead of MLflow's and SQLAlchemy's errors.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    _turn.acquire()
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        mlflow.set_tracking_uri(store["uri"])
        mlflow.set_registry_uri(store["uri"])
        yield mlflow.MlflowClient()
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise Unreachable(f"MLflow store {store['uri']} failed ({first[:200]}); check it: verdict doctor") from error
    finally:
        # MLflow also writes the address to the environment, where the next look would take it for the user's own.
        if configured is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = configured
        _turn.release()


def _experiment(client: mlflow.MlflowClient, store: Store) -> str:
    """Return the experiment's id; it is created on first use, in a local store with artifacts in the store's folder."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    local = store["uri"].startswith("sqlite:")
    return client.create_experiment(EXPERIMENT, Path(store["artifacts"]).as_uri() if local else None)


def _version_by_alias(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion | None:
    return _or_none(lambda: client.get_model_version_by_alias(name, alias))


def _version_by_number(client: mlflow.MlflowClient, name: str, number: str) -> ModelVersion | None:
    return _or_none(lambda: client.get_model_version(name, number))


def _or_none(ask: Callable[[], ModelVersion]) -> ModelVersion | None:
    """Turn MLflow's answer that something does not exist into None; every other error stays one."""
    try:
        return ask()
    except MlflowException as error:
        # A missing model or version answers with the first code, a missing alias of a model with the second.
        if error.error_code in {ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)}:
            return None
        raise


def _describe(version: ModelVersion, fetch: bool) -> Version:
    """Collect what the tags say; where asked, bring the bundle to local disk."""
    folder = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}") if fetch else None
    mcc = version.tags.get("mcc")
    return Version(
        version=str(version.version),
        digest=version.tags.get("bundle_digest", ""),
        mcc=float(mcc) if mcc else None,
        verdict=version.tags.get("verdict"),
        dataset=version.tags.get("dataset"),
        bundle=str(Path(folder) / "data" / "bundle") if folder else "",
    )


def _find_logged(client: mlflow.MlflowClient, experiment: str, digest: str) -> str | None:
    """Return a whole logged model of this bundle that no version took up; a half one is deleted."""
    for model in client.search_logged_models([experiment], f"tags.bundle_digest = '{digest}'"):
        if model.status == LoggedModelStatus.READY:
            return model.model_id
        client.delete_logged_model(model.model_id)
    return None


def _log_model(experiment: str, run_id: str, bundle: str, digest: str) -> str:
    """Store a bundle as an MLflow model that answers sentences, and as an ONNX model."""
    # Without an experiment set, MLflow puts models into its default one, with files under the working directory.
    mlflow.set_experiment(experiment_id=experiment)
    info = Model.log(
        artifact_path=None,
        name="model",
        flavor=sys.modules[__name__],  # MLflow calls its save_model
        run_id=run_id,
        tags={"bundle_digest": digest},
        bundle=bundle,
    )
    return info.model_id


def save_model(path: str, mlflow_model: Model, bundle: str) -> None:
    """Write an MLflow model with two flavours around one bundle; `Model.log` calls this.

    `mlflow.pyfunc.load_model` gives a model from sentences to labels, `mlflow.onnx.load_model` the graph.
    """
    with tempfile.TemporaryDirectory() as scratch:
        code, data = Path(scratch) / "tasks", Path(scratch) / "bundle"
        shutil.copytree(bundle, data)
        code.mkdir()
        for name in SERVING_MODULES:
            shutil.copy(Path(__file__).with_name(f"{name}.py"), code)
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=mlflow_model,
            loader_module="tasks.predict",
            data_path=str(data),
            code_paths=[str(code)],
            pip_requirements=_serving_requirements(),
            signature=ModelSignature(
                inputs=Schema([ColSpec("string")]),
                outputs=Schema([ColSpec("string", "label"), ColSpec("double", "probability")]),
            ),
            input_example=["The cat sat on the mat."],
        )
    mlflow_model.add_flavor(
        "onnx",
        onnx_version=importlib.metadata.version("onnx"),
        data=f"data/bundle/{MODEL}",
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        code="code",
    )
    mlflow_model.save(str(Path(path) / "MLmodel"))


def _serving_requirements() -> list[str]:
    """Pin what is installed here; one of the two ONNX Runtime packages is."""
    pins = []
    for package in SERVING_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            pins.append(f"{package}=={importlib.metadata.version(package)}")
    return pins
