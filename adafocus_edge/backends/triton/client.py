"""A connection to a Triton server, by gRPC: the description of a served model, and requests to it."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adafocus_edge.backends.triton.config import model_name
from adafocus_edge.backends.triton.served import PARAMETER, Served, read_served
from adafocus_edge.errors import BackendError, MissingExtraError, ServerLostError
from adafocus_edge.model.spec import CLIP_GRAPH, STEP_GRAPH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adafocus_edge.backends.triton.address import Address

CONNECT_S = 10.0
"""How long the first requests may take, and those that ask for no computing; less with a shorter timeout."""
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""Settings of gRPC: clips of any size; 5 s for a connection to be made; and no pause of more than 1 s after a loss."""
LOST = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
"""gRPC's statuses of a server that is gone or does not answer."""
NO_START = "START flag"
"""In Triton's error for a frame of a sequence that it does not know: it was restarted, or has forgotten it."""
INPUTS = {STEP_GRAPH: "frame", CLIP_GRAPH: "frames"}
"""The only input of a graph that a client sends."""


@dataclass(frozen=True)
class Request:
    """One request to a model.

    Attributes:
        graph: ``step`` or ``clip``.
        pixels: its only input.
        outputs: names of the outputs to return.
        sequence: number of the sequence that it belongs to; 0 for none.
        start: whether it begins the sequence.
        end: whether it ends the sequence.
    """

    graph: str
    pixels: NDArray[np.uint8]
    outputs: tuple[str, ...]
    sequence: int = 0
    start: bool = False
    end: bool = False


class Connection:
    """A connection to the server of a model, for any number of threads.

    gRPC connects with the first request, and again after the server was gone.

    Args:
        address: of the model.

    Raises:
        MissingExtraError: Triton's client is not installed.
    """

    def __init__(self, address: Address) -> None:
        try:
            import tritonclient.grpc as triton
        except ModuleNotFoundError as error:
            raise MissingExtraError(str(address), "triton", error.name or "tritonclient") from None
        self.address = address
        self._triton = triton
        self._client = triton.InferenceServerClient(address.target, channel_args=CHANNEL)
        self._version = "" if address.version is None else str(address.version)

    def served(self) -> Served:
        """Ask for the description of the model. Raises ``BackendError`` if it is not served, or not one of ours."""
        found = self._description(STEP_GRAPH)
        if found.clips and self._description(CLIP_GRAPH) != found:
            raise BackendError(
                f"{self.address}: its models {model_name(self.address.name, STEP_GRAPH)} and "
                f"{model_name(self.address.name, CLIP_GRAPH)} are of different exports: serve one whole repository"
            )
        if self.address.version not in (None, found.version):
            raise BackendError(f"{self.address}: serves version {found.version}, not {self.address.version}")
        self._version = str(found.version)
        return found

    def run(self, requests: Sequence[Request], timeout_s: float | None = None) -> list[dict[str, NDArray[Any]]]:
        """Send requests at the same time, so that the server can batch them; return the outputs of each.

        Args:
            requests: to send.
            timeout_s: how long each may take; None for the address's.

        Raises:
            ServerLostError: the server is gone, does not answer, or has forgotten a sequence.
            BackendError: it refuses a request.
        """
        answers: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()

        def take(number: int, result: Any, error: Any) -> None:
            answers.put((number, result, error))

        for number, request in enumerate(requests):
            try:
                self._send(request, timeout_s or self.address.timeout_s, partial(take, number))
            except self._triton_error as error:
                answers.put((number, None, error))
        made: list[Any] = [None] * len(requests)
        failed: list[BackendError] = []
        for _ in requests:  # all of them: each has changed the state of its sequence
            number, result, refused = answers.get()
            if refused is not None:
                failed.append(self._error(refused, model_name(self.address.name, requests[number].graph)))
            else:
                made[number] = {name: result.as_numpy(name) for name in requests[number].outputs}
        if failed:
            raise next((error for error in failed if not isinstance(error, ServerLostError)), failed[0])
        return made

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def _triton_error(self) -> type[Exception]:
        kind: type[Exception] = self._triton.InferenceServerException
        return kind

    def _send(self, request: Request, timeout_s: float, done: Any) -> None:
        pixels = self._triton.InferInput(INPUTS[request.graph], request.pixels.shape, "UINT8")
        pixels.set_data_from_numpy(request.pixels)
        self._client.async_infer(
            model_name(self.address.name, request.graph), [pixels], done, model_version=self._version,
            outputs=[self._triton.InferRequestedOutput(name) for name in request.outputs],
            sequence_id=request.sequence, sequence_start=request.start, sequence_end=request.end,
            client_timeout=timeout_s,
        )  # fmt: skip

    def _description(self, graph: str) -> Served:
        """Return the description in one model's configuration."""
        model = model_name(self.address.name, graph)
        timeout_s = min(CONNECT_S, self.address.timeout_s)
        try:
            config = self._client.get_model_config(model, self._version, client_timeout=timeout_s).config
        except self._triton_error as error:
            raise self._error(error, model) from None
        if PARAMETER not in config.parameters:
            raise BackendError(f"{self.address}: its model {model} was not written by `adafocus-edge export-triton`")
        return read_served(config.parameters[PARAMETER].string_value, f"{self.address}: {model}")

    def _error(self, error: Any, model: str) -> BackendError:
        """Return an error of Triton's client as one of ours."""
        status = str(error.status() or "").rpartition(".")[2]
        text = " ".join(str(error.message() or status).split()).rstrip(".")
        if status == "DEADLINE_EXCEEDED":
            return ServerLostError(f"{self.address}: no answer in time: the server hangs or is overloaded")
        if status in LOST:
            return ServerLostError(f"{self.address}: no server answers there ({text}): start it, or check the address")
        if NO_START in text:
            return ServerLostError(
                f"{self.address}: the server has lost the state of a stream: it was restarted, or the stream was idle"
            )
        if status == "NOT_FOUND" or "unknown model" in text or "not found" in text:
            return BackendError(f"{self.address}: does not serve {model}{self._asked} ({text})")
        return BackendError(f"{self.address}: {model} failed: {text}")

    @property
    def _asked(self) -> str:
        return f" version {self._version}" if self._version else ""
