"""Parts that run the command line as a user does: live sources, training, and `benchmark` with joules."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.system.cpu import usable_cores
from benchmarks.gpu.work import CALIBRATED, FIGHTS, SkipPartError, Work, calibrated_bundle, edge
from benchmarks.lists import write_list
from benchmarks.official import ROOT

GLIMPSE_FPS = 8.0
OVERLAP = 2
WARM_UP_S = 15.0
"""Max time until every source has a glimpse."""
STATUS_S = 0.5
REPEATED = 512
"""Clips per epoch: the tests' clips, repeated."""
REPEATED_ON_CPU = 4
TIMES_LONGER = 3
"""Min time of training, as a multiple of a live run's time."""
EPOCHS = 2
"""Min epochs; the first one warms up."""
STAGES = {0: ("train_stage=0",), 1: ("train_stage=1",)}


# -- live -------------------------------------------------------------------------------------------------------------


def live(work: Work, limit_s: float) -> None:
    """Run many sources at once (files in a loop, in real time), and count glimpses and drops after the warm-up."""
    rows: list[dict[str, Any]] = []
    backend, variant = next(work.combinations())
    each_s = limit_s / len(work.sources)
    for sources in work.sources:
        rows.append(live_run(backend, variant, sources, work.seconds, each_s))
        work.keep("live", {"rows": rows, "decoding": f"on the CPU, {usable_cores()} cores", "overlap": OVERLAP})
    if not all(row["glimpses"] for row in rows):
        raise SystemExit(f"a live run had no glimpses: {next(row for row in rows if not row['glimpses'])}")


def live_run(backend: str, variant: str, sources: int, seconds: float, limit_s: float) -> dict[str, Any]:
    """Run a number of sources and return the counts between two of the run's own status reports."""
    clips = sorted(FIGHTS.glob("*/*.mp4"))
    named = [f"s{number}={clips[number % len(clips)]}" for number in range(sources)]
    command = [sys.executable, "-m", "adafocus_edge", "classify", *named, "--loop", "--realtime"]
    command += ["--glimpse-fps", f"{GLIMPSE_FPS:g}", "--overlap", str(OVERLAP), "--backend", backend]
    command += ["--variant", variant, "--json", "--status", str(STATUS_S)]
    began = time.monotonic()
    statuses: list[tuple[float, list[dict[str, Any]]]] = []
    errors: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:

        def read() -> None:
            for line in running.stdout or ():
                entry = json.loads(line)
                if "status" in entry:
                    statuses.append((time.monotonic(), entry["status"]["sources"]))

        def read_errors() -> None:
            errors.extend(running.stderr or ())

        readers = [threading.Thread(target=target, daemon=True) for target in (read, read_errors)]
        for reader in readers:
            reader.start()
        warm_at: float | None = None
        while running.poll() is None and time.monotonic() - began < limit_s:
            time.sleep(0.05)
            if warm_at is None and statuses:
                now, found = statuses[-1]
                all_seen = len(found) == sources and all(source["glimpses"] for source in found)
                if all_seen or now - began >= WARM_UP_S:
                    warm_at = now
            if warm_at is not None and statuses[-1][0] - warm_at >= seconds:
                break
        with suppress(ProcessLookupError):
            running.send_signal(signal.SIGTERM)  # SIGINT is ignored in the background
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
        for reader in readers:
            reader.join(10)
    if warm_at is None:
        raise SystemExit(f"no status within {limit_s:.0f} s: {''.join(errors)[-1500:]}")
    return {"model": "default", "backend": backend, "variant": variant, **counted(statuses, warm_at, sources)}


def counted(statuses: list[tuple[float, list[dict[str, Any]]]], warm_at: float, sources: int) -> dict[str, Any]:
    """Return a run's counts from its warm status to its last one.

    Args:
        statuses: times, and the sources of each status report.
        warm_at: time of the first status that counts.
        sources: number of sources.
    """
    (begun, before), (ended, after) = next(one for one in statuses if one[0] == warm_at), statuses[-1]
    seconds = max(ended - begun, 1e-9)
    counts = {
        name: sum(source[name] for source in after) - sum(source[name] for source in before)
        for name in ("frames", "glimpses", "dropped", "windows")
    }
    late = [source["latency_ms"]["p99"] for source in after if source["latency_ms"]["p99"] is not None]
    return {
        "sources": sources,
        "glimpse_fps": GLIMPSE_FPS,
        "seconds": round(seconds, 2),
        "warm_after_s": round(begun - statuses[0][0], 2),
        **counts,
        "asked_glimpses": round(sources * GLIMPSE_FPS * seconds),
        "glimpses_per_s": round(counts["glimpses"] / seconds, 2),
        "p99_ms": round(max(late), 2) if late else None,
        "median_p99_ms": round(statistics.median(late), 2) if late else None,
    }


# -- training ---------------------------------------------------------------------------------------------------------


