"""Runs the graph of one instance of a model with ONNX Runtime, for the backend in backend.c.

Batches of requests arrive through the socket that is its standard input; it joins them, runs the graph once, and sends
each request its rows. A line per batch in the file that TRITON_TEST_LOG names holds the model, the number of rows, and
the names of the inputs.
"""

import json
import os
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

TYPES = {2: "uint8", 9: "int64", 11: "float32"}
NUMBERS = {name: number for number, name in TYPES.items()}


class Peer:
    """The backend at the other end of the socket."""

    def __init__(self, link):
        self.link = link

    def take(self, count):
        parts = []
        while count:
            part = self.link.recv(min(count, 1 << 20))
            if not part:
                sys.exit(0)  # the server has ended, or has unloaded the model
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def number(self):
        return struct.unpack("<I", self.take(4))[0]

    def text(self):
        return self.take(self.number()).decode()

    def tensor(self):
        name, kind = self.text(), TYPES[self.number()]
        shape = [struct.unpack("<q", self.take(8))[0] for _ in range(self.number())]
        content = self.take(struct.unpack("<Q", self.take(8))[0])
        return name, np.frombuffer(content, kind).reshape(shape)

    def request(self):
        feeds = dict(self.tensor() for _ in range(self.number()))
        return feeds, [self.text() for _ in range(self.number())]


def packed(text):
    content = text.encode()[:200]
    return struct.pack("<I", len(content)) + content


def packed_tensor(name, value, is_state):
    value = np.ascontiguousarray(value)
    head = struct.pack("<I", is_state) + packed(name) + struct.pack("<II", NUMBERS[str(value.dtype)], value.ndim)
    return head + struct.pack(f"<{value.ndim}qQ", *value.shape, value.nbytes) + value.tobytes()


def answers(session, states, requests):
    """Return what each request gets: its rows of the outputs that it asks for, and its next states."""
    names = [tensor.name for tensor in session.get_outputs()]
    feeds = {name: np.concatenate([feeds[name] for feeds, _ in requests]) for name in requests[0][0]}
    made = dict(zip(names, session.run(names, feeds), strict=True))
    first = 0
    for own, wanted in requests:
        last = first + len(next(iter(own.values())))
        tensors = [(name, False) for name in wanted] + [(name, True) for name in states]
        yield struct.pack("<I", len(tensors)) + b"".join(
            packed_tensor(name, made[name][first:last], is_state) for name, is_state in tensors
        )
        first = last


def main(folder, version):
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    states = [state.output_name for state in config.sequence_batching.state]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    path = folder / version / config.default_model_filename
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    peer = Peer(socket.socket(fileno=0))
    while True:
        requests = [peer.request() for _ in range(peer.number())]
        with Path(os.environ["TRITON_TEST_LOG"]).open("a") as log:
            rows = sum(len(next(iter(feeds.values()))) for feeds, _ in requests)
            log.write(json.dumps({"model": config.name, "rows": rows, "inputs": sorted(requests[0][0])}) + "\n")
        try:
            content = struct.pack("<I", 0) + b"".join(answers(session, states, requests))
        except Exception as error:
            content = struct.pack("<I", 1) + packed(str(error))
        peer.link.sendall(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
