"""The outcome of a retraining run as a JSON document."""

import json

from outcomes import make_outcome

from flows.outcome import RetrainOutcome

CONTRACT = {"decision", "reasons", "version", "mcc", "mcc_low", "mcc_high", "provider", "holdout_rows", "dataset"}


def test_an_outcome_is_read_back_from_its_document() -> None:
    outcome = make_outcome(decided={"kind": "approve", "actor": "ada"})
    document = json.loads(json.dumps(outcome.to_json()))
    assert RetrainOutcome.from_json(document) == outcome
    assert document.keys() >= CONTRACT | {"seconds", "unchanged", "schema_version"}


def test_a_document_of_another_schema_is_no_outcome() -> None:
    document = make_outcome().to_json()
    assert RetrainOutcome.from_json(document | {"schema_version": 0}) is None
    assert RetrainOutcome.from_json({key: value for key, value in document.items() if key != "threshold"}) is None
    assert [RetrainOutcome.from_json(value) for value in ({}, [], None, "x")] == [None] * 4