def training(work: Work, limit_s: float) -> None:
    """Measure the clips per second of training in stages 0 and 1."""
    folder = work.folder / "training"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    count = REPEATED if work.on_gpu else REPEATED_ON_CPU
    write_clips(folder / "train.csv", count)
    write_clips(folder / "val.csv", 4)
    rows: list[dict[str, Any]] = []
    for stage, options in STAGES.items():
        rows.append({"stage": stage, **train(work, folder, stage, options, limit_s / len(STAGES), count)})
        work.keep("training", {"rows": rows, "clips_per_epoch": count, "loading": f"{usable_cores()} cores"})
    if wrong := [row for row in rows if not row["epochs"]]:
        raise SystemExit(f"no epoch ended: {wrong[0]}")


def write_clips(path: Path, count: int) -> None:
    """Write a list of the tests' clips, repeated until there are enough."""
    clips = sorted(FIGHTS.glob("*/*.mp4"))
    order = [clips[number // 2 + len(clips) // 2 * (number % 2)] for number in range(len(clips) // 2 * 2)]
    chosen = (order[number % len(order)] for number in range(count))
    write_list(path, ({"video": clip, "class": clip.parent.name} for clip in chosen), ("video", "class"))


def train(work: Work, folder: Path, stage: int, options: tuple[str, ...], seconds: float, clips: int) -> dict[str, Any]:
    """Train a stage for at least :data:`EPOCHS`, within some seconds; the first epoch warms up, counted separately."""
    run = folder / f"stage{stage}"
    command = [
        sys.executable,
        "-m",
        "adafocus_edge",
        "train",
        "dataset=custom",
        "preset=edge",
        f"data_dir={folder}",
    ]
    command += ["train_list=train.csv", "val_list=val.csv", "epochs=10000", "eval_freq=100000", *options]
    command += ["glancer_weights=random", "focuser_weights=random", f"hydra.run.dir={run}", f"device={work.device}"]
    command += [f"workers={min(16, usable_cores())}"]
    command += ["amp=true", "batch_size=64"] if work.on_gpu else ["amp=false", "batch_size=2", "num_segments=2"]
    command += ["cache=ram"]
    log = folder / f"stage{stage}.log"
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        began = time.monotonic()
        enough_s = TIMES_LONGER * work.seconds
        while running.poll() is None and (took := time.monotonic() - began) < seconds:
            if took >= enough_s and len(epoch_seconds(run)) >= EPOCHS:
                break
            time.sleep(0.2)
        with suppress(ProcessLookupError):
            running.send_signal(signal.SIGTERM)  # SIGINT is ignored in the background
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
    epochs = epoch_seconds(run)
    found: dict[str, Any] = {"epochs": len(epochs), "cache": "ram"}
    if epochs:
        steady = epochs[1:] or epochs
        found |= {
            "first_epoch_s": epochs[0],
            "clips_per_s": round(clips * len(steady) / sum(steady), 1),
            "warm": len(epochs) > 1,
        }
    else:
        found["log_tail"] = log.read_text(errors="replace").splitlines()[-5:]
    return found


def epoch_seconds(run: Path) -> list[float]:
    """Return the seconds of a training run's epochs so far."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line)["seconds"] for line in lines]


# -- benchmark --------------------------------------------------------------------------------------------------------


def rows(work: Work, limit_s: float) -> None:
    """Run `benchmark` on the default model with the prepared INT8 variants, a run for each variant.

    `benchmark` writes its report at the end, so with several short runs, those that have ended count.
    """
    began = time.monotonic()
    bundle = calibrated_bundle(work.prepared, work.folder / CALIBRATED)
    bundles = [] if bundle is None else [str(bundle)]
    known = read_bundle(bundle or default_bundle()).manifest.variants
    settings = [("onnxruntime-cuda", "fp16"), ("onnxruntime-cuda", "fp32")] if work.on_gpu else []
    settings += [("onnxruntime-cpu", "fp32"), ("onnxruntime-cpu", "int8-cpu")]
    settings = [(backend, variant) for backend, variant in settings if variant in known]
    found: dict[str, Any] = {"prepared": bool(bundles), "commands": [], "rows": [], "skipped": [], "failed": []}
    failed = []
    for backend, variant in settings:
        report = work.folder / f"benchmark-{backend}-{variant}.json"
        report.unlink(missing_ok=True)
        command = ["benchmark", *bundles, "--backends", backend, "--variants", variant, "--quick"]
        command += ["--data", str(FIGHTS), "--streams", "1,8"]
        found["commands"].append(" ".join(command))
        try:
            edge(*command, "-o", report, "--quiet", timeout_s=max(1.0, limit_s - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            failed.append(f"{backend} {variant}: cut short")
        except SystemExit as error:
            failed.append(f"{backend} {variant}: {error}")
        made = json.loads(report.read_text()) if report.exists() else {}
        for name in ("rows", "skipped", "failed"):
            found[name] += made.get(name) or []
        found["energy_of"] = made.get("energy_of") or found.get("energy_of")
        work.keep("benchmark", found)
    if failed:
        raise SystemExit("; ".join(failed))
    if not found["rows"]:
        raise SkipPartError("no rows")
