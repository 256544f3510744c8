"""System metrics of a run: CPU, memory, disk, network and GPUs, sampled by MLflow's own monitor."""

import contextlib
import logging
from collections.abc import Iterator

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tasks.core.errors import first_line
from tasks.core.hidden_addresses import reveal
from tasks.registry.store import MlflowStore

SAMPLE_INTERVAL_S = 1.0
SAMPLES_PER_POINT = 5  # averaged into one logged value

log = logging.getLogger(__name__)


@contextlib.contextmanager
def record_system_metrics(store: MlflowStore, run_id: str) -> Iterator[None]:
    """Log `system/...` metrics of a run during the block, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true.

    Best effort: what cannot be measured or logged is left out, and never fails the run.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it logs that it starts, and that there is no GPU
    monitor = None
    try:
        monitor = SystemMetricsMonitor(
            run_id, SAMPLE_INTERVAL_S, SAMPLES_PER_POINT, resume_logging=True, tracking_uri=reveal(store["uri"])
        )
        monitor.start()
    except Exception as error:  # of a driver or of psutil
        log.warning("system metrics are not recorded: %s", first_line(error))
    try:
        yield
    finally:
        if monitor:
            monitor.finish()
