"""Time PyTorch on the same device, and measure the floor: the shortest possible time of a step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import torch

from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.model.spec import GRAPHS
from benchmarks.gpu.speed import percentiles
from training.eager import OfficialWay
from training.graphs import GRAPH_MODULES
from training.model import AdaFocus

WEIGHTED = ("Conv", "Gemm", "MatMul")


def peers(
    model: AdaFocus, weights: dict[str, Any], frames: np.ndarray, rounds: int, on_gpu: bool
) -> Iterator[dict[str, Any]]:
    """Time PyTorch on the same device, one stream step by step: as in the official code, in a CUDA graph, compiled."""
    device = torch.device("cuda" if on_gpu else "cpu")
    pixels = torch.from_numpy(frames).to(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    official = OfficialWay(weights, model.spec.focuser, model.spec.patch_size, model.spec.glance_size)
    for part in vars(official).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)
    edge_model = model.to(device).eval()
    precisions = (False, True) if on_gpu else (False,)
    steps = {half: TorchStep(edge_model, half) for half in precisions}

    def eager(half: bool) -> Callable[[int], None]:
        def run(number: int) -> None:
            with torch.autocast("cuda", torch.float16, enabled=half):
                official.frame(pixels[number : number + 1])

        official.reset()
        return run

    # The compiler takes longest, so it comes last: if time runs out, only its rows are missing.
    makers: dict[str, Callable[[bool], Callable[[int], None]]] = {
        "eager PyTorch, the official way": eager,
        "PyTorch in a CUDA graph": lambda half: graphed(steps[half], pixels),
        "torch.compile": lambda half: compiled(steps[half], pixels),
    }
    for name, make in makers.items() if on_gpu else list(makers.items())[:1]:
        for half in reversed(precisions):
            entry = {"peer": name, "precision": "fp16 (autocast)" if half else "fp32"}
            try:
                with torch.inference_mode():
                    run = make(half)
                yield {**entry, **timed(run, rounds, len(frames), on_gpu)}
            except Exception as error:  # a compiler may fail in any way; continue with the other peers
                yield {**entry, "failed": (str(error).splitlines() or [""])[0]}


class TorchStep(torch.nn.Module):
    """One step of our PyTorch model as a module with only tensors, so that it can be compiled and captured."""

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
    """Return a step compiled by ``torch.compile``, already warmed up."""
    made = torch.compile(step)
    states = fresh_states(step, pixels)

    def run(number: int) -> None:
        logits, origin, states[0], states[1] = made(pixels[number : number + 1], *states)
        logits.cpu(), origin.cpu()

    for number in range(3):
        run(number)
    return run


def graphed(step: TorchStep, pixels: Any) -> Callable[[int], None]:
    """Return a step captured in a CUDA graph by PyTorch."""
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


def timed(run: Callable[[int], None], rounds: int, frames: int, on_gpu: bool) -> dict[str, Any]:
    """Time a step of a peer."""
    took = []
    with torch.inference_mode():
        for number in range(rounds + 10):
            started = time.perf_counter()
            run(number % frames)
            if on_gpu:
                torch.cuda.synchronize()
            took.append((time.perf_counter() - started) * 1e3)
    return {"step_ms": percentiles(took[10:])}


def floor(bundle: Bundle, on_gpu: bool) -> dict[str, Any]:
    """Measure copy bandwidth and matrix rate, and return the lower bound of one stream's step time."""
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
    """Return the bytes moved for the outputs of all layers with weights, at batch 1: each is written and read once."""
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
    """Return the min seconds of a few runs."""
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
