"""Inputs that nobody should send, made by chance from a seed; each must give a result or one error that tells a user.

``attack(target, seed, folder)`` makes one and feeds it to the product's own code. The bases are real files.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adafocus_edge.bundle.classes import read_classes
from adafocus_edge.bundle.manifest import MANIFEST
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import AdaFocusError
from adafocus_edge.system.printable import one_line

if str(GOLDEN := Path(__file__).parents[1] / "golden") not in sys.path:  # pytest's settings do this for tests
    sys.path.insert(0, str(GOLDEN))

from tests.conftest import CLIPS, ROOT

FRAMES = ROOT / "export" / "frames"
FIGHTS = ROOT / "tests" / "fights"
Random = np.random.Generator
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 1e309, 1e-320, float("nan"), "", "..", "../../etc/passwd",
    "/etc/passwd", "a\0b", "\ud800", "x" * 10_000, [], {}, [[]] * 50, "fp32", "clip", 224, 0.5,
)  # fmt: skip
"""What takes the place of a value in a structure."""
ODD_TEXTS = (
    "", "\0", "\ufeff", "\r", "\n\n", ",", ",,,,", '"', "'", "\t", "..", "/dev/zero", "-1", "1e99", "NaN", "9" * 400,
    "é", "\u202e", "http://[", "rtsp://u:p@", "[[[[", "= = =", "#", "fight", "no_fight", "a" * 70_000,
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of an input.

    Attributes:
        kind: ``result``; ``refused``, with an error that tells a user; or ``escaped``, which must not be.
        text: the error.
    """

    kind: str
    text: str = ""


def attack(target: str, seed: int, folder: Path) -> Outcome:
    """Make the input of a seed in an empty folder, and feed it to what takes it."""
    random = np.random.default_rng((seed, sum(target.encode())))
    marker = folder / "executed"
    os.environ["ADAFOCUS_EDGE_FUZZ_MARKER"] = str(marker)
    try:
        feed = TARGETS[target](random, folder)
        feed()
        outcome = Outcome("result")
    except AdaFocusError as error:
        text = one_line(str(error))
        outcome = Outcome("refused" if text.strip() else "escaped", text)
    except Exception as error:
        outcome = Outcome("escaped", one_line(f"{type(error).__name__}: {error}"))
    if marker.exists():
        return Outcome("escaped", "code from the file was executed")
    return outcome


# -- changing bytes, texts and structures ------------------------------------------------------------------------------


def changed(data: bytes, random: Random) -> bytes:
    """Damage bytes in one to four ways."""
    content = bytearray(data)
    for _ in range(random.integers(1, 5)):
        if not content:
            break
        place = int(random.integers(len(content)))
        length = int(min(len(content) - place, 2 ** random.integers(0, 17)))
        match random.integers(7):
            case 0:  # single bits
                for _ in range(random.integers(1, 64)):
                    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
            case 1:
                del content[place : place + length]
            case 2:
                del content[place:]
            case 3:
                content[place : place + length] = bytes(length)
            case 4:
                content[place : place + length] = random.bytes(length)
            case 5:  # a piece once more, somewhere else
                other = int(random.integers(len(content)))
                content[other:other] = content[place : place + length]
            case _:  # numbers that are larger than what follows
                content[place : place + 4] = b"\xff\xff\xff\xff"
    return bytes(content)


def changed_text(text: str, random: Random) -> str:
    """Damage a text: its lines, its signs, or put something odd into it."""
    lines = text.splitlines(keepends=True)
    for _ in range(random.integers(1, 5)):
        place = int(random.integers(len(lines) + 1))
        odd = str(random.choice(np.array(ODD_TEXTS, object)))
        match random.integers(4):
            case 0:
                lines.insert(place, odd + "\n")
            case 1 if lines:
                line = lines[place % len(lines)]
                cut = int(random.integers(len(line) + 1))
                lines[place % len(lines)] = line[:cut] + odd + line[cut:]
            case 2 if lines:
                del lines[place % len(lines)]
            case _:
                lines = lines * 2
    return "".join(lines)


