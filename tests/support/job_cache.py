"""What flows made once and later flows of a session start from: a home, models, exports and pictures."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from registry_store import restore

from tasks.core.errors import VerdictError
from tasks.core.files import read_json, write_json
from tasks.core.settings_loader import ResolvedSettings

# What a job records after its export; a resumed job writes it anew.
LATER_RECORDS = ("lock", "result.json", "evidence.json", "verdict.json", "gate.*", "quarantine.parquet", "pictures")

Choose = Callable[..., ResolvedSettings]  # resolves settings, with changes


class FirstRun(NamedTuple):
    """A first run's outcome, as --json prints it, and a copy of the home that it left."""

    outcome: dict[str, Any]
    kept: Path


class FlowHome:
    """One folder of stores for many tests, put back before each: MLflow keeps its connections to the database."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.folder = folder
        self._empty_store = empty_store

    def clear(self) -> None:
        """Leave nothing but an empty store."""
        self._put_back(self._empty_store)

    def keep(self, target: Path) -> None:
        """Copy everything to a new folder."""
        shutil.copytree(self.folder, target, ignore=shutil.ignore_patterns("mlflow.db*"))
        restore(self.folder / "mlflow.db", target)

    def put_back(self, kept: Path) -> None:
        """Make the home as it was when it was kept."""
        self._put_back(kept / "mlflow.db")
        shutil.copytree(kept, self.folder, ignore=shutil.ignore_patterns("mlflow.db"), dirs_exist_ok=True)

    def _put_back(self, database: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("mlflow.db"):
                path.unlink()
        restore(database, self.folder)


def find_job(home: Path, resolved: ResolvedSettings) -> tuple[Path, str]:
    """Return the folder of the job with these settings, and the name of what it trains and exports.

    Raises:
        VerdictError: if data, encoder or device are not there.
    """
    from flows.commands.check import read_data
    from flows.jobs.job import JobInputs, name_job
    from flows.jobs.teacher import locate_teacher
    from tasks.core.settings import GateSettings, JudgeSettings
    from tasks.training.device import resolve_device
    from tasks.training.pretrained import locate_encoder

    settings = resolved.settings
    data = read_data(settings.data, str(home))
    encoder = locate_encoder(settings.finetune.encoder, offline=settings.data.offline)
    teacher = locate_teacher(settings, data, str(home)) if settings.finetune.teacher else None
    inputs = JobInputs(data, encoder, teacher, resolve_device(settings.finetune.device))
    # Gate and policy are part of a job's name, but decide nothing that it trains or exports.
    plain = settings.model_copy(update={"gate": GateSettings(), "judge": JudgeSettings.model_validate({})})
    return home / "runs" / name_job(settings, inputs), name_job(plain, inputs)


class JobCache:
    """Keeps what jobs trained and exported, by the settings and data that decide it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def resumed(self, home: Path, resolved: ResolvedSettings) -> Iterator[None]:
        """Let the flow of the block resume from what an equal job finished, as after a kill; keep what it finishes."""
        try:
            job, name = find_job(home, resolved)
        except VerdictError:
            yield  # the flow fails in the same way, which is what its test is about
            return
        if (self._folder / name).is_dir() and not job.exists():
            shutil.copytree(self._folder / name, job)
        yield
        self.keep(job, name)

    def keep(self, job: Path, name: str) -> None:
        """Keep what a finished job trained and exported."""
        if (job / "result.json").is_file() and not (self._folder / name).exists():
            shutil.copytree(job, self._folder / name, ignore=shutil.ignore_patterns(*LATER_RECORDS))


class PictureCache:
    """Draws pictures once without and once with a champion; every other call, of any process, gets copies of those."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copying(self, draw: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
        """Return the step that draws pictures, with this cache in front."""

        def copy(
            timer: Any, training: Any, evidence: Any, threshold: float, folder: str, champions: Any
        ) -> dict[str, str]:
            kept = self.folder / ("alone" if evidence["comparison"] is None else "compared")
            names = kept / "names.json"
            if not names.is_file():
                drawn = draw(timer, training, evidence, threshold, str(kept), champions)
                write_json(names, {name: Path(path).name for name, path in drawn.items()})
            shutil.copytree(kept, folder, ignore=shutil.ignore_patterns(names.name), dirs_exist_ok=True)
            return {name: str(Path(folder, file)) for name, file in read_json(names).items()}

        return copy


def copy_pictures(folder: str) -> None:
    """Let the flows of this process and its children copy pictures instead of drawing them."""
    from flows.jobs import publish

    publish.draw = PictureCache(Path(folder)).copying(publish.draw)
