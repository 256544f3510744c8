"""Counts of a batch-scoring run: of one part, of a chunk, of all; and the result that the command prints."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from tasks.data.cola_format import Row
from tasks.data.record_readers import ParsedRow
from tasks.data.snapshots import MAX_EXAMPLES
from tasks.serving.score_parts import Stamp


class ScoreResult(TypedDict):
    """The result of scoring an input: rows_in = scored + quarantined, of which an earlier run scored `reused`.

    `truncated` counts the scored sentences that are longer than the model reads.
    `version` is None for a bundle that is not registered. The rate is that of the rows which this run scored, from
    reading to writing (on a cluster with the start of its workers, for standard output without reading); None where it
    scored nothing.
    """

    rows_in: int
    scored: int
    truncated: int
    quarantined: int
    reused: int
    reasons: dict[str, int]
    examples: list[str]
    quarantine: str | None
    out: str
    version: str | None
    digest: str
    provider: str
    sentences_per_second: float | None


@dataclass
class ScoreCounts:
    """Counts of the records so far."""

    name: str
    rows_in: int = 0
    scored: int = 0
    truncated: int = 0
    reused: int = 0
    fresh: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, part: pa.Table) -> None:
        """Count the rows of a part, with at least COUNTED_COLUMNS, of this run or an earlier one."""
        rejected = part.filter(pc.is_valid(part["kind"])).select(["line", "kind", "reason"])
        self.rows_in += part.num_rows
        self.scored += part.num_rows - rejected.num_rows
        self.truncated += pc.sum(part["truncated"]).as_py() or 0
        self.kinds.update(rejected["kind"].to_pylist())
        for row in rejected.slice(0, MAX_EXAMPLES - len(self.examples)).to_pylist():
            self.examples.append(f"{self.name} line {row['line']}: {row['reason']}")

    def add_scored(self, records: Sequence[ParsedRow], since: float) -> None:
        """Count the sentences among records that this run scored, and the time since `perf_counter()` was `since`."""
        self.seconds += time.perf_counter() - since
        self.fresh += sum(isinstance(record, Row) for record in records)

    def describe(self) -> str:
        """Return why rows were quarantined, with the first example."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{kinds}; {self.examples[0]}"

    def merge(self, later: "ScoreCounts") -> None:
        """Add the counts of the records that follow."""
        for name in ("rows_in", "scored", "truncated", "reused", "fresh", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.kinds.update(later.kinds)
        self.examples += later.examples[: MAX_EXAMPLES - len(self.examples)]

    def result(self, stamp: Stamp, provider: str, out: str, quarantine: str | None) -> ScoreResult:
        """Return the counts with model and output."""
        return ScoreResult(
            rows_in=self.rows_in,
            scored=self.scored,
            truncated=self.truncated,
            quarantined=self.rows_in - self.scored,
            reused=self.reused,
            reasons=dict(self.kinds.most_common()),
            examples=self.examples,
            quarantine=quarantine,
            out=out,
            version=stamp.version,
            digest=stamp.digest,
            provider=provider,
            sentences_per_second=round(self.fresh / self.seconds, 1) if self.fresh else None,
        )
