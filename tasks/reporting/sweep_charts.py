"""Pictures of a sweep, drawn by Optuna: the trials as parallel coordinates, and how much each setting matters."""

import warnings
from pathlib import Path

import matplotlib
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from tasks.training.trial_study import open_study

MIN_TRIALS = 2  # that Optuna needs to compare settings
SIZE = (9.0, 5.0)  # inches
FIGURE = "validation MCC"


def draw_sweep(sweep: str, folder: str) -> list[str]:
    """Draw the pictures of a sweep that can be drawn; return their paths.

    Args:
        sweep: folder of the sweep.
        folder: receives the files.
    """
    matplotlib.use("agg")
    from optuna.importance import get_param_importances
    from optuna.visualization.matplotlib import plot_parallel_coordinate, plot_param_importances

    study = open_study(sweep, seed=0)
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    differ = len({trial.value for trial in finished}) >= MIN_TRIALS
    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if finished:
            drawn.append(("trials", plot_parallel_coordinate(study, target_name=FIGURE)))
        if differ and len(get_param_importances(study)) > 1:
            drawn.append(("importances", plot_param_importances(study, target_name=FIGURE)))
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, axes in drawn:
        figure = axes.get_figure(root=True)
        assert figure
        figure.set_size_inches(*SIZE)
        paths.append(f"{folder}/{name}.png")
        figure.savefig(paths[-1], dpi=120, bbox_inches="tight", metadata={"Software": None})
    matplotlib.pyplot.close("all")
    return paths
