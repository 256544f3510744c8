"""Schedules that Prefect does not keep where clocks change are named."""

import datetime
import zoneinfo

import pytest
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from flows.services.clock_changes import describe_clock_changes, find_clock_changes

BERLIN, TOKYO = zoneinfo.ZoneInfo("Europe/Berlin"), zoneinfo.ZoneInfo("Asia/Tokyo")


def test_the_clock_changes_of_a_year_are_found() -> None:
    start = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
    found = [(f"{each.start} {each.end:%H:%M}", each.how) for each in find_clock_changes("Europe/Berlin", start)]
    assert found == [("2027-03-28 02:00:00 03:00", "skip"), ("2027-10-31 02:00:00 03:00", "repeat")]
    assert [each.how for each in find_clock_changes("America/New_York", start)] == ["skip", "repeat"]
    assert list(find_clock_changes("UTC", start)) == []


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 2 * * 0", "59 2 * * sun", "0 1,2 * * *"])
def test_a_cron_schedule_within_a_clock_change_is_named(cron: str) -> None:
    line = describe_clock_changes("retrain", CronSchedule(cron=cron, timezone="Europe/Berlin"))
    assert line is not None
    assert line.startswith("the schedule of retrain fires between 02:00 and 03:00, which clocks of Europe/Berlin ")
    assert line.endswith("choose another hour, or UTC")


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("0 3 * * 0", "Europe/Berlin"),
        ("59 1 * * *", "Europe/Berlin"),
        ("30 2 * * 3", "Europe/Berlin"),  # clocks change on Sundays
        ("17 * * * *", "Europe/Berlin"),
        ("*/5 * * * *", "Europe/Berlin"),
        ("30 2 * * *", "UTC"),
        ("30 2 * * *", None),
        ("@daily", "Europe/Berlin"),
        ("@hourly", "Europe/Berlin"),
        ("30 2 * * *", "Asia/Tokyo"),
    ],
)
def test_other_cron_schedules_are_not(cron: str, zone: str | None) -> None:
    assert describe_clock_changes("retrain", CronSchedule(cron=cron, timezone=zone)) is None


@pytest.mark.parametrize(
    ("hours", "zone", "named"),
    [
        (24, BERLIN, True),
        (2, BERLIN, True),
        (1, BERLIN, False),
        (24, zoneinfo.ZoneInfo("UTC"), False),
        (24, None, False),
    ],
)
def test_an_interval_of_hours_in_a_zone_whose_clocks_change_is_named(
    hours: int, zone: zoneinfo.ZoneInfo | None, named: bool
) -> None:
    anchor = datetime.datetime(2026, 1, 1, 12, tzinfo=zone or datetime.UTC)
    interval = datetime.timedelta(hours=hours)
    schedule = IntervalSchedule(interval=interval, anchor_date=anchor, timezone=zone.key if zone else None)
    line = describe_clock_changes("watch", schedule)
    assert (line is not None) == named
    assert line is None or line.startswith("the schedule of watch is an interval in Europe/Berlin, where clocks change")
