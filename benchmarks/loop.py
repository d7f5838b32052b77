"""Measure milliseconds per 16-frame clip and per streamed frame: bundles against the official way in eager PyTorch.

Usage: python -m benchmarks.loop [CHECKPOINT BUNDLE] [--rounds 15] [--threads 2] [--int8-on CLIPS]

Without a checkpoint and its bundle it makes those of AdaFocus V1 and V2 first, at the official sizes and with
deterministic weights (a minute), and measures both in the same rounds. ``--int8-on`` adds the variant ``int8-cpu`` to
what it makes, with every layer in INT8 whatever that does to the weights' results: a bound for the time. A bundle that
has that variant is measured with it in the same rounds.

A bundle and PyTorch run the same weights on the same frames in turns, each in a process of its own so that their thread
pools do not interfere: a round is one clip and one stream of 16 frames of each, while the others sleep. Their results
are compared before the timing. The host's share of a step is the time outside ONNX Runtime's calls. Each round also
measures the roof: multiply-adds per second of a large FP32 matrix product (PyTorch with MKL), which no direct FP32
convolution on this machine can exceed by much.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adafocus_edge.benchmark.timing import timed
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.media.preprocess import preprocess
from benchmarks.machine import save
from benchmarks.official import make_bundle, make_checkpoint, make_v2_checkpoint

FRAMES = Path(__file__).parent.parent / "export" / "frames"


def real_frames() -> np.ndarray:
    """Return 16 preprocessed frames of a real clip, uint8 [16, 224, 224, 3]."""
    return np.stack([preprocess(Image.open(p).convert("RGB"), 224) for p in sorted(FRAMES.glob("*.jpg"))])


Ask = Callable[[str, str], Any]
"""Asks a peer (``v1 bundle``, ``v1 eager`` ...) to run a schedule: milliseconds, those by part, and logits."""
WAYS = ("bundle", "eager")
INT8 = "int8-cpu"
SCHEDULES = {"clip": (1, "ms per 16-frame clip"), "stream": (16, "ms per streamed frame")}
"""What is timed: results per run, and the unit."""
WARM_UP = 3
TOLERANCE = 0.002
"""Max difference of a logit between the bundle and PyTorch."""
ROOF_SIZE = 1536
"""Side of the square matrices of the roof, large enough that the caches' latency does not matter."""


@dataclass(frozen=True)
class Contender:
    """One model: its checkpoint, and the bundle that was exported from it."""

    checkpoint: Path
    bundle: Path


def serve_bundle(connection: Connection, of: Contender, threads: int, variant: str = "fp32") -> None:
    """Run our loop on request (``clip`` or ``stream``); send the milliseconds, those by part, and the logits."""
    import dataclasses

    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.model.spec import GRAPHS
    from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip

    frames = real_frames()
    with load_model(read_bundle(of.bundle), variant, "onnxruntime-cpu", threads) as model:
        sessions = {graph: timed(getattr(model, graph)) for graph in GRAPHS}
        loop = dataclasses.replace(model, **sessions)
        stream = GlimpseStream(loop)
        while (what := connection.recv()) != "stop":
            for session in sessions.values():
                session.inside_s = 0.0
            started = time.perf_counter()
            if what == "clip":
                logits = [glimpse.logits for glimpse in see_clip(loop, frames)]
            else:
                stream.reset()
                logits = [stream.see(frames[step : step + 1]).logits for step in range(len(frames))]
            took = time.perf_counter() - started
            parts = {graph: session.inside_s * 1e3 for graph, session in sessions.items()}
            connection.send((took * 1e3, parts | {"host": took * 1e3 - sum(parts.values())}, np.concatenate(logits)))


def add_int8(bundle: Path, clips: Path) -> None:
    """Add the variant ``int8-cpu`` to a bundle, with no layer kept in float."""
    words = f"--variants {INT8} --max-accuracy-drop 100 --method minmax --clips 4 --samples 16 --exit-goal none --quiet"
    command = [sys.executable, "-m", "adafocus_edge", "calibrate", bundle, "--data", clips, *words.split()]
    subprocess.run(command, check=True)


