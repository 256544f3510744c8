"""Measures `verdict score`'s work on generated files: sentences per second and peak memory of a process of its own.

    make bench BENCH=score                                      10^5 and 10^6 sentences tiny, 10^4 packaged encoder
    make bench BENCH=score ARGS="--rows 10000 --encoder tiny --out FILE"
    make bench BENCH=score ARGS="--bundle DIR --device cuda"    a bundle of your own; tells the variant that served

Encoders get a head with random weights, which costs what a trained one costs; their bundles hold the fp32 graph. Rows
are read, scored in parts and put together as for the command, without Prefect; one row in a thousand is damaged.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_ingestion import cpu_name, write_rows

from tasks.core.provenance import git_commit, library_versions

# Rows of each: the tiny encoder shows what everything around the model costs, the packaged one what the model costs.
SIZES = {"tiny": [100_000, 1_000_000], "packaged": [10_000]}

CHILD = """
import json, sys, time
from pathlib import Path
from tasks.inference.classifier import Classifier
from tasks.serving.batch_scoring import score_to_file
from tasks.serving.score_parts import Scorer
from tasks.data.sentences import open_source
path, out, bundle, device = sys.argv[1:]
started = time.perf_counter()
scorer = Scorer(Classifier.from_bundle(bundle, device), None)
loaded = time.perf_counter()
outcome = score_to_file(open_source(path), Path(out), scorer)
seconds = {"load": loaded - started, "score and write": time.perf_counter() - loaded}
# Not ru_maxrss: that starts at the memory of the process which started this one.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
kept = ("rows_in", "scored", "quarantined", "provider", "sentences_per_second")
print(json.dumps({**{key: outcome[key] for key in kept}, "variant": getattr(scorer.classifier, "variant", None),
                  "seconds": seconds, "peak_bytes": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--encoder", nargs="*", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--bundle", default="", help="measure this bundle instead")
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "cpu"])
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundles = (
            {Path(options.bundle).name: options.bundle}
            if options.bundle
            else {name: make_bundle(name, Path(scratch) / name) for name in options.encoder}
        )
        rows = [
            measure(name, bundle, count, options.device)
            for name, bundle in bundles.items()
            for count in options.rows or SIZES.get(name, SIZES["tiny"])
        ]
    result = {
        "benchmark": "score",
        "hardware": f"{cpu_name()}, {os.cpu_count()} CPU cores",
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "versions": library_versions(),
        "commit": git_commit(),
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def make_bundle(name: str, folder: Path) -> str:
    """Export an encoder with a new head; return the bundle's folder."""
    from tasks.export.bundle_export import export_bundle
    from tasks.training.pretrained import locate_encoder

    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from tiny import tiny_bert
    from toy import origin, write_tokenizer

    encoder = locate_encoder("packaged")["folder"] if name == "packaged" else str(folder / "encoder")
    if name == "tiny":
        write_tokenizer(folder / "encoder")
        tiny_bert().save_pretrained(encoder)
    return export_bundle(encoder, str(folder), origin(max_length=64, encoder=name))["bundle"]


def measure(name: str, bundle: str, count: int, device: str) -> dict[str, Any]:
    """Score one generated file in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path, out = Path(scratch) / "in.tsv", Path(scratch) / "out.parquet"
        write_rows(path, count, 1, damaged=True)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), str(out), bundle, device],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        row = json.loads(done.stdout)
        row["seconds"]["process, imports included"] = time.perf_counter() - started
        row["seconds"] = {what: round(seconds, 2) for what, seconds in row["seconds"].items()}
        row = {"encoder": name, "rows": count, **row, "in_bytes": path.stat().st_size, "out_bytes": out.stat().st_size}
    assert row["rows_in"] == row["scored"] + row["quarantined"] == count
    print(
        f"{name:<8} {count:>8} rows: {row['seconds']['score and write']:.1f} s, "
        f"{row['sentences_per_second']:,.0f} sentences/s on {row['provider']}, "
        f"peak {row['peak_bytes'] / 1e9:.2f} GB, {row['quarantined']} quarantined",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
