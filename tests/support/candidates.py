"""Evidence and report inputs without a model: probabilities are drawn, every figure follows as in a real run."""

from typing import Any

import numpy as np
import pandas as pd
from toy import SPLIT, circumstances, gate, policy

from tasks.core.settings_loader import SettingRow
from tasks.evaluation.evidence import EVIDENCE_SCHEMA
from tasks.evaluation.judge import judge, stamp
from tasks.evaluation.measurement import compare, evaluate, predict_labels, round_probabilities
from tasks.evaluation.minimal_pairs import summarise
from tasks.reporting.error_table import list_errors
from tasks.reporting.report import ReportInputs

HOSTILE = "He said \"<script>alert(1)</script>\" & 'left' | `x` {{ 7 * 7 }} {% raw %} _a_ **b** \u202e\x08."
SOURCES = ("swb04", "<b>x</b>|`y`", "")
VARIANTS = ("int8", "fp32", "fp16")
FACTS: Any = {
    "labels": ["unacceptable", "acceptable"],
    "max_length": 64,
    "encoder": "all-minilm-l6-v2",
    "dataset": "d" * 64,
    "git_commit": "c" * 40,
    "pad_id": 0,
}


def draw_answers(labels: Any, skill: float, seed: int) -> list[float | None]:
    """Return probabilities [N] of "acceptable"; the higher the skill, the more are correct."""
    noise = np.random.default_rng(seed).normal(size=len(labels))
    return round_probabilities(1 / (1 + np.exp(-(2 * np.array(labels) - 1) * skill - 2 * noise)))


def measured(rows: Any, given: list[float | None], variant: str) -> Any:
    found = evaluate(rows, given, "CPUExecutionProvider", variant, 200)
    found["worst"] = [{"line": 3, "source": SOURCES[1], "label": 0, "sentence": HOSTILE, "probability": 0.0123}]
    return found


def weigh(skill: float = 2.0, champion: float | None = None, rows: int = 300, **changes: Any) -> Any:
    """Return the evidence on a candidate and a champion (None: there is none) with these skills."""
    rng = np.random.default_rng(0)
    labels = [int(label) for label in rng.integers(0, 2, rows)]
    table: Any = {
        "label": labels,
        "source": [SOURCES[i % 3] for i in range(rows)],
        "words": [3 + i % 12 for i in labels],
    }
    ours = draw_answers(labels, skill, 1)
    variants = {name: measured(table, ours, name) for name in VARIANTS}
    answers: Any = table | {"variants": dict.fromkeys(VARIANTS, ours), "champion": None}
    values = circumstances(champion_state="none" if champion is None else "active") | {
        "digest": "b" * 64,
        "schema_version": EVIDENCE_SCHEMA,
        "holdout_digest": "h" * 64,
        "split": SPLIT,
        "leak": {"left": 1, "remaining": 0, "sentences": []},
        "candidate": variants["int8"],
        "variants": variants,
        "minimal_pairs": summarise({"word order": "1101", "islands": "0110"}),
        "secondary": None,
        "champion": None,
        "comparison": None,
        "answers": answers,
        "resamples": 200,
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1"},
        "git_commit": "c" * 40,
    }
    if champion is not None:
        theirs = answers["champion"] = draw_answers(labels, champion, 2)
        values["champion"] = {
            "version": "7",
            "digest": "a" * 64,
            "training_digest": "t" * 64,
            "measurement": measured(table, theirs, "int8"),
            "minimal_pairs": summarise({"word order": "1111", "islands": "0110"}),
            "fault": None,
        }
        values["comparison"] = compare(table, ours, theirs, 200)
        values["comparison"]["sentences"] = list_differing(labels, ours, theirs)
    return values | changes


def holdout(evidence: Any) -> pd.DataFrame:
    """Return the rows of the holdout, every third sentence hostile."""
    answers = evidence["answers"]
    sentences = [HOSTILE if i % 3 == 0 else f"Sentence {i} é." for i in range(len(answers["label"]))]
    lines = range(1, len(sentences) + 1)
    return pd.DataFrame(
        {
            "file": "dev.tsv",
            "line": lines,
            "source": answers["source"],
            "label": answers["label"],
            "sentence": sentences,
        }
    )


