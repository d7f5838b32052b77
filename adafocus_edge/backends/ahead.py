"""Split a recurrent graph in two: what does not depend on its state, for many frames at once, and the rest.

A step of a recurrent graph reads all its weights for one frame. The layers in front of the state (in a GRU, the input
halves of its gates) can see all frames of a clip in one product instead, which reads their weights once.

Graphs are rewritten as the bytes of their file (protocol buffers, whose layout is a public standard): a device has no
ONNX package. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from adafocus_edge.model.spec import STATES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from adafocus_edge.backends.base import Session

SPLIT_BYTES = 1 << 22
"""Size of the weights from which a recurrent graph is split: smaller ones stay in the caches from step to step."""
GRAPH, FUNCTIONS = 7, 25
"""Fields of a model."""
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
"""Fields of a graph."""
NODE_INPUT, NODE_OUTPUT, NODE_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 6, 11
WEIGHT_NAME, VALUE_NAME, VALUE_TYPE = 8, 1, 2
TENSOR_TYPE, TENSOR_SHAPE, SHAPE_SIDE, SIDE_NAME = 1, 2, 1, 2
"""The way from a value's type to the name of a side of its shape."""
MIXES_ROWS = frozenset(("DynamicQuantizeLinear",))
"""Operators whose result for one row depends on the other rows of the batch."""


@dataclass(frozen=True)
class Split:
    """A recurrent graph in two parts.

    Attributes:
        ahead: the file of a graph that makes tensors from inputs other than the state.
        rest: the file of a graph that makes the outputs of these tensors, the state, and inputs that it reads itself.
        moved_bytes: size of the weights that :attr:`ahead` reads.
    """

    ahead: bytes
    rest: bytes
    moved_bytes: int


