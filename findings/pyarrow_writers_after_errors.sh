#!/usr/bin/env bash
# pyarrow 25.0.1, s3fs 2026.9.0, smart-open 9.0.2, with the S3 server of moto 5.2.5. Python 3.11 or later.
#
# Behaviour: a `with` block around a writer of pyarrow that is left by an exception ends the file as if everything had been
# written: a Parquet, Arrow or ORC file with the rows so far, complete, valid, and read without an error. On S3 the same
# holds for the bytes: pyarrow's output stream and s3fs end the upload, and publish an object that was not there before;
# smart_open abandons it.
#
# Seen, where the third of five batches of 10 rows, or of five lines, is an error:
#   ParquetWriter: 20 rows
#   ipc.new_file: 20 rows
#   ORCWriter: 20 rows
#   ParquetWriter on S3: 20 rows
#   S3FileSystem.open_output_stream: an object of 2 lines
#   s3fs open: an object of 2 lines
#   smart_open: no object
set -euo pipefail
script=$(realpath "$0") && dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env || exit 2
env/bin/pip install --quiet --disable-pip-version-check pyarrow==25.0.1 s3fs==2026.9.0 smart-open==9.0.2 boto3==1.43.117 \
  "moto[server]==5.2.5" || exit 2
cat > show.py <<'PY'
import contextlib
import logging

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import smart_open
from moto.server import ThreadedMotoServer
from pyarrow import fs, ipc, orc

logging.disable(logging.CRITICAL)
SCHEMA = pa.schema([("number", pa.int64())])


def batches():
    for first in range(0, 50, 10):
        if first == 20:
            raise OSError("the source failed")
        yield pa.record_batch({"number": range(first, first + 10)})


def write(opener, method, make=lambda batch: batch):
    with contextlib.suppress(OSError), opener() as writer:
        for batch in batches():
            getattr(writer, method)(make(batch))


def show_rows(title, read):
    print(f"{title}: {read().num_rows} rows")


def show_object(title, key, opener):
    write(opener, "write", lambda _: b"a line\n")
    found = [each for each in client.list_objects_v2(Bucket="bucket")["Contents"] if each["Key"] == key]
    print(f"{title}:", f"an object of {found[0]['Size'] // 7} lines" if found else "no object")


server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
address = "http://{}:{}".format(*server.get_host_and_port())
client = boto3.client("s3", endpoint_url=address)
client.create_bucket(Bucket="bucket")
store = fs.S3FileSystem(endpoint_override=address)
other = s3fs.S3FileSystem(endpoint_url=address)

write(lambda: pq.ParquetWriter("a.parquet", SCHEMA), "write_batch")
show_rows("ParquetWriter", lambda: pq.read_table("a.parquet"))
write(lambda: ipc.new_file("a.arrow", SCHEMA), "write_batch")
show_rows("ipc.new_file", lambda: ipc.open_file("a.arrow").read_all())
write(lambda: orc.ORCWriter("a.orc"), "write", lambda batch: pa.Table.from_batches([batch]))
show_rows("ORCWriter", lambda: orc.read_table("a.orc"))
write(lambda: pq.ParquetWriter("bucket/a.parquet", SCHEMA, filesystem=store), "write_batch")
show_rows("ParquetWriter on S3", lambda: pq.read_table("bucket/a.parquet", filesystem=store))
show_object("S3FileSystem.open_output_stream", "pyarrow", lambda: store.open_output_stream("bucket/pyarrow"))
show_object("s3fs open", "s3fs", lambda: other.open("bucket/s3fs", "wb"))
show_object("smart_open", "smart", lambda: smart_open.open("s3://bucket/smart", "wb", transport_params={"client": client}))
server.stop()
PY
export AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b AWS_DEFAULT_REGION=us-east-1
unset AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 AWS_PROFILE || true
env/bin/python show.py | tee seen
diff seen <(sed -n '/^# Seen, /,/^set/s/^#   //p' "$script")
