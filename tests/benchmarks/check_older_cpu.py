"""Compares a bundle's int8 answers on this CPU with those on an older one, which QEMU emulates.

    python tests/benchmarks/check_older_cpu.py --export DIR --sentences FILE --cpu Haswell Nehalem --out FILE2

DIR is a job's folder with export.json and bundle/, FILE has a sentence in each line. QEMU's user mode is Debian's
package `qemu-user` (from 7.2 on it has AVX2; `--qemu` names the program). Haswell has AVX2 but no VNNI, Nehalem has
neither. An emulated process takes seconds for a sentence.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", required=True)
    parser.add_argument("--sentences", required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--cpu", nargs="+", default=["Haswell"])
    parser.add_argument("--qemu", default="qemu-x86_64")
    parser.add_argument("--out", default="")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options)
        return
    result = compare(options)
    print(json.dumps(result, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def answer(options: argparse.Namespace) -> None:
    """Write the logits of a variant, in a process that may be emulated."""
    from tasks.inference.classifier import Classifier

    variant, path = options.answer.split(":", 1)
    sentences = Path(options.sentences).read_text().splitlines()[: options.count]
    np.save(path, Classifier.from_bundle(Path(options.export) / "bundle", "cpu", variant).logits(sentences))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Answer natively in fp32 and int8, and emulated in int8."""
    from bench_ingestion import cpu_name

    from tasks.core.provenance import git_commit, library_versions

    exported = json.loads((Path(options.export) / "export.json").read_text())
    version = subprocess.run([options.qemu, "--version"], capture_output=True, text=True, check=True).stdout
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    with tempfile.TemporaryDirectory() as scratch:
        fp32 = run(options, [], "fp32", scratch)
        native = run(options, [], "int8", scratch)
        rows = [describe("this one", native, native, fp32)]
        for cpu in options.cpu:
            emulated = run(options, [options.qemu, "-cpu", cpu], "int8", scratch)
            rows.append(describe(cpu, emulated, native, fp32))
    return {
        "benchmark": "int8 on older CPUs",
        "cpu": cpu_name(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "emulator": version.splitlines()[0],
        "versions": library_versions(),
        "commit": git_commit(),
        "maker": exported["attempts"]["int8"][-1]["maker"],
        "parity": exported["variants"]["int8"],
        "rows": rows,
    }


def run(options: argparse.Namespace, prefix: list[str], variant: str, scratch: str) -> np.ndarray:
    """Return the logits of a variant, computed in a process of its own."""
    path = f"{scratch}/answers.npy"
    command = [*prefix, sys.executable, __file__, "--export", options.export, "--sentences", options.sentences]
    command += ["--count", str(options.count), "--answer", f"{variant}:{path}"]
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path[1:])])
    subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=True, stderr=subprocess.DEVNULL)
    logits: np.ndarray = np.load(path)
    return logits


def describe(cpu: str, found: np.ndarray, native: np.ndarray, fp32: np.ndarray) -> dict[str, Any]:
    """Compare logits [N, 2] with the native int8 and with fp32."""
    return {
        "cpu": cpu,
        "sentences": len(found),
        "labels_unlike_native": int((found.argmax(1) != native.argmax(1)).sum()),
        "difference_from_native": round(float(np.abs(found - native).max()), 7),
        "labels_unlike_fp32": int((found.argmax(1) != fp32.argmax(1)).sum()),
        "difference_from_fp32": round(float(np.abs(found - fp32).max()), 5),
    }


if __name__ == "__main__":
    main()