class SplitGraph:
    """A recurrent graph in two sessions: a :class:`~adafocus_edge.backends.base.SplitSession`.

    Args:
        ahead: session of the first part.
        rest: session of the second part.
        state: name of the state that it reads.
    """

    def __init__(self, ahead: Session, rest: Session, state: str) -> None:
        self._ahead, self._rest, self._state = ahead, rest, state
        self._reads = [tensor.name for tensor in ahead.inputs]
        made = {tensor.name for tensor in ahead.outputs}
        apart = [tensor for tensor in rest.inputs if tensor.name not in made]
        self._passed = [tensor.name for tensor in apart if tensor.name != state]
        self.inputs = (*ahead.inputs, *(tensor for tensor in apart if tensor.name not in self._reads))
        self.outputs = rest.outputs

    def ahead(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the part that does not depend on the state."""
        made = self._ahead.run({name: feeds[name] for name in self._reads})
        return {**made, **{name: feeds[name] for name in self._passed}}

    def follow(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the rest."""
        return self._rest.run(feeds)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph once."""
        return self.follow({**self.ahead(feeds), self._state: feeds[self._state]})

    def close(self) -> None:
        """Close both sessions."""
        self._ahead.close()
        self._rest.close()


def split_of(path: Path, graph: str) -> Split | None:
    """Return the parts of one of the four graphs; None if there are none, or splitting it would save little.

    Opening the graph reports what is wrong with its file.
    """
    if graph not in STATES:
        return None
    with suppress(OSError, ValueError):
        if path.stat().st_size > SPLIT_BYTES:
            split = split_ahead(path.read_bytes(), STATES[graph])
            if split is not None and split.moved_bytes > SPLIT_BYTES:
                return split
    return None


class _Field(NamedTuple):
    """One field of a message: its number, its bytes with and without the tag."""

    number: int
    whole: memoryview
    value: memoryview


class _Node(NamedTuple):
    """One node of a graph, by the names of its tensors."""

    whole: memoryview
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    operator: str


def split_ahead(content: bytes, state: str) -> Split | None:
    """Return the two parts of a graph with the state's input name ``state``; None if nothing can be computed ahead.

    Each row of the graph's inputs must be a clip of its own, as the contract has it (``model.spec.contract``).

    Raises:
        ValueError: the content is not an ONNX model.
    """
    try:
        model = list(_fields(memoryview(content)))
        graphs = [field.value for field in model if field.number == GRAPH]
        if len(graphs) != 1 or any(field.number == FUNCTIONS for field in model):
            return None
        graph = _Graph(graphs[0])
        around = [field.whole for field in model if field.number != GRAPH]
        return None if graph.has_subgraphs else graph.split(state, around)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not an ONNX model: {error}") from None


class _Graph:
    """The parts of a graph's message that a split needs."""

    def __init__(self, message: memoryview) -> None:
        fields = list(_fields(message))
        self.nodes = [_node(field) for field in fields if field.number == NODE]
        self.weights = {_text(field.value, WEIGHT_NAME): field.whole for field in fields if field.number == INITIALIZER}
        self.inputs = [_text(field.value, VALUE_NAME) for field in fields if field.number == INPUT]
        self.outputs = [_text(field.value, VALUE_NAME) for field in fields if field.number == OUTPUT]
        described = [field.value for field in fields if field.number in (INPUT, OUTPUT, VALUE_INFO)]
        self.described = {_text(value, VALUE_NAME): value for value in described}
        replaced = (NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO)
        self.others = [field.whole for field in fields if field.number not in replaced]
        self.has_subgraphs = any(_has_subgraph(field.value) for field in fields if field.number == NODE)

    def split(self, state: str, around: Sequence[memoryview]) -> Split | None:
        """Return both parts, each with the weights that it needs, in a model with the fields ``around``."""
        fixed = set(self.weights)  # the same for every frame
        late = {state}
        for node in self.nodes:
            if all(name in fixed for name in node.reads):
                fixed |= set(node.makes)
            elif node.operator in MIXES_ROWS or any(name in late for name in node.reads):
                late |= set(node.makes)
        read_late = {name for node in self.nodes if set(node.makes) & late for name in node.reads}
        early = [name for node in self.nodes for name in node.makes if name not in late | fixed]
        inputs = [name for name in self.inputs if name != state]
        between = [name for name in (*inputs, *early) if name in read_late]
        made = [name for name in between if name in early]
        rows = {self._rows(name) for name in (*between, state)}
        if not made or set(self.outputs) - late or len(rows) > 1 or rows == {None}:
            return None
        ahead, moved = self._part(inputs, made, around)
        rest, _ = self._part([*between, state], self.outputs, around)
        return Split(ahead, rest, moved)

    def _rows(self, name: str) -> str | None:
        """Return what a tensor's first side is called, such as ``N``; None if it is a number or unknown."""
        message = self.described.get(name)
        for number in (VALUE_TYPE, TENSOR_TYPE, TENSOR_SHAPE, SHAPE_SIDE):
            if message is not None:
                message = next((field.value for field in _fields(message) if field.number == number), None)
        return None if message is None else _text(message, SIDE_NAME) or None

    def _part(self, inputs: Sequence[str], outputs: Sequence[str], around: Sequence[memoryview]) -> tuple[bytes, int]:
        """Return a model of the nodes between some tensors, with the inputs that it reads, and its weights' size."""
        nodes, needed = self._needed(inputs, outputs)
        weights = [whole for name, whole in self.weights.items() if name in needed]
        graph = [
            *(node.whole for node in nodes),
            *weights,
            *(piece for name in inputs if name in needed for piece in _message(INPUT, [self.described[name]])),
            *(piece for name in outputs for piece in _message(OUTPUT, [self.described[name]])),
            *self.others,
        ]
        return b"".join([*around, *_message(GRAPH, graph)]), sum(map(len, weights))

    def _needed(self, inputs: Collection[str], outputs: Collection[str]) -> tuple[list[_Node], set[str]]:
        """Return the nodes that make some outputs of some inputs, in their order, and all names that they read."""
        needed, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if any(name in needed and name not in inputs for name in node.makes):
                nodes.append(node)
                needed |= set(node.reads)
        return nodes[::-1], needed


def _node(field: _Field) -> _Node:
    parts = list(_fields(field.value))
    reads, makes = (
        tuple(str(part.value, "utf-8") for part in parts if part.number == number and len(part.value))
        for number in (NODE_INPUT, NODE_OUTPUT)
    )
    return _Node(field.whole, reads, makes, _text(field.value, NODE_TYPE))


def _has_subgraph(node: memoryview) -> bool:
    attributes = [field.value for field in _fields(node) if field.number == NODE_ATTRIBUTE]
    return any(part.number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS) for value in attributes for part in _fields(value))


def _text(message: memoryview, number: int) -> str:
    return next((str(field.value, "utf-8") for field in _fields(message) if field.number == number), "")


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield a message's fields; numbers have an empty value."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _number(message, at)
        value = at
        if tag & 7 == 0:
            _, at = _number(message, at)
            value = at
        elif tag & 7 == 2:
            size, value = _number(message, at)
            at = value + size
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
            value = at
        else:
            raise IndexError(f"unknown field at byte {start}")
        if at > len(message):
            raise IndexError("it was cut short")
        yield _Field(tag >> 3, message[start:at], message[value:at])


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of variable length; return it, and where it ends."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _message(number: int, content: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return a field that holds a message, in pieces, so that weights are copied once, when all pieces are joined."""
    return [_varint(number << 3 | 2), _varint(sum(map(len, content))), *content]


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
