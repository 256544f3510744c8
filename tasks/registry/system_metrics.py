"""What the machine does while a run runs: CPU, memory, disk, network and GPUs, sampled by MLflow's own monitor."""

import contextlib
import logging
from collections.abc import Iterator

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tasks.registry.mlflow_client import MlflowStore

SAMPLE_INTERVAL_S = 1.0  # seconds between two samples
SAMPLES_PER_POINT = 5  # that make one point of a curve

log = logging.getLogger(__name__)


@contextlib.contextmanager
def record_system_metrics(store: MlflowStore, run_id: str) -> Iterator[None]:
    """Log a run's `system/...` metrics over the block, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true.

    They show the work and are none: where machine or store cannot be asked, nothing is logged and nothing fails.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it would say that it starts, and that there is no GPU
    monitor = None
    try:
        monitor = SystemMetricsMonitor(
            run_id, SAMPLE_INTERVAL_S, SAMPLES_PER_POINT, resume_logging=True, tracking_uri=store["uri"]
        )
        monitor.start()
    except Exception as error:  # a driver or a library that is not as expected
        log.warning("what the machine does is not recorded: %s", error)
    try:
        yield
    finally:
        if monitor:
            monitor.finish()
