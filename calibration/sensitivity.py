"""Measure how much each layer of a graph suffers from INT8, block by block.

Only the block of a layer is quantized again, and only it and the blocks behind it are run again: a graph of 50 layers
would otherwise be quantized, optimised and run as a whole 50 times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from adafocus_edge.backends.base import Session
from calibration.blocks import Blocks
from calibration.samples import Feeds
from calibration.workers import SERIAL, Workers

Quantize = Callable[[ModelProto, Collection[str] | None, Collection[str]], ModelProto]
"""Quantizes a graph: only the layers of these names (None: all), without those."""


class Sensitivity:
    """Errors of one graph's outputs with some of its layers in INT8, relative to the norm of the outputs.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
        stem: names of layers that stay float.
        batches: recorded inputs of the graph.
        quantize: see :data:`Quantize`.
        open_graph: opens a graph.
        workers: measure layers at once.
    """

    def __init__(
        self,
        model: ModelProto,
        stem: Collection[str],
        batches: Sequence[Feeds],
        quantize: Quantize,
        open_graph: Callable[[ModelProto], Session],
        workers: Workers = SERIAL,
    ) -> None:
        self._stem, self._quantize, self._open, self._workers = sorted(stem), quantize, open_graph, workers
        self._batches, self._blocks, self._making = batches, Blocks(model), Lock()
        self.layers = [layer for layer in self._blocks.block_of if layer not in stem]
        """Names of the layers that may be quantized, in execution order."""

    def errors_alone(self) -> Iterator[float]:
        """Yield the error with one layer alone in INT8, for each of :attr:`layers`."""
        with ExitStack() as opened:
            chain = self._chain(self._blocks, opened)

            def error(layer: str) -> float:
                return _relative_error(self._without(chain, layer, [layer], ()), chain.outputs)

            yield from self._workers.map(error, self.layers)

    def errors_saved(self, chosen: Iterable[str]) -> Iterator[float]:
        """Yield how much smaller the error of the INT8 graph is with one layer alone in float, for each one chosen."""
        with ExitStack() as opened:
            expected = self._chain(self._blocks, opened).outputs
        with ExitStack() as opened:
            quantized = (self._quantize(block, None, self._stem) for block in self._blocks)
            chain = self._chain(quantized, opened)
            whole = _relative_error(chain.outputs, expected)

            def saved(layer: str) -> float:
                return whole - _relative_error(self._without(chain, layer, None, [*self._stem, layer]), expected)

            yield from self._workers.map(saved, chosen)

    def _chain(self, blocks: Iterable[ModelProto], opened: ExitStack) -> _Chain:
        return _Chain(blocks, self._open, self._batches, opened, self._workers)

    def _without(
        self, chain: _Chain, layer: str, only: Collection[str] | None, skip: Collection[str]
    ) -> list[NDArray[Any]]:
        """Return a chain's outputs with a layer's block quantized otherwise."""
        place = self._blocks.block_of[layer]
        with self._making:  # one layer's block is made while another's runs
            changed = self._open(self._quantize(self._blocks[place], only, skip))
        with closing(changed):
            return chain.outputs_with(changed, place)


class _Chain:
    """Blocks that run one after another, with every block's inputs kept.

    Args:
        blocks: the blocks.
        open_graph: opens one.
        batches: inputs of the first one.
        opened: closes the blocks.
        workers: run batches at once.
    """

    def __init__(
        self,
        blocks: Iterable[ModelProto],
        open_graph: Callable[[ModelProto], Session],
        batches: Sequence[Feeds],
        opened: ExitStack,
        workers: Workers,
    ) -> None:
        self._sessions: list[Session] = []
        self._inputs: list[Sequence[Feeds]] = [batches]
        for block in blocks:
            self._sessions.append(opened.enter_context(closing(open_graph(block))))
            self._inputs.append(list(workers.map(self._sessions[-1].run, self._inputs[-1])))
        self.outputs = _joined(self._inputs.pop())

    def outputs_with(self, changed: Session, place: int) -> list[NDArray[Any]]:
        """Return the last block's outputs where another session takes the place of one block."""
        made = []
        for feeds in self._inputs[place]:
            found = changed.run(feeds)
            for session in self._sessions[place + 1 :]:
                found = session.run(found)
            made.append(found)
        return _joined(made)


def _joined(batches: Sequence[Feeds]) -> list[NDArray[Any]]:
    return [np.concatenate([outputs[name] for outputs in batches]) for name in sorted(batches[0])]


def _relative_error(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """Return the largest of the outputs' errors, each relative to the norm of the expected output."""
    errors = []
    for made, wanted in zip(found, expected, strict=True):
        size = float(np.linalg.norm(wanted.astype(np.float64)))
        errors.append(float(np.linalg.norm(made.astype(np.float64) - wanted)) / max(size, 1e-12))
    return max(errors)