def changed_structure(value: Any, random: Random) -> Any:
    """Change one value somewhere in a structure of dicts and lists, or leave one out."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = list(value)[int(random.integers(len(value)))]
        if random.random() < 0.1:
            return {name: other for name, other in value.items() if name != key}
        return {**value, key: changed_structure(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        place = int(random.integers(len(value)))
        return [*value[:place], changed_structure(value[place], random), *value[place + 1 :]]
    return ODD_VALUES[int(random.integers(len(ODD_VALUES)))]


def pick(options: list[Any], random: Random) -> Any:
    """Take one of some."""
    return options[int(random.integers(len(options)))]


# -- targets -----------------------------------------------------------------------------------------------------------


def video(random: Random, folder: Path) -> Callable[[], object]:
    """A clip that is damaged, or called something else, through the path that `classify` takes."""
    from adafocus_edge.media.preprocess import sampled_frames
    from adafocus_edge.media.sources import Source

    bases = [*sorted(FIGHTS.glob("*/*.mp4")), *CLIPS.glob("*.avi"), CLIPS / "R6llTwEh07w.mp4", *odd_videos(folder)]
    base = pick(bases, random)
    data = base.read_bytes()
    if random.random() < 0.9:
        data = changed(data, random)
    elif random.random() < 0.5:
        data += pick(bases, random).read_bytes()
    suffix = base.suffix if random.random() < 0.8 else pick([".mp4", ".avi", ".mkv", ".ts", ".webm", ".h264"], random)
    path = folder / f"clip{suffix}"
    path.write_bytes(data)
    spec = read_bundle(default_bundle()).spec
    return lambda: list(sampled_frames(Source("clip", str(path)).open_clip(), spec))


def odd_videos(folder: Path) -> list[Path]:
    """Return videos of odd kinds, which are made once per process beside the folder."""
    kept = folder.parent / "odd-videos"
    if not kept.exists():
        draft = folder / "odd"
        draft.mkdir()
        _make_odd_videos(draft)
        draft.rename(kept)
    return sorted(kept.iterdir())


def _make_odd_videos(folder: Path) -> None:
    import av

    from tests.support.videos import encode

    encode(folder / "one-frame.mp4", 1)
    encode(folder / "tiny.mkv", 5, "ffv1", size=(2, 2), pix_fmt="yuv420p")
    encode(folder / "strip.mkv", 3, "ffv1", size=(8000, 4), pix_fmt="yuv420p")
    encode(folder / "odd-size.mkv", 5, "ffv1", size=(33, 17), pix_fmt="yuv444p")
    encode(folder / "grey.mkv", 5, "ffv1", pix_fmt="gray")
    encode(folder / "ten-bit.mp4", 20, "libx265", pix_fmt="yuv420p10le")
    encode(folder / "alpha.mkv", 5, "ffv1", pix_fmt="yuva420p")
    encode(folder / "uneven.mp4", 12, pts=[0, 1, 2, 9, 10, 30, 31, 32, 80, 81, 82, 83])
    encode(folder / "one-key-frame.mp4", 60, options={"g": "9999", "bf": "3"})
    encode(folder / "negative.ts", 20, "mpeg2video", pts=list(range(-10, 10)))
    encode(folder / "interlaced.ts", 20, "mpeg2video", options={"flags": "+ildct+ilme"})
    encode(folder / "fragments.mp4", 30, options={"g": "10"})
    with av.open(str(folder / "sound.mp4"), "w") as target:
        stream = target.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 44100
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    shutil.copy(next(FRAMES.glob("*.jpg")), folder / "image.mp4")
    (folder / "empty.mp4").touch()


def frames(random: Random, folder: Path) -> Callable[[], object]:
    """A folder of frames, some of them damaged."""
    from adafocus_edge.media.preprocess import sampled_frames
    from adafocus_edge.media.sources import Source

    place = folder / "frames"
    place.mkdir()
    for number, path in enumerate(sorted(FRAMES.glob("*.jpg"))[:8]):
        data = path.read_bytes()
        (place / path.name).write_bytes(changed(data, random) if random.random() < 0.1 else data)
        if random.random() < 0.05:
            (place / path.name).rename(place / str(pick(["x.png", "image_1e9.jpg", ".jpg", "ü.jpg"], random)))
        if number and random.random() < 0.03:
            (place / f"image_{random.integers(10**6)}.jpg").symlink_to("/dev/null")
    spec = read_bundle(default_bundle()).spec
    return lambda: list(sampled_frames(Source("frames", str(place)).open_clip(), spec))


def _copied_bundle(folder: Path) -> Path:
    """Copy the default model by links, which is fast, and safe: a file that is changed is written anew."""
    path = folder / "bundle"
    shutil.copytree(default_bundle(), path, copy_function=os.link, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    return path


def _rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _use(path: Path) -> object:
    """Read a bundle and take a step with it."""
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.runtime.glimpse import GlimpseStream

    bundle = read_bundle(path)
    with load_model(bundle, "auto", "onnxruntime-cpu", 1) as model:
        size = model.spec.frame_size
        return GlimpseStream(model).see([np.zeros((size, size, 3), np.uint8)])


def manifest(random: Random, folder: Path) -> Callable[[], object]:
    """A bundle whose manifest is damaged, or says odd things, or whose files are not what they were."""
    path = _copied_bundle(folder)
    file = path / MANIFEST
    match random.integers(4):
        case 0:
            _rewrite(file, changed(file.read_bytes(), random))
        case 1 | 2:
            content = json.loads(file.read_bytes())
            for _ in range(random.integers(1, 4)):
                content = changed_structure(content, random)
            _rewrite(file, json.dumps(content).encode("utf-8", "surrogatepass"))
        case _:
            victim = pick([p for p in path.rglob("*") if p.is_file()], random)
            match random.integers(4):
                case 0:
                    victim.unlink()
                case 1:
                    _rewrite(victim, changed(victim.read_bytes(), random))
                case 2:
                    victim.unlink()
                    victim.symlink_to(pick(["/dev/null", "/etc/passwd", str(folder), "nowhere"], random))
                case _:
                    other = pick([p for p in path.rglob("*") if p.is_file()], random)
                    data = other.read_bytes()
                    _rewrite(victim, data)
    return lambda: _use(path)


def graph(random: Random, folder: Path) -> Callable[[], object]:
    """A bundle whose graphs were changed by someone who also mended the manifest's hashes."""
    path = _copied_bundle(folder)
    content = json.loads((path / MANIFEST).read_bytes())
    graphs = content["variants"]["fp32"]
    name = pick(list(graphs), random)
    file = path / graphs[name]["file"]
    data = file.read_bytes()
    match random.integers(4):
        case 0:
            data = (path / graphs[pick(list(graphs), random)]["file"]).read_bytes()
        case 1:
            data = _odd_onnx(data, random)
        case _:
            # What is not weights lies at the end, mostly; the weights themselves decide nothing about safety.
            cut = int(random.integers(len(data)))
            data = data[:cut] + changed(data[cut : cut + 4096], random) + data[cut + 4096 :]
    _rewrite(file, data)
    graphs[name] |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    _rewrite(path / MANIFEST, json.dumps(content).encode())
    return lambda: _use(path)


