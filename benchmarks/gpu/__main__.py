"""Check and measure a GPU machine, in parts with a time limit each, the most important first.

Usage: python -m benchmarks.gpu [--prepare [DIR]] [--device cuda] [--parts tests,parity] [--budget 480]

- setup: the official model with deterministic weights (ResNet-50, 128 x 128, 16 frames, 200 classes), FP32 and FP16;
- tests: the tests that need a GPU; engines: build engines with every installed TensorRT that runs on this GPU;
- parity: logits and origins of every backend and variant against the golden outputs of the official code;
- live: 16 and 64 sources at 8 glimpses per second each: glimpses, drops, 99th percentile of a glimpse's latency;
- throughput against the number of streams, frames in host and in device memory;
- latency of a step and of a clip, and the host's share of a step; peers: eager PyTorch, ``torch.compile``, CUDA graph;
- training: clips per second of stages 0 and 1; benchmark: rows of `benchmark --quick`, with joules;
- leaks: device and host memory over many steps; conv_search: start-up time by search for convolution algorithms;
- floor: bytes over the measured copy bandwidth, operations over the measured rate of a large matrix product.

Each part runs in a process of its own; time that it does not use goes to the next parts. The report,
``benchmarks/results/gpu-DEVICE.json``, is written after every part, including the results so far of a part that was cut
short. With ``--device cpu``, the same code runs on the CPU. ``--prepare`` makes the files on a CPU that a GPU machine
should not spend time on.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from adafocus_edge.benchmark.machine import describe
from adafocus_edge.benchmark.schema import to_json
from benchmarks.gpu.parts import BUDGET_S, PARTS, SHARES, WITHOUT_MODEL
from benchmarks.gpu.runner import FAILED, OK, SKIP_CODE, TIMED_OUT, Limit, run_parts, write_json
from benchmarks.gpu.table import GOALS, reached, table, write_page
from benchmarks.gpu.work import SkipPartError, Work, prepare, read_prepared
from benchmarks.machine import RESULTS

PREPARED = Path(".gpu/check")
MODELS = {
    "official": "the official model at 128 x 128 with deterministic weights, 16 frames, 200 classes",
    "default": "the default model",
}


def main() -> None:
    """Prepare, run one part, or run them all and write the report; exits with 1 if a part failed or was cut short."""
    options = _parser().parse_args()
    if options.prepare is not None:
        made = prepare(options.prepare)
        for name, size in made["files"].items():
            print(f"{options.prepare / name}  {size / 1e6:.1f} MB")
        return
    if options.part is not None:
        _run_one(options)
        return
    names = _chosen(options.parts)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also ends the running part
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        raise SystemExit(check(options, names, options.folder))
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        raise SystemExit(check(options, names, Path(folder)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prepare",
        type=Path,
        nargs="?",
        const=PREPARED,
        metavar="DIR",
        help="only prepare files for a GPU machine",
    )
    parser.add_argument("--prepared", type=Path, default=PREPARED, metavar="DIR", help="folder that --prepare wrote")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=list(MODELS), default="official")
    parser.add_argument("--parts", help=f"comma-separated parts to run, of: {', '.join(PARTS)}")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all parts")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the leak check")
    parser.add_argument("--rounds", type=int, default=200, help="rounds of every timing")
    parser.add_argument("--streams", type=int, default=512, help="max streams to try")
    parser.add_argument("--seconds", type=float, default=12.0, help="seconds to measure each live run for")
    parser.add_argument("--sources", default="16,64", help="comma-separated numbers of live sources")
    parser.add_argument("--folder", type=Path, help="work folder to keep. [default: a temporary one]")
    parser.add_argument("--report", type=Path, help="report to write; docs/results/gpu.md is not updated then")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    return parser


def _chosen(text: str | None) -> list[str]:
    """Return the parts to run, in their order, with setup if any of them needs it."""
    if text is None:
        return list(PARTS)
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if wrong := [name for name in asked if name not in PARTS] or ([] if asked else [text]):
        print(f"error: --parts {wrong[0]}: must be one of {', '.join(PARTS)}", file=sys.stderr)
        raise SystemExit(2)
    needed = {*asked, *(["setup"] if set(asked) - set(WITHOUT_MODEL) else [])}
    return [name for name in PARTS if name in needed]


def check(options: argparse.Namespace, names: list[str], folder: Path) -> int:
    """Run parts and write the report after each; return the exit code."""
    on_gpu = options.device == "cuda"
    device = device_name(on_gpu)
    path = options.report or RESULTS / f"gpu-{device}.json"
    prepared = read_prepared(options.prepared)
    if prepared is None:
        print(f"note: {options.prepared} has no prepared files (--prepare): no INT8 rows in `benchmark`", flush=True)
    report: dict[str, Any] = {
        "machine": to_json(describe()),
        "what": MODELS[options.model],
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "device": device,
        "goals": GOALS,
        "budget_s": options.budget,
        "prepared": prepared,
    }

    def command(name: str, limit_s: float) -> list[str]:
        given = [f"--{key}={getattr(options, key)}" for key in KEYS]
        more = [f"--part={name}", f"--limit={limit_s}", f"--folder={folder}"]
        return [sys.executable, "-u", "-m", "benchmarks.gpu", *given, *more]

    def write(found: dict[str, Any]) -> None:
        found["reached"] = reached(found) if on_gpu else None
        write_json(path, found)

    limits = [Limit(name, SHARES[name], None if name in WITHOUT_MODEL else "setup") for name in names]
    write(report | {"parts": {}})
    run_parts(limits, command, folder, options.budget, report, write)
    for line in table(report):
        print(line)
    if report["reached"]:
        print(f"reached: {report['reached']}")
    print(f"written to {path}")
    if options.report is None and on_gpu:
        write_page(report)
    ended = {name: entry["status"] for name, entry in report["parts"].items()}
    return 1 if {FAILED, TIMED_OUT} & set(ended.values()) or OK not in ended.values() else 0


KEYS = ("prepared", "device", "model", "steps", "rounds", "streams", "seconds", "sources")
"""Options that are passed on to every part."""


def _run_one(options: argparse.Namespace) -> None:
    """Run one part in this process."""
    sources = tuple(int(number) for number in options.sources.split(","))
    work = Work(
        options.device, options.model, options.folder, options.prepared, options.steps, options.rounds,
        options.streams, options.seconds, sources, options.limit,
    )  # fmt: skip
    try:
        PARTS[options.part](work)
    except SkipPartError as why:
        print(why)
        raise SystemExit(SKIP_CODE) from None


def device_name(on_gpu: bool) -> str:
    """Return the device's name for a file name, without using the device, which could hang."""
    if not on_gpu:
        return "cpu"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "gpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
