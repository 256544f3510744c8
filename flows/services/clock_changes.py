"""Finds schedules that fall into an hour that clocks skip or repeat, where Prefect fires early, late or twice."""

import datetime
import zoneinfo
from collections.abc import Iterator
from typing import Any, NamedTuple

from cronsim import CronSim

HOUR, YEAR = datetime.timedelta(hours=1), datetime.timedelta(days=366)


class ClockChange(NamedTuple):
    """Local times, without a zone, that a day has never or twice: from start to before end."""

    start: datetime.datetime
    end: datetime.datetime
    how: str
    """skip or repeat"""


def warn_of_clock_changes(name: str, schedule: Any) -> str | None:
    """Return a line if a schedule fires within a clock change of the coming year; None where it does not.

    Schedules that fire each hour or more often are not meant.

    Args:
        name: of the deployment.
        schedule: Prefect's, of cron or of intervals.
    """
    zone = schedule.timezone if getattr(schedule, "timezone", None) else "UTC"
    for change in find_clock_changes(zone, datetime.datetime.now(datetime.UTC)):
        if _fires_within(schedule, zone, change) and not _fires_hourly(schedule, zone, change):
            hour = f"between {change.start:%H:%M} and {change.end:%H:%M}"
            return (
                f"the schedule of {name} fires {hour}, which clocks of {zone} {change.how} on {change.start:%Y-%m-%d}: "
                "it may fire early, late or twice; choose another hour, or UTC"
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


def _fires_within(schedule: Any, zone: str, change: ClockChange) -> bool:
    """Return whether a schedule fires at a local time from the start to before the end of a change."""
    just_before = change.start - datetime.timedelta(microseconds=1)
    if cron := getattr(schedule, "cron", ""):
        return bool(next(CronSim(cron, just_before)) < change.end)
    interval = getattr(schedule, "interval", None)
    if interval is None or zone == "UTC":
        return False
    moment = schedule.anchor_date.timestamp()  # of pendulum, whose differences have no remainder by a timedelta
    anchor = datetime.datetime.fromtimestamp(moment, zoneinfo.ZoneInfo(zone)).replace(tzinfo=None)
    return bool(change.start + (anchor - change.start) % interval < change.end)


def _fires_hourly(schedule: Any, zone: str, change: ClockChange) -> bool:
    hours = (ClockChange(change.start - n * HOUR, change.start - (n - 1) * HOUR, "") for n in (1, 2))
    return all(_fires_within(schedule, zone, hour) for hour in hours)
