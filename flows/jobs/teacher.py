"""The teacher of a training: the model whose answers it learns, found and checked before the job is named."""

import logging

from flows.commands.predict import FoundModel, find_model
from tasks.training.teacher import read_teacher

log = logging.getLogger("tasks.retrain")


def locate_teacher(address: str, dataset: str, home: str) -> FoundModel:
    """Return the model that `finetune.teacher` names.

    A teacher that learned other data may have read sentences of this holdout: that is logged.

    Args:
        address: bundle's folder, registry address, version number or hf:ORG/NAME.
        dataset: digest of the data that the job trains on.
        home: folder of the stores.

    Raises:
        UsageError: if it is no model, or one with other labels.
        VerdictError: if there is no such version, or its files are not those registered.
    """
    found = find_model(address, home)
    learned = read_teacher(found.bundle)["dataset"]
    if learned != dataset:
        log.warning(
            "finetune.teacher %s learned other data (%.8s, not %.8s); if it read sentences of this holdout, the MCC "
            "will be too high",
            address, learned, dataset,
        )  # fmt: skip
    return found