def _odd_onnx(data: bytes, random: Random) -> bytes:
    """Change a graph's structure: cycles, huge shapes, data outside of it, unknown operators."""
    import onnx

    model = onnx.load_model_from_string(data)
    nodes, weights = model.graph.node, model.graph.initializer
    node = nodes[int(random.integers(len(nodes)))]
    match random.integers(6):
        case 0:
            node.input[0] = nodes[-1].output[0]  # a cycle
        case 1:
            tensor = weights[int(random.integers(len(weights)))]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            location = pick(["/etc/passwd", "../../../../etc/passwd", "/dev/zero", "bundle.json"], random)
            tensor.external_data.add(key="location", value=location)
        case 2:
            tensor = weights[int(random.integers(len(weights)))]
            for place in range(len(tensor.dims)):
                tensor.dims[place] = int(pick([2**31, 2**62, -1, 0, 10**9], random))
        case 3:
            node.op_type = pick(["Loop", "PyOp", "NoSuchThing", "If", "Range"], random)
        case 4:
            shape = model.graph.input[0].type.tensor_type.shape
            shape.dim[-1].dim_value = int(pick([2**40, 1, 0, 99999], random))
        case _:
            del nodes[int(random.integers(len(nodes)))]
    return bytes(model.SerializeToString())


class _Runs:
    """Leaves a mark when it is unpickled."""

    def __init__(self, how: int) -> None:
        self._how = how

    def __reduce__(self) -> Any:
        command = "touch $ADAFOCUS_EDGE_FUZZ_MARKER"
        code = "open(__import__('os').environ['ADAFOCUS_EDGE_FUZZ_MARKER'], 'w')"
        return [(os.system, (command,)), (eval, (code,)), (exec, (code,))][self._how]


