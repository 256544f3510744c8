#!/usr/bin/env bash
# prefect 3.8.8
#
# Behaviour: in a zone whose clocks skip the hour from 02:00 to 03:00, a cron schedule for 02:30 fires that day at 01:30,
# before its time and at a time that it does not name. A schedule of an interval of 24 hours with that zone keeps the time
# of day where its dates are computed across the change, and is an hour late where they are computed from a start after
# it. A scheduler plans ahead and again, so both kinds of dates are planned: each day at 12:00, and at 13:00.
#
# Seen (Europe/Berlin, where clocks change on 2027-03-28):
#   cron 30 2 * * *: 03-27 02:30+0100 03-28 01:30+0100 03-29 02:30+0200
#   every 24 hours from 12:00 in January, computed from 03-27: 03-27 12:00+0100 03-28 12:00+0200 03-29 12:00+0200
#   every 24 hours from 12:00 in January, computed from 03-29: 03-29 13:00+0200 03-30 13:00+0200 03-31 13:00+0200
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
cat > check.py <<'PY'
import asyncio, datetime
from zoneinfo import ZoneInfo
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

name, day = "Europe/Berlin", datetime.timedelta(days=1)
zone = ZoneInfo(name)
anchor = datetime.datetime(2027, 1, 1, 12, tzinfo=zone)
cron = CronSchedule(cron="30 2 * * *", timezone=name)
interval = IntervalSchedule(interval=day, anchor_date=anchor, timezone=name)
every = "every 24 hours from 12:00 in January, computed from"
for kind, schedule, first in (
    ("cron 30 2 * * *", cron, 27), (f"{every} 03-27", interval, 27), (f"{every} 03-29", interval, 29)
):
    dates = asyncio.run(schedule.get_dates(3, start=datetime.datetime(2027, 3, first, tzinfo=zone)))
    print(f"{kind}:", *(f"{date.astimezone(zone):%m-%d %H:%M%z}" for date in dates))
PY
env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.150.0 \
  > pip.log 2>&1 || { cat pip.log; exit 2; }
PREFECT_HOME=$dir DO_NOT_TRACK=1 env/bin/python -W ignore check.py | tee seen
diff seen <(sed -n -E 's/^#   ((cron|every) )/\1/p' "$script")