def serve_eager(connection: Connection, of: Contender, threads: int) -> None:
    """Run eager PyTorch on request, as the official code does."""
    import torch

    from training.checkpoint import ModelOptions, read_checkpoint
    from training.models.registry import family_of, load_model

    torch.set_num_threads(threads)
    spec = read_bundle(of.bundle).spec
    options = ModelOptions(spec.patch_size, spec.glance_size, spec.frame_size, spec.segments)
    peer = family_of(spec).official_way(spec, load_model(read_checkpoint(of.checkpoint), options).state_dict())
    frames = torch.from_numpy(real_frames())
    square = torch.rand(ROOF_SIZE, ROOF_SIZE)
    while (what := connection.recv()) != "stop":
        started = time.perf_counter()
        if what == "roof":
            torch.mm(square, square)
            connection.send(ROOF_SIZE**3 / 1e9 / (time.perf_counter() - started))
            continue
        if what == "clip":
            logits = peer.clip(frames)[1]
        else:
            peer.reset()
            logits = torch.cat([peer.frame(frames[step : step + 1])[1] for step in range(len(frames))])
        connection.send(((time.perf_counter() - started) * 1e3, {}, logits.numpy()))


def main() -> None:
    """Measure, print and write ``results/loop.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--int8-on", type=Path, metavar="CLIPS", help="calibrate the made bundles on these clips")
    parser.add_argument("--name", default="loop", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.checkpoint and options.bundle:
            models = {"given": Contender(options.checkpoint, options.bundle)}
        elif options.checkpoint:
            parser.error("give a checkpoint and its bundle, or neither")
        else:
            models = {
                name: Contender(checkpoint, make_bundle(checkpoint, folder, name=name))
                for name, checkpoint in (("v1", make_checkpoint(folder)), ("v2", make_v2_checkpoint(folder)))
            }
            if options.int8_on is not None:
                for of in models.values():
                    add_int8(of.bundle, options.int8_on)
        measure(models, options)


@dataclass(frozen=True)
class Rounds:
    """The measurements of all rounds.

    Attributes:
        ms: milliseconds by schedule (``clip``, ``stream``) and peer.
        parts: milliseconds by part, by schedule and peer, of bundles.
        roof: multiply-adds per second of a large matrix product, in units of 1e9.
    """

    ms: dict[tuple[str, str], list[float]]
    parts: dict[tuple[str, str], list[dict[str, float]]]
    roof: list[float]


def measure(models: dict[str, Contender], options: argparse.Namespace) -> None:
    """Run the rounds, print and write the report."""
    context = mp.get_context("spawn")
    peers: dict[str, Connection] = {}
    for name, of in models.items():
        servers: dict[str, Any] = dict(zip(WAYS, (serve_bundle, serve_eager), strict=True))
        if INT8 in read_bundle(of.bundle).manifest.variants:
            servers[INT8] = partial(serve_bundle, variant=INT8)
        for way, serve in servers.items():
            peers[f"{name} {way}"], theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, of, options.threads), daemon=True).start()

    def ask(name: str, what: str) -> Any:
        peers[name].send(what)
        return peers[name].recv()

    worst = {name: largest_difference(ask, name) for name in models}
    for name in peers:
        if name.endswith(INT8):  # the others were warmed up by their comparison
            for what in [*SCHEDULES] * WARM_UP:
                ask(name, what)
    rounds = run_rounds(ask, list(peers), options.rounds)
    for connection in peers.values():
        connection.send("stop")
    roof = statistics.median(rounds.roof)
    found = {}
    for name, of in models.items():
        rows = rows_of(rounds, name)
        model = read_bundle(of.bundle)
        gmacs = model.totals("fp32")[1] * model.spec.segments
        rate = gmacs / (rows["clip"]["bundle_median"] / 1e3)
        print(f"per clip {gmacs:.1f} G multiply-adds: {rate:.0f} G/s of the {roof:.0f} G/s that a large")
        print(f"matrix product reaches here in the same rounds ({rate / roof:.0%})")
        found[name] = {
            "patch_size": model.spec.patch_size,
            "largest_logit_difference": worst[name],
            "gmacs_per_clip": round(gmacs, 2),
            "bundle_gmacs_per_s": round(rate, 1),
            **rows,
        }
    path = save(
        options.name,
        {
            "what": "eager PyTorch as in the official code against a bundle, same weights, FP32, interleaved rounds",
            "command": f"python -m benchmarks.loop --rounds {options.rounds} --threads {options.threads}"
            + " --int8-on CLIPS" * (options.int8_on is not None),
            "rounds": options.rounds,
            "threads": options.threads,
            "roof_gmacs_per_s": {"median": round(roof, 1), "max": round(max(rounds.roof), 1)},
            "models": found,
        },
    )
    print(f"written to {path}")


def largest_difference(ask: Ask, name: str) -> float:
    """Warm up a model's peers; return the largest difference of their logits.

    It is in logits, or relative to the largest logit if that is above 1. Raises ``SystemExit`` if it is too large.
    """
    worst = 0.0
    for what in SCHEDULES:
        for _ in range(WARM_UP):
            found, expected = (ask(f"{name} {way}", what)[2] for way in WAYS)
        worst = max(worst, float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max())))
    if worst > TOLERANCE:
        raise SystemExit(f"{name}: the bundle's and PyTorch's logits differ by {worst}, at most {TOLERANCE} is allowed")
    return worst


def run_rounds(ask: Ask, names: list[str], count: int) -> Rounds:
    """Run a clip and a stream of each peer per round, and measure the roof."""
    rounds = Rounds({}, {}, [])
    eager = next(name for name in names if name.endswith(WAYS[1]))
    for _ in range(count):
        rounds.roof.append(max(ask(eager, "roof") for _ in range(3)))
        for what in SCHEDULES:
            for name in names:
                took, by_part, _ = ask(name, what)
                rounds.ms.setdefault((what, name), []).append(took)
                if by_part:
                    rounds.parts.setdefault((what, name), []).append(by_part)
    return rounds


def rows_of(rounds: Rounds, name: str) -> dict[str, Any]:
    """Print the rows of a model and return them, by schedule."""
    rows: dict[str, Any] = {}
    print(f"{name:28}{'eager PyTorch':>16}{'bundle':>12}{'times faster':>14}")
    for what, (per, label) in SCHEDULES.items():
        ours, eager = ([value / per for value in rounds.ms[what, f"{name} {way}"]] for way in WAYS)
        ratios = [e / o for e, o in zip(eager, ours, strict=True)]
        parts = rounds.parts[what, f"{name} bundle"]
        middle = {part: statistics.median(p[part] for p in parts) / per for part in parts[0]}
        rows[what] = row = {
            "unit": label,
            "eager_median": round(statistics.median(eager), 3),
            "eager_min": round(min(eager), 3),
            "bundle_median": round(statistics.median(ours), 3),
            "bundle_min": round(min(ours), 3),
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "bundle_parts_median": {part: round(value, 4) for part, value in middle.items()},
        }
        print(f"{label:28}{row['eager_median']:16.1f}{row['bundle_median']:12.1f}{row['ratio_median']:14.2f}")
        if (what, f"{name} {INT8}") in rounds.ms:
            int8 = [value / per for value in rounds.ms[what, f"{name} {INT8}"]]
            ratio = statistics.median(e / o for e, o in zip(eager, int8, strict=True))
            row |= {"int8_median": round(statistics.median(int8), 3), "int8_ratio_median": round(ratio, 3)}
            print(f"{INT8:>28}{'':16}{row['int8_median']:12.1f}{ratio:14.2f}")
        print("  parts: " + ", ".join(f"{part} {value:.2f}" for part, value in middle.items()))
    return rows


if __name__ == "__main__":
    main()