def checkpoint(random: Random, folder: Path) -> Callable[[], object]:
    """A checkpoint that is damaged, hostile, a bomb, or of odd weights."""
    import torch

    from tests.conftest import SMALL, weights_of
    from training.checkpoint import ModelOptions, load_model, read_checkpoint

    path = folder / "checkpoint.pth.tar"
    kept = folder.parent / "small.pth.tar"
    if not kept.exists():
        from tests.conftest import write_checkpoint

        write_checkpoint(weights_of(SMALL, 5), folder / "draft").rename(kept)
    match random.integers(6):
        case 0 | 1:
            path.write_bytes(changed(kept.read_bytes(), random))
        case 2:
            hostile = {"glancer": _Runs(int(random.integers(3))), "fc": {}}
            if random.random() < 0.5:
                path.write_bytes(pickle.dumps(hostile))
            else:
                torch.save(hostile, path)
        case 3:  # a zip whose one entry is far larger than its file
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data.pkl", bytes(1 << 27) if random.random() < 0.1 else bytes(1 << 20))
                archive.writestr(str(pick(["../../escaped", "/tmp/escaped", "archive/version"], random)), "3")
        case 4:
            content = torch.load(kept, weights_only=False)
            section = pick([name for name, part in content.items() if isinstance(part, dict) and part], random)
            name = pick(list(content[section]), random)
            odd = [torch.zeros(0), torch.zeros(1, 1, 1, 1, 1), "x", None, torch.zeros(3).to(torch.complex64), {}]
            content[section][name] = pick(odd, random)
            torch.save(content, path)
        case _:
            torch.save(
                changed_structure({"glancer": {"a": torch.zeros(2)}, "epoch": 1, "config": {"x": [1]}}, random), path
            )

    def feed() -> object:
        options = ModelOptions(patch_size=SMALL.patch_size, num_segments=SMALL.segments)
        return load_model(read_checkpoint(path), options)

    return feed


def lists(random: Random, folder: Path) -> Callable[[], object]:
    """Split lists, CSVs, class files, lists of sources, configurations, reports."""
    from adafocus_edge.benchmark.compare import Limits, compare, read_report
    from adafocus_edge.benchmark.tables import markdown
    from adafocus_edge.evaluation.dataset import read_data
    from adafocus_edge.media.sources import find_sources

    classes = ("fight", "no_fight")
    clip = next(FIGHTS.glob("*/*.mp4"))
    texts = {
        "clips.csv": f"video,class,source\n{clip},fight,a\n{clip},no_fight,b\n",
        "split.txt": "a/b 30 0\nc 12 1\nd e 99 0 1\n",
        "classes.txt": "fight\nno_fight\n",
        "list.streams": f"yard={clip}\n# a comment\nrtsp://10.0.0.1/a\n",
        "stream.toml": 'glimpse-fps = 4.0\n[[source]]\nname = "a"\naddress = "a.mp4"\npaused = true\n'
        "masks = [[[0, 0.5], [1, 0], [0.75, 1]]]\n[[event]]\nlabel = 'fight'\nthreshold = 0.5\nfor-s = 2\n",
        "report.json": (ROOT / "benchmarks" / "results" / "front-default.json").read_text(encoding="utf-8"),
    }
    name = pick(list(texts), random)
    path = folder / name
    if name == "report.json" and random.random() < 0.7:
        text = json.dumps(changed_structure(json.loads(texts[name]), random))
    else:
        text = changed_text(texts[name], random)
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(changed(data, random) if random.random() < 0.3 else data)
    feeds: dict[str, Callable[[], object]] = {
        "clips.csv": lambda: read_data(path, classes),
        "split.txt": lambda: read_data(path, classes, folder),
        "classes.txt": lambda: read_classes(path),
        "list.streams": lambda: find_sources([str(path)]),
        "stream.toml": lambda: _parse_config(path),
        "report.json": lambda: (compare(read_report(path), read_report(path), Limits()), markdown(read_report(path))),
    }
    return feeds[name]


def _parse_config(path: Path) -> object:
    """Let the command line read a configuration, without running anything."""
    import typer

    from adafocus_edge.cli.app import app

    command: Any = typer.main.get_command(app)
    try:
        with command.commands["classify"].make_context("classify", ["--config", str(path), "a.mp4"]) as context:
            return context.params
    except Exception as error:
        if hasattr(error, "format_message"):  # what Typer says of wrong usage is one line, too
            raise AdaFocusError(str(error.format_message())) from None
        raise


_server: list[tuple[subprocess.Popen[bytes], int]] = []
"""The page's server of this process, and its port."""
REQUESTS = (
    "GET /api/status HTTP/1.1", "GET /api/results?source=film&limit=3 HTTP/1.1", "GET /api/events HTTP/1.1",
    "GET /api/streams/film/picture.jpg HTTP/1.1", "GET /page/app.js HTTP/1.1", "GET /metrics HTTP/1.1",
    "GET /../../etc/passwd HTTP/1.1", "GET /page/..%2f..%2f..%2fetc/passwd HTTP/1.1", "OPTIONS * HTTP/1.1",
    "POST /login HTTP/1.1", "POST /api/classify?name=a.mp4 HTTP/1.1", "DELETE /api/status HTTP/1.1",
)  # fmt: skip
HEADERS = (
    "Origin: http://elsewhere", "Content-Type: application/json", "Content-Type: multipart/form-data; boundary=x",
    "Transfer-Encoding: chunked", "Content-Length: 99999999999", "Content-Length: -1", "Expect: 100-continue",
    "Cookie: adafocus_session=x", "Authorization: Bearer x", "Connection: Upgrade\r\nUpgrade: websocket",
    "Range: bytes=0-,1-2", "X: " + "y" * 20_000, "Accept-Encoding: gzip;q=1e9",
)  # fmt: skip
PATIENCE_S = 20.0
ANSWER_S = 1.0
"""For an answer: what is no whole request gets none until the server gives it up."""


