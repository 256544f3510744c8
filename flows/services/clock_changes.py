"""Finds schedules that Prefect does not keep where clocks change: cron within a skipped hour, and intervals.

A cron schedule within a skipped hour fires before its time. An interval with a zone counts hours from its anchor or
keeps the time of day, depending on when Prefect plans it, so its times move by an hour and may come twice.
"""

import datetime
import zoneinfo
from collections.abc import Iterator
from typing import Any, NamedTuple

from cronsim import CronSim

# Names that Prefect takes for a schedule, and CronSim does not know.
ALIASES = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
HOUR, YEAR = datetime.timedelta(hours=1), datetime.timedelta(days=366)


class ClockChange(NamedTuple):
    """Local times, without a zone, that a day has never or twice: from start to before end."""

    start: datetime.datetime
    end: datetime.datetime
    how: str
    """skip or repeat"""


def describe_clock_changes(name: str, schedule: Any) -> str | None:
    """Return a line if a schedule is not kept at a clock change of the coming year; None where it is.

    Schedules that fire each hour or more often are not meant.

    Args:
        name: of the deployment.
        schedule: Prefect's, of cron or of intervals.
    """
    zone = getattr(schedule, "timezone", None) or "UTC"
    changes = list(find_clock_changes(zone, datetime.datetime.now(datetime.UTC)))
    if changes and getattr(schedule, "interval", HOUR) > HOUR:
        when = f"{changes[0].start:%Y-%m-%d}"
        return (
            f"the schedule of {name} is an interval in {zone}, where clocks change on {when}: "
            "it may move by an hour or fire twice; choose cron, or UTC"
        )
    for change in changes if getattr(schedule, "cron", "") else ():
        if _fires_within(schedule.cron, change) and not _fires_hourly(schedule.cron, change):
            hour = f"between {change.start:%H:%M} and {change.end:%H:%M}"
            return (
                f"the schedule of {name} fires {hour}, which clocks of {zone} {change.how} on {change.start:%Y-%m-%d}: "
                "it may fire early or twice; choose another hour, or UTC"
            )
    return None


def find_clock_changes(zone: str, start: datetime.datetime) -> Iterator[ClockChange]:
    """Yield the clock changes of a zone within a year, by steps of an hour."""
    local = zoneinfo.ZoneInfo(zone)
    moment = start.replace(minute=0, second=0, microsecond=0)
    while moment < start + YEAR:
        before, after = (each.astimezone(local).replace(tzinfo=None) for each in (moment, moment + HOUR))
        moment += HOUR
        if after - before > HOUR:
            yield ClockChange(before + HOUR, after, "skip")
        elif after - before < HOUR:
            yield ClockChange(after, before + HOUR, "repeat")


def _fires_within(cron: str, change: ClockChange) -> bool:
    """Return whether a schedule fires at a local time from the start to before the end of a change."""
    cron = ALIASES.get(cron.strip().lower(), cron)
    return bool(next(CronSim(cron, change.start - datetime.timedelta(microseconds=1))) < change.end)


def _fires_hourly(cron: str, change: ClockChange) -> bool:
    """Return whether a schedule fires in each of the two hours before a change."""
    hours = (ClockChange(change.start - n * HOUR, change.start - (n - 1) * HOUR, "") for n in (1, 2))
    return all(_fires_within(cron, hour) for hour in hours)
