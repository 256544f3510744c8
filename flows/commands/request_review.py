"""Reviews what was served: summarises a request log against the champion, and queues sentences for a person."""

import contextlib
import logging
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from flows.commands.check import champion_profile
from flows.commands.compare import read_evidence_of
from flows.services.server_watch import reach_store
from tasks.core.errors import VerdictError
from tasks.core.files import write_json
from tasks.core.settings import Settings
from tasks.evaluation.evidence import Evidence
from tasks.inference.bundle import CHAMPION
from tasks.inference.decision import DEFAULT_THRESHOLD, threshold_of
from tasks.registry import lookup
from tasks.registry.champion_profile import fetch_threshold
from tasks.registry.store import is_uninitialised
from tasks.serving.feedback import FEEDBACK_FILE, read_flags
from tasks.serving.logged_requests import read_requests
from tasks.serving.request_summary import ChampionReference, summarise_requests
from tasks.serving.review_queue import WrittenQueue, build_queue, write_queue
from tasks.serving.summary_file import REQUEST_LOG_FOLDER, SUMMARY_FILE, RequestSummary

log = logging.getLogger("tasks.requests")


class ReviewedRequests(NamedTuple):
    """The answers of a request log, the champion that they are compared with, and their summary."""

    table: pa.Table
    champion: ChampionReference | None
    summary: RequestSummary


def review_requests(settings: Settings, home: str) -> ReviewedRequests:
    """Summarise the last hours of a request log; write the summary beside it, where status and servers find it.

    Args:
        settings: watch.request_log (empty: the one in the stores' folder), watch.request_hours and limits of drift.
        home: folder of the stores.

    Raises:
        UsageError: if there is no such folder.
        UnreachableError: if the store does not answer.
        VerdictError: if a file of the log, or the champion's profile or manifest, is damaged.
    """
    folder = Path(settings.watch.request_log or Path(home) / REQUEST_LOG_FOLDER)
    table = read_requests(folder, time.time() - settings.watch.request_hours * 3_600)
    champion = find_reference(home)
    summary = summarise_requests(table, champion, settings.gate, settings.watch)
    with contextlib.suppress(OSError):  # whoever reads the log may not be allowed to write there
        write_json(folder / SUMMARY_FILE, summary)
    return ReviewedRequests(table, champion, summary)


def summarise_log(settings: Settings, home: str) -> RequestSummary:
    """Return the summary of `review_requests`."""
    return review_requests(settings, home).summary


def find_reference(home: str) -> ChampionReference | None:
    """Return what the champion's served sentences are compared with; None if there is no champion."""
    store = reach_store(home)
    champion = None if is_uninitialised(store) else lookup.find_alias(store, CHAMPION, fetch=False)
    if champion is None:
        return None
    evidence: Evidence | None = None
    try:
        evidence = read_evidence_of(store, champion["version"], lookup.read_tags(store, champion["version"]))
    except VerdictError as error:
        log.warning("the MCC is not estimated: %s", error)
    threshold = threshold_of(evidence["candidate"]) if evidence else fetch_threshold(store)
    return ChampionReference(champion["version"], threshold, champion_profile(home), evidence)


def queue_sentences(found: ReviewedRequests, path: str, limit: int, feedback: str, home: str) -> WrittenQueue:
    """Write the sentences that a person should label to a new file.

    Raises:
        UsageError: if the file exists, or its name is of another format.
        VerdictError: if the feedback file cannot be read, or the queue cannot be written.
    """
    flags = read_flags(feedback or f"{home}/{FEEDBACK_FILE}")
    threshold = found.champion.threshold if found.champion else DEFAULT_THRESHOLD
    return write_queue(build_queue(found.table, flags, threshold, limit), path)