def requests(random: Random, folder: Path) -> Callable[[], object]:
    """Bytes that are hardly a request, to a real server, which must answer others afterwards."""
    if not _server or _server[0][0].poll() is not None:
        _server[:] = [_start_server(folder / "events")]
    process, port = _server[0]
    lines = [str(random.choice(np.array(REQUESTS, object))), f"Host: 127.0.0.1:{port}"]
    for _ in range(random.integers(0, 4)):
        lines.append(str(random.choice(np.array(HEADERS, object))))
    body = random.bytes(int(2 ** random.integers(0, 14))) if lines[0].startswith("POST") else b""
    if body and random.random() < 0.5:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode()
    data = head + b"\r\n\r\n" + body
    if random.random() < 0.7:
        cut = len(head) + 4
        data = changed(data[:cut], random) + data[cut:]
    del folder

    def feed() -> object:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(ANSWER_S)
            answer = connection.recv(4096)
            if answer.startswith(b"HTTP/1.1 5") and not answer.startswith((b"HTTP/1.1 501", b"HTTP/1.1 503")):
                raise RuntimeError(f"answered {answer[:200]!r} to {data[:400]!r}")
            if b"root:" in answer:
                raise RuntimeError(f"gave a file away to {data[:400]!r}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE_S) as answer_to_others:
            if process.poll() is not None:
                raise RuntimeError(f"ended after {data[:400]!r}")
            return answer_to_others.read()

    return feed


def _end_with_parent() -> None:
    """Let a child be killed when its parent is: Linux' PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _start_server(events: Path) -> tuple[subprocess.Popen[bytes], int]:
    from tests.support.streams import free_port

    port = free_port()
    clip = next(FIGHTS.glob("*/*.mp4"))
    events.mkdir(parents=True, exist_ok=True)
    config = events / "stream.toml"
    config.write_text(f'[[source]]\nname = "film"\naddress = "{clip}"\n[[event]]\nlabel = "fight"\nthreshold = 0.5\n')
    command = [sys.executable, "-m", "adafocus_edge", "serve", "--port", port, "--config", config, "--edit"]
    process = subprocess.Popen(
        [*map(str, command), "--loop", "--quiet", "--threads", "1", "--events", str(events)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - it calls the kernel only
    )
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
            return process, port
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


def api(examples: int, seed: int, folder: Path) -> dict[str, Any]:
    """Let Schemathesis hold a server of the page to what its OpenAPI description says; return Schemathesis' report.

    Args:
        examples: requests by chance for each operation, at most; what the description's edges give comes on top.
        seed: of the chance.
        folder: for the report.
    """
    process, port = _start_server(folder / "events")
    settings, report = folder / "schemathesis.toml", folder / "schemathesis.json"
    # The refusals of a server that is busy, or whose disk is full: each operation's description says which it may give.
    settings.write_text('[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 507]\n')
    try:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("st"), "--config-file", settings, "run",
                f"http://127.0.0.1:{port}/api/openapi.json", "--max-examples", str(examples), "--seed", str(seed),
                # They have no end.
                "--exclude-path", "/api/live", "--exclude-path", "/api/streams/{name}/video.mjpeg",
                # Of what is described as a video or a picture, most by chance is none.
                "--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--no-color",
                "--generation-database", "none", "--report-json-path", report,
            ],
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not report.is_file():
            raise RuntimeError(done.stdout + done.stderr)
        found: dict[str, Any] = json.loads(report.read_text())
        return {**found, "alive": process.poll() is None, "text": done.stdout}
    finally:
        process.kill()
        process.wait()


TARGETS: dict[str, Callable[[Random, Path], Callable[[], object]]] = {
    "video": video,
    "frames": frames,
    "manifest": manifest,
    "graph": graph,
    "checkpoint": checkpoint,
    "lists": lists,
    "requests": requests,
}
"""What makes an input in a folder, and returns what feeds it to the product."""
