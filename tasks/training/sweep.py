"""A sweep: trainings with different settings, compared by their validation MCC; no trial sees a holdout.

Below the sweep's folder:

trials.log              Optuna's journal: what every trial tried and reached
trials/DIGEST/FOLD      checkpoints of a trial, named by its settings; deleted when it ends

A sweep that was killed is continued by the same command: what was running is resumed first, from its checkpoint.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from tasks.cluster.calls import CallCluster, run_calls
from tasks.core.errors import VerdictError
from tasks.core.printable import counted
from tasks.training.launcher import launch
from tasks.training.process_group import ProcessGroup
from tasks.training.trial_study import TrialStudy
from tasks.training.trials import SweepPlan, TrialEpoch, TrialRecord, delete_all_files, run_trial

NEXT_TRIAL = None  # what a process sends to get one

OnRecord = Callable[[TrialRecord | TrialEpoch], None]


def run_sweep(
    plan: SweepPlan, workers: int, on_record: OnRecord, cluster: CallCluster | None = None
) -> list[TrialRecord]:
    """Run trials until there are as many as planned, or the time is over; return all of them, also earlier ones.

    Args:
        plan: what to try.
        workers: trials side by side; in processes of this host each uses a GPU of its own, with cuda. 0 for one on each
            GPU, one on a CPU, or as many as a cluster has room for.
        on_record: called with the epochs and ends of trials.
        cluster: a Ray cluster whose tasks the trials are; all its machines see the folder of the sweep.

    Raises:
        UsageError: if there are fewer GPUs than workers.
        VerdictError: if all trials failed, or a process died.
    """
    study = TrialStudy(plan)
    if study.is_open:
        answer = functools.partial(_answer, study, on_record)
        if cluster is None:
            processes = workers or (torch.cuda.device_count() if plan.device == "cuda" else 1)
            launch(run_trials, processes, plan, device=plan.device, on_message=answer, synchronised=False)
        else:
            _run_on_ray(study, plan, cluster, workers, answer)
    if not study.has_interrupted:
        delete_all_files(plan)
    records = study.records
    if not any(record.state == "finished" for record in records):
        raise _none_finished(plan, records)
    return records


def ended_trials(plan: SweepPlan) -> list[TrialRecord]:
    """Return the trials that earlier commands of a sweep ended; what they left running is queued again."""
    return TrialStudy(plan).records


def _none_finished(plan: SweepPlan, records: list[TrialRecord]) -> VerdictError:
    """Return the error for a sweep without a winner; what failed counts as tried, and is not tried again."""
    failed = next((record for record in records if record.error), None)
    advice = f"try other values, or the same ones after: rm -r {plan.folder}"
    if failed:
        reason = f"trial {failed.number}: {failed.error}"
    elif records:
        reason = f"{counted(len(records), 'trial')} ended early, as worse than others that then failed"
    else:
        reason, advice = "the time was over before one ended", "give it more --budget"
    return VerdictError(f"no trial of the sweep ended well ({reason}); expected one: {advice}")


def best_trial(records: list[TrialRecord]) -> TrialRecord:
    """Return the finished trial with the highest validation MCC; of equal ones the first."""
    finished = [record for record in records if record.state == "finished"]
    return max(finished, key=lambda record: (record.mcc or 0.0, -record.number))


def run_trials(group: ProcessGroup, plan: SweepPlan) -> None:
    """Run trials as long as there are more: what each process of a sweep does; called by `launch`."""
    while start := group.notify_parent(NEXT_TRIAL):
        group.notify_parent(run_trial(plan, start, group.notify_parent))


def _answer(study: TrialStudy, on_record: OnRecord, message: TrialEpoch | TrialRecord | None) -> Any:
    """Answer a process of the sweep: with the next trial, whether its trial ends early, or nothing at its end."""
    if isinstance(message, TrialEpoch):
        on_record(message)
        return study.report(message)
    if isinstance(message, TrialRecord):
        return on_record(study.end(message))
    return study.start()


def _run_on_ray(
    study: TrialStudy, plan: SweepPlan, cluster: CallCluster, workers: int, answer: Callable[[Any], Any]
) -> None:
    """Run each trial as a task of a Ray cluster; one whose worker is lost again and again has failed."""
    starts = ((plan, start) for start in iter(study.start, None))
    for (_, start), result in run_calls(run_trial, starts, cluster, answer, workers):
        if isinstance(result, VerdictError):
            answer(TrialRecord(start.number, "failed", start.settings, None, [], 0.0, str(result)))
        else:
            answer(result)