def list_differing(labels: list[int], ours: list[float | None], theirs: list[float | None]) -> list[dict[str, Any]]:
    differing = np.flatnonzero(predict_labels(ours, 0.5) != predict_labels(theirs, 0.5))[:50]
    return [
        {"line": int(row), "source": SOURCES[1], "label": labels[row], "sentence": HOSTILE}
        | {"candidate": ours[row], "champion": theirs[row]}
        for row in differing
    ]


EPOCHS = [
    {
        "seed": 7,
        "epoch": number,
        "train_loss": 0.6 / number,
        "train_accuracy": 0.6 + 0.1 * number,
        "validation_loss": 0.5 / number,
        "validation_accuracy": 0.7,
        "validation_mcc": 0.2 + 0.1 * number,
        "seconds": 1.5,
    }
    for number in (1, 2, 3)
]


def training(**changes: Any) -> Any:
    """Return the record of a training run, changed by name."""
    values = {
        "schema_version": 1,
        "device": "cpu",
        "precision": "fp32",
        "averaged": False,
        "soup_mcc": None,
        "seeds": [{"seed": 7, "best_epoch": 3, "validation_mcc": 0.5, "curve": [0.3, 0.4, 0.5]}],
        "seed": 7,
        "best_epoch": 3,
        "epochs": EPOCHS,
        "step_losses": [1 / step for step in range(1, 61)],
        "seconds": 4.5,
    }
    return values | changes


def export(bundle: str, **changes: Any) -> Any:
    """Return the record of an export, changed by name."""
    parity = {
        "provider": "CPUExecutionProvider",
        "difference": {"1x1": 1e-7, "sentences": 2e-3},
        "not_finite": [],
        "sentences": 80,
        "changed": 1,
        "mcc": 0.61,
        "torch_mcc": 0.6134,
        "mcc_loss_low": 0.0,
        "half": {"precision": "fp16", "device": "cuda", "sentences": 80, "difference": 1.5e-3},
    }
    values = {
        "schema_version": 4,
        "bundle": bundle,
        "digest": "b" * 64,
        "parity": parity["difference"],
        "variants": dict.fromkeys(VARIANTS, parity),
        "left_out": {},
        "attempts": {name: [{"maker": f"make_{name}", "parity": parity, "fault": None}] for name in VARIANTS},
        "exporter": "tracing",
        "fused": {"Attention": 2},
        "threshold": None,
        "costs": None,
        "seconds": {"torch": 1.5, "total": 4.0},
    }
    return values | changes


SETTINGS: list[SettingRow] = [
    SettingRow("data.path", "<script>alert(1)</script>", "flag"),
    SettingRow("finetune.encoder", "packaged", "default"),
    SettingRow("finetune.epochs", 3, "profile sample"),
]
FINDING = {
    "table": "whole data",
    "description": "share of quarantined rows",
    "setting": "data.max_quarantined",
    "expectation": "expect_x",
    "column": None,
    "observed": 0.01234567,
    "allowed": {"max_value": 0.05},
    "passed": True,
    "severity": "critical",
    "unexpected": 0,
    "lines": [],
    "in_quarantine": False,
}


def tell(evidence: Any, bundle: str = "bundle", threshold: float = 0.3, **changes: Any) -> ReportInputs:
    """Return a candidate's report inputs, changed by name."""
    rules = {key: value for key, value in changes.items() if key in type(policy()).model_fields}
    values: dict[str, Any] = {
        "training": training(),
        "evidence": evidence,
        "verdict": stamp(
            judge(evidence, policy(threshold=threshold, **rules)), "2026-01-02T03:04:05+00:00", "ann@host"
        ),
        "gate": gate(results=[FINDING], quarantined=1, reasons={"label": 1}, examples=["<b>.tsv line 3: label"]),
        "export": export(bundle),
        "settings": SETTINGS,
        "errors": list_errors(evidence, FACTS["labels"], holdout(evidence)),
    }
    return ReportInputs(**values | {key: value for key, value in changes.items() if key not in rules})
