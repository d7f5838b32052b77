"""Everything that only a GPU can show: parity, leaks, latency, throughput, against PyTorch and against the floor.

Usage: python -m benchmarks.gpu [--device cuda] [--steps 10000] [--rounds 200] [--no-save]

It makes the official model with deterministic weights (ResNet-50, 128 x 128, 16 frames, 200 classes), calibrates FP16
and INT8 variants of it, builds engines with every TensorRT that is installed (the first that fits is run), and then, in
one run on one device:

- parity: logits and places of every backend and variant against the golden outputs of the official code;
- latency of a step (one stream) and of a clip: median, 95th and 99th percentile, and the host's share of a step;
- throughput against the number of streams, 1, 2, 4 ... until it stops growing, frames in host and in device memory;
- peers on the same device: eager PyTorch the official way, ``torch.compile`` and PyTorch in a CUDA graph, each in FP32
  and in FP16 by autocast, which casts weights anew at each step;
- the floor: bytes of weights and activations over the measured copy bandwidth, operations over the measured rate of a
  large matrix product;
- leaks: device and host memory over 10,000 steps.

With ``--device cpu`` the same code runs on the CPU, with fewer steps: that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import argparse
import copy
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import torch

from adafocus_edge.backends.base import LoadedModel
from adafocus_edge.backends.load import load_model
from adafocus_edge.backends.memory import HostDevice
from adafocus_edge.backends.resident import Resident
from adafocus_edge.bundle import Bundle, read_bundle
from adafocus_edge.errors import AdaFocusError
from adafocus_edge.glimpse import GlimpseStream, see_clip
from adafocus_edge.types import GRAPHS
from benchmarks.loop import real_frames
from benchmarks.machine import save
from benchmarks.official import GOLDEN, PATCH_SIZE, ROOT, make_checkpoint
from training.checkpoint import ModelOptions, read_checkpoint
from training.checkpoint import load_model as load_checkpoint_model
from training.eager import OfficialWay
from training.graphs import GRAPH_MODULES

TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2}
"""Largest error of a logit, by variant; INT8 is judged by the accuracy that its calibration reports."""
STOPPED_GROWING = 1.05
GROWTH_LIMIT = 512
"""Streams at most."""
GOALS = {"step_ms": 1.0, "host_share": 0.10, "clips_per_s": 2000.0, "times_eager": 3.0}
"""Of an H200-class GPU with the official model at 128 x 128, FP16 (issue 5)."""
WEIGHTED = ("Conv", "Gemm", "MatMul")
PAGE_TABLE = re.compile(r"(<!-- gpu-check -->\n).*?(<!-- /gpu-check -->)", re.DOTALL)


def main() -> None:
    """Measure, print, and write ``results/gpu-DEVICE.json`` and the table of docs/results/gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=10_000, help="of the leak check")
    parser.add_argument("--rounds", type=int, default=200, help="of every timing")
    parser.add_argument("--streams", type=int, default=GROWTH_LIMIT, help="to try at most")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(options, Path(folder))
    for line in table(report):
        print(line)
    failed = [row for row in report["parity"] if not row["ok"]]
    failed += [row for row in report["leaks"] if not row["ok"]]
    if not options.no_save:
        print(f"written to {save('gpu-' + report['device'], report)}")
        write_page(report)
    if failed:
        raise SystemExit(f"failed: {failed}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything."""
    on_gpu = options.device == "cuda"
    checkpoint = make_checkpoint(folder)
    bundle = make_variants(checkpoint, folder)
    built = build_engines(bundle, options.streams) if on_gpu else []
    frames = real_frames()
    report: dict[str, Any] = {
        "what": "the official model at 128 x 128 with deterministic weights, 16 frames, 200 classes",
        "command": f"python -m benchmarks.gpu --device {options.device} --steps {options.steps} "
        f"--rounds {options.rounds}",
        "device": device_name(on_gpu),
        "goals": GOALS,
        "engines": built,
        "parity": [],
        "latency": [],
        "throughput": [],
        "leaks": [],
        "not_run": [],
    }
    report["floor"] = floor(bundle, on_gpu)
    report["peers"] = list(peers(checkpoint, frames, options, on_gpu))
    for backend, variant in combinations(bundle, on_gpu):
        name = {"backend": backend, "variant": variant}
        try:
            with load_model(bundle, variant, backend) as model:
                made = (
                    parity(model, frames),
                    latency(model, frames, options.rounds),
                    throughput(model, frames, options),
                    leaks(model, frames, options.steps, on_gpu),
                )
        except AdaFocusError as error:
            report["not_run"].append({**name, "why": str(error)})
            continue
        for part, row in zip(("parity", "latency", "throughput", "leaks"), made, strict=True):
            report[part].append({**name, **row})
    report["reached"] = reached(report) if on_gpu else None
    return report


def reached(report: dict[str, Any]) -> dict[str, bool | None]:
    """Say which goals TensorRT in FP16 reached; None where it did not run."""
    rows = {
        part: next((r for r in report[part] if (r["backend"], r["variant"]) == ("tensorrt", "fp16")), None)
        for part in ("latency", "throughput")
    }
    latency_row, through = rows["latency"], rows["throughput"]
    if latency_row is None or through is None:
        return dict.fromkeys(GOALS)
    eager_ms = min(
        (p["step_ms"]["p50"] for p in report["peers"] if p["peer"].startswith("eager") and "step_ms" in p), default=0.0
    )
    step_ms = latency_row["step_ms"]["p50"]
    return {
        "step_ms": step_ms <= GOALS["step_ms"],
        "host_share": latency_row["host_share"] <= GOALS["host_share"],
        "clips_per_s": through["best_clips_per_s"] >= GOALS["clips_per_s"],
        "times_eager": eager_ms / step_ms >= GOALS["times_eager"],
    }


def make_variants(checkpoint: Path, folder: Path) -> Bundle:
    """Export the checkpoint with its joined step, and calibrate FP16 and INT8 on the clips of the tests."""
    path, clips = folder / "bundle", folder / "clips"
    edge("export", checkpoint, "-o", path, "--patch-size", PATCH_SIZE, "--fused")
    clips.mkdir()
    for clip in sorted((ROOT / "tests" / "fights").glob("*/*.mp4"))[:8]:
        shutil.copy(clip, clips)
    edge("calibrate", path, "--data", clips, "--variants", "fp16,int8-trt", "--clips", 4, "--samples", 16,
         "--method", "minmax", "--max-accuracy-drop", 100)  # fmt: skip
    return read_bundle(path)


def edge(*arguments: object) -> None:
    """Run the command line; its errors end the benchmark."""
    command = [sys.executable, "-m", "adafocus_edge.cli", *map(str, arguments), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def build_engines(bundle: Bundle, streams: int) -> list[dict[str, Any]]:
    """Build engines of every variant with every TensorRT that is installed; say what each took or why it failed."""
    from adafocus_edge.build import BuildRequest, build
    from adafocus_edge.engines import BuildOptions
    from export.fuse import fuse

    rows = []
    for library in ("tensorrt", "tensorrt-rtx"):
        for variant in bundle.manifest.variants:
            request = BuildRequest(library, variant, options=BuildOptions(streams))
            entry: dict[str, Any] = {"library": library, "variant": variant}
            try:
                done = build(bundle, request, lambda: fuse, lambda *_: None)
                entry["seconds"] = {row.graph: row.engine.build_s for row in done.rows}
            except AdaFocusError as error:
                entry["failed"] = str(error)
            rows.append(entry)
    return rows


def combinations(bundle: Bundle, on_gpu: bool) -> Iterator[tuple[str, str]]:
    """Yield what is measured: backend and variant."""
    if not on_gpu:
        yield "onnxruntime-cpu", "fp32"
        return
    for variant in bundle.manifest.variants:
        if variant != "int8-cpu":
            yield "tensorrt", variant
    yield "onnxruntime-cuda", "fp32"
    yield "onnxruntime-cuda", "fp16"
    yield "onnxruntime-tensorrt", "fp32"


def device_name(on_gpu: bool) -> str:
    """Return the device's name as part of a file's name."""
    if not on_gpu:
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


# -- what is measured -------------------------------------------------------------------------------------------------


def parity(model: LoadedModel, frames: np.ndarray) -> dict[str, Any]:
    """Compare both schedules with the outputs of the official code."""
    with np.load(GOLDEN / "golden_actnet128.npz") as golden:
        logits, actions = golden["logits"].reshape(len(frames), -1), golden["actions"].reshape(-1)
    stream = GlimpseStream(model)
    grid = model.spec.grid
    worst, same_places, same_labels = 0.0, True, True
    for glimpses in (list(see_clip(model, frames)), [stream.see([frame]) for frame in frames]):
        found = np.concatenate([glimpse.logits for glimpse in glimpses])
        origins = np.concatenate([glimpse.origins for glimpse in glimpses])
        places = np.stack([actions // grid, actions % grid], axis=-1) / (grid - 1)
        worst = max(worst, float(np.abs(found - logits).max()))
        same_places &= bool(np.abs(origins - places).max() < 1e-5)
        same_labels &= bool((found.argmax(-1) == logits.argmax(-1)).all())
    limit = TOLERANCE.get(model.variant)
    exact = model.variant != "fp32" or (same_places and same_labels)
    return {
        "largest_logit_error": worst,
        "same_places": same_places,
        "same_labels": same_labels,
        "limit": limit,
        "ok": limit is None or (worst <= limit and exact),
    }


def latency(model: LoadedModel, frames: np.ndarray, rounds: int) -> dict[str, Any]:
    """Time steps of one stream, what of each the host takes to queue it, and whole clips."""
    loop = resident(model).steps(1)
    took, queued, clips = [], [], []
    for number in range(rounds + 10):
        started = time.perf_counter()
        loop.submit([frames[number % len(frames)]])
        between = time.perf_counter()
        loop.collect()
        took.append((time.perf_counter() - started) * 1e3)
        queued.append((between - started) * 1e3)
    for _ in range(max(3, rounds // 4)):
        started = time.perf_counter()
        list(see_clip(model, frames))
        clips.append((time.perf_counter() - started) * 1e3)
    on_host = statistics.median(queued[10:])
    return {
        "step_ms": percentiles(took[10:]),
        "queueing_ms": on_host,
        # ONNX Runtime waits for a CUDA graph that it replays: what it takes to queue one cannot be told apart.
        "host_share": on_host / statistics.median(took[10:]) if model.backend == "tensorrt" else None,
        "clip_ms": percentiles(clips[2:]),
    }


def throughput(model: LoadedModel, frames: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Count clips per second for 1, 2, 4 ... streams that step together, a step ahead, until it stops growing."""
    where = resident(model)
    found: dict[str, list[dict[str, float]]] = {}
    with where.device.use():
        on_device = [where.device.store(frame[None]) for frame in frames]
    for place, source in (("host", list(frames)), ("device", on_device)):
        rows = found[place] = []
        streams = 1
        while streams <= options.streams:
            try:
                loop = where.steps(streams)
            except AdaFocusError as error:  # no memory, or more than the engines take
                rows.append({"streams": streams, "clips_per_s": 0.0, "stopped": str(error)})  # type: ignore[dict-item]
                break
            steps = max(3, options.rounds // 4)
            loop.submit([source[0]] * streams)
            started = time.perf_counter()
            for step in range(steps):
                loop.submit([source[(step + row) % len(source)] for row in range(streams)])
                loop.collect()
            loop.collect()
            per_s = (steps + 1) * streams / (time.perf_counter() - started) / len(frames)
            rows.append({"streams": streams, "clips_per_s": round(per_s, 2)})
            if len(rows) > 1 and per_s < STOPPED_GROWING * rows[-2]["clips_per_s"]:
                break
            streams *= 2
    best = max(row["clips_per_s"] for rows in found.values() for row in rows)
    return {"frames_in": found, "best_clips_per_s": best}


def leaks(model: LoadedModel, frames: np.ndarray, steps: int, on_gpu: bool) -> dict[str, Any]:
    """Take steps and clips, and see whether memory grows once all is warm."""
    loop = resident(model).steps(1)

    def run(count: int) -> tuple[int, int]:
        for number in range(count):
            loop.submit([frames[number % len(frames)]], fresh=[0] if number % len(frames) == 0 else [])
            loop.collect()
            if number % 100 == 0:
                list(see_clip(model, frames))
        free = torch.cuda.mem_get_info()[0] if on_gpu else 0
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return free, pages * resource.getpagesize()

    free, rss = run(max(20, steps // 10))
    free_after, rss_after = run(steps)
    lost, grown = free - free_after, rss_after - rss
    return {"steps": steps, "device_bytes": lost, "host_bytes": grown, "ok": lost < 16 << 20 and grown < 32 << 20}


def peers(checkpoint: Path, frames: np.ndarray, options: argparse.Namespace, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """Time PyTorch on the same device: the official way, compiled, and in a CUDA graph; one stream, step by step."""
    read = read_checkpoint(checkpoint)
    device = torch.device(options.device)
    pixels = torch.from_numpy(frames).to(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    official = OfficialWay(read.weights)
    for part in vars(official).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)
    edge_model = load_checkpoint_model(read, ModelOptions(patch_size=PATCH_SIZE)).to(device).eval()
    for precision in ("fp32", "fp16") if on_gpu else ("fp32",):
        half = precision == "fp16"

        def eager(number: int, half: bool = half) -> None:
            with torch.autocast("cuda", torch.float16, enabled=half):
                official.frame(pixels[number : number + 1])

        official.reset()
        step = TorchStep(edge_model, half)
        makers: dict[str, Callable[[], Callable[[int], None]]] = {
            "eager PyTorch, the official way": lambda eager=eager: eager,
            "torch.compile": lambda step=step: compiled(step, pixels),
            "PyTorch in a CUDA graph": lambda step=step: graphed(step, pixels),
        }
        for name, make in makers.items() if on_gpu else list(makers.items())[:1]:
            entry = {"peer": name, "precision": f"{precision}{' (autocast)' if half else ''}"}
            try:
                with torch.inference_mode():
                    run = make()
                yield {**entry, **timed(run, options, on_gpu)}
            except Exception as error:  # a compiler may fail in any way; the others go on
                yield {**entry, "failed": (str(error).splitlines() or [""])[0]}


class TorchStep(torch.nn.Module):
    """One step of our PyTorch model, as a module of tensors only, so that it can be compiled and captured."""

    def __init__(self, model: Any, half: bool) -> None:
        super().__init__()
        self.half_precision = half
        parts = [GRAPH_MODULES[graph](copy.deepcopy(model)).eval() for graph in GRAPHS]
        self.glancer, self.policy, self.focuser, self.classifier = parts

    def forward(self, frame: Any, policy_state: Any, state: Any) -> tuple[Any, ...]:
        """Glance, choose, focus, classify."""
        with torch.autocast("cuda", torch.float16, enabled=self.half_precision):
            feature_map, glance = self.glancer(frame)
            origin, _, policy_out = self.policy(feature_map.float(), policy_state)
            focus = self.focuser(frame, origin.float())
            logits, state_out = self.classifier(glance.float(), focus.float(), state)
        return logits.float(), origin, policy_out.float(), state_out.float()


def compiled(step: TorchStep, pixels: Any) -> Callable[[int], None]:
    """Return a step that ``torch.compile`` has seen."""
    made = torch.compile(step, mode="max-autotune-no-cudagraphs")
    states = fresh_states(step, pixels)

    def run(number: int) -> None:
        logits, origin, states[0], states[1] = made(pixels[number : number + 1], *states)
        logits.cpu(), origin.cpu()

    for number in range(3):
        run(number)
    return run


def graphed(step: TorchStep, pixels: Any) -> Callable[[int], None]:
    """Return a step that PyTorch captured in a CUDA graph."""
    frame, states = pixels[:1].clone(), fresh_states(step, pixels)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(frame, *states)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step(frame, *states)

    def run(number: int) -> None:
        frame.copy_(pixels[number : number + 1])
        graph.replay()
        states[0].copy_(made[2])
        states[1].copy_(made[3])
        made[0].cpu(), made[1].cpu()

    return run


def fresh_states(step: TorchStep, pixels: Any) -> list[Any]:
    """Return both states, zero."""
    spec = step.glancer.model.spec
    return [torch.zeros(1, length, device=pixels.device) for length in (spec.policy_state, spec.classifier_state)]


def timed(run: Callable[[int], None], options: argparse.Namespace, on_gpu: bool) -> dict[str, Any]:
    """Time a step of a peer."""
    took = []
    with torch.inference_mode():
        for number in range(options.rounds + 10):
            started = time.perf_counter()
            run(number % 16)
            if on_gpu:
                torch.cuda.synchronize()
            took.append((time.perf_counter() - started) * 1e3)
    return {"step_ms": percentiles(took[10:])}


def floor(bundle: Bundle, on_gpu: bool) -> dict[str, Any]:
    """Measure copy bandwidth and matrix rate, and say what a step of one stream cannot be faster than."""
    device = torch.device("cuda" if on_gpu else "cpu")
    size = 1 << (28 if on_gpu else 24)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy_s = fastest(lambda: target.copy_(source), on_gpu)
    bytes_per_s = 2 * size / copy_s
    found: dict[str, Any] = {"copy_gb_per_s": round(bytes_per_s / 1e9, 1)}
    for variant, kind in (("fp32", torch.float32), ("fp16", torch.float16)):
        if variant not in bundle.manifest.variants or (not on_gpu and kind is torch.float16):
            continue
        side = 8192 if on_gpu else 1024
        square = torch.rand(side, side, device=device).to(kind)
        rate = side**3 / fastest(lambda square=square: torch.mm(square, square), on_gpu)
        graphs = [bundle.manifest.variants[variant][graph] for graph in GRAPHS]
        weights, operations = sum(g.size_bytes for g in graphs), sum(g.gflops for g in graphs) * 1e9
        moved = weights + sum(activation_bytes(bundle.graph_path(variant, graph)) for graph in GRAPHS)
        found[variant] = {
            "gmacs_per_s": round(rate / 1e9, 1),
            "weights_ms": weights / bytes_per_s * 1e3,
            "bytes_ms": moved / bytes_per_s * 1e3,
            "operations_ms": operations / rate * 1e3,
            "step_ms": max(moved / bytes_per_s, operations / rate) * 1e3,
        }
    return found


def activation_bytes(path: Path) -> int:
    """Return the bytes of all tensors that layers of weights write, at batch 1: each is written and read once."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model(path))
    weighted = {o for node in model.graph.node if node.op_type in WEIGHTED for o in node.output}
    total = 0
    for info in (*model.graph.value_info, *model.graph.output):
        if info.name in weighted:
            kind = info.type.tensor_type
            size = np.prod([side.dim_value or 1 for side in kind.shape.dim], dtype=np.int64)
            total += 2 * int(size) * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return total


def fastest(work: Callable[[], Any], on_gpu: bool) -> float:
    """Return the fewest seconds of a few runs."""
    times = []
    for _ in range(10):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile."""
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (50, 95, 99)}


def resident(model: LoadedModel) -> Resident:
    """Return the model on its device; of the CPU's sessions, on the CPU as a device."""
    return model.resident or Resident(model.spec, {g: getattr(model, g) for g in GRAPHS}, HostDevice())


# -- what is told -----------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> list[str]:
    """Return the report as a table in Markdown."""
    lines = [
        "| on " + report["device"] + " | precision | step ms p50 / p95 / p99 | clip ms p50 | clips/s, streams | "
        "logits off by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row, speed, agreement in zip(report["latency"], report["throughput"], report["parity"], strict=True):
        rows = [one for where in speed["frames_in"].values() for one in where]
        best = max(rows, key=lambda one: one["clips_per_s"])
        lines.append(
            f"| {row['backend']} | {row['variant']} | {' / '.join(f'{v:.2f}' for v in row['step_ms'].values())} | "
            f"{row['clip_ms']['p50']:.2f} | {best['clips_per_s']:.0f}, {best['streams']} | "
            f"{agreement['largest_logit_error']:.1e} |"
        )
    for peer in report["peers"]:
        times = " / ".join(f"{value:.2f}" for value in peer["step_ms"].values()) if "step_ms" in peer else "failed"
        lines.append(f"| {peer['peer']} | {peer['precision']} | {times} | | | |")
    for precision in ("fp32", "fp16"):
        if precision in report["floor"]:
            lines.append(f"| floor | {precision} | {report['floor'][precision]['step_ms']:.3f} | | | |")
    return lines


def write_page(report: dict[str, Any]) -> None:
    """Put the table into the page of results."""
    path = ROOT / "docs" / "results" / "gpu.md"
    text = path.read_text()
    made = "\n".join(table(report)) + "\n"
    path.write_text(PAGE_TABLE.sub(lambda found: found[1] + made + found[2], text))


if __name__ == "__main__":
    main()
