"""Finished splits, models, exports and pictures of flows, made once a session and copied for later flows."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.core.errors import VerdictError
from tasks.core.settings_loader import ResolvedSettings

# What a job records after its export; a resumed job writes it anew.
LATER_RECORDS = ("lock", "result.json", "evidence.json", "verdict.json", "gate.*", "quarantine.parquet", "pictures")


class JobCache:
    """Keeps what jobs trained and exported, by the settings and data that decide it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def resumed(self, home: Path, resolved: ResolvedSettings) -> Iterator[None]:
        """Let the flow of the block resume from what an equal job finished, as after a kill; keep what it finishes."""
        from flows.commands.check import read_data
        from flows.jobs.job import name_job
        from tasks.core.settings import GateSettings, JudgeSettings
        from tasks.training.device import resolve_device
        from tasks.training.pretrained import locate_encoder

        settings = resolved.settings
        try:
            data = read_data(settings.data, str(home))
            encoder = locate_encoder(settings.finetune.encoder, offline=settings.data.offline)
            device = resolve_device(settings.finetune.device)
        except VerdictError:
            yield  # the flow fails in the same way, which is what its test is about
            return
        # Gate and policy are part of a job's name, but decide nothing that it trains or exports.
        plain = settings.model_copy(update={"gate": GateSettings(), "judge": JudgeSettings.model_validate({})})
        job = home / "runs" / name_job(settings, data, encoder, device)
        kept = self._folder / name_job(plain, data, encoder, device)
        if kept.is_dir() and not job.exists():
            shutil.copytree(kept, job)
        yield
        if (job / "result.json").is_file() and not kept.exists():
            shutil.copytree(job, kept, ignore=shutil.ignore_patterns(*LATER_RECORDS))


class PictureCache:
    """Draws pictures once without and once with a champion; every other call gets copies of those."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn: dict[bool, dict[str, str]] = {}

    def copying(self, draw: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
        """Return the step that draws pictures, with this cache in front."""

        def copy(timer: Any, training: Any, evidence: Any, threshold: float, folder: str) -> dict[str, str]:
            compared = evidence["comparison"] is not None
            if compared not in self._drawn:
                self._drawn[compared] = draw(timer, training, evidence, threshold, str(self._folder / str(compared)))
            shutil.copytree(self._folder / str(compared), folder, dirs_exist_ok=True)
            return {name: str(Path(folder, Path(path).name)) for name, path in self._drawn[compared].items()}

        return copy
