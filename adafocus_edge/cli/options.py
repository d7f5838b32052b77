"""The options that `classify` on live sources and `serve` share, and the file they may stand in (``--config``)."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from adafocus_edge.backends.base import ConvSearch
from adafocus_edge.cli.process import set_debug
from adafocus_edge.errors import UsageError
from adafocus_edge.live.settings import LiveArguments
from adafocus_edge.system.addresses import shown_argument
from adafocus_edge.system.files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


LIVE_OPTIONS: dict[str, Any] = {
    "glimpse_fps": typer.Option(min=0.01, max=1000.0, help="Glimpses per second of a live source. [default: 2]"),
    "duration": typer.Option(min=0.0, help="Seconds to run. [default: until told]"),
    "overlap": typer.Option(min=1, help="Staggered windows per source: a result every T/K glimpses. [default: 1]"),
    "smooth": typer.Option(min=1, max=1_000_000, help="Windows to average results over. [default: 1]"),
    "event": typer.Option(help="Tell events: LABEL=THRESHOLD,for=SECONDS,cooldown=SECONDS. May be given again."),
    "drop": typer.Option(
        help="What to leave out when the model is slower. [default: oldest; never for files as fast as possible]"
    ),
    "waiting": typer.Option(min=1, help="Frames that may wait per source. [default: 2]"),
    "realtime": typer.Option("--realtime", help="Play files at their own pace, as live sources."),
    "loop": typer.Option("--loop", help="Play files again and again."),
    "retries": typer.Option(
        help="How often in a row to try a lost source again: a number, or `forever`. [default: forever, but a lone "
        "source that was never there fails at once]"
    ),
    "camera_size": typer.Option(help="Ask cameras for this size, such as 1280x720."),
    "camera_fps": typer.Option(min=0.1, help="Ask cameras for this frame rate."),
    "camera_format": typer.Option(help="Ask cameras for this format, such as MJPG."),
    "record": typer.Option(help="Folder for MP4s of live sources with the patch drawn on them."),
    "rotate_mb": typer.Option(min=0.1, help="Begin a new MP4, results or log file at this size. [default: 100]"),
    "rotate_minutes": typer.Option(min=0.05, help="Begin a new MP4 after this time. [default: 60]"),
    "keep": typer.Option(min=1, help="Files to keep of each that rotates. [default: 10; all MP4s]"),
    "snapshots": typer.Option(help="Folder for a picture of each event."),
    "webhook": typer.Option(help="POST each event, or without --event each result, to this address as JSON."),
    "webhook_header": typer.Option(help="A header to send with it, such as 'Authorization: Bearer ...'."),
    "mqtt": typer.Option(help="Publish to a broker: mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC."),
    "status": typer.Option(min=0.1, help="Print how it is going every so many seconds, in a pipe, too."),
    "log": typer.Option(help="Also write what is said on stderr to this file, with times."),
}
"""Typer's option for each field of :class:`LiveArguments`."""


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a TOML file the defaults of this command; what is given on the command line counts more.

    Raises ``UsageError`` that names the file and the key.
    """
    if path is None:
        return None
    try:
        content = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # what tomllib says of bad TOML, and Python of endless numbers
        raise UsageError(f"--config {path}: not TOML ({error})") from None
    known: dict[str, Any] = {}
    for parameter in context.command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            known[name.lstrip("-")] = parameter
    values: dict[str, Any] = {}
    for given, value in content.items():
        key = given.replace("_", "-")
        if key not in known or key in ("config", "help"):
            close = difflib.get_close_matches(key, known, 1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise UsageError(f"--config {path}: no option {shown_argument(given)!r}{hint}")
        parameter = known[key]
        many = parameter.multiple or parameter.nargs == -1
        if isinstance(value, list) != many:
            raise UsageError(f"--config {path}: {given} takes {'a list' if many else 'one value'}")
        if isinstance(value, dict):
            raise UsageError(f"--config {path}: no option {shown_argument(given)!r}")
        if isinstance(value, bool) and not getattr(parameter, "is_flag", False):
            raise UsageError(f"--config {path}: {given} takes a value, not {str(value).lower()}")
        if many:
            values[parameter.name] = [_entry(path, key, entry) for entry in value]
        else:
            values[parameter.name] = value if isinstance(value, bool) else str(value)
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _entry(path: Path, key: str, entry: Any) -> str:
    """Turn one ``[[source]]`` or ``[[event]]`` into what stands for it on a command line."""
    if not isinstance(entry, dict):
        return str(entry)
    allowed = {"source": ("name", "address"), "event": ("label", "threshold", "for-s", "cooldown-s")}.get(key, ())
    entry = {name.replace("_", "-"): value for name, value in entry.items()}
    needed = "address" if key == "source" else "label"
    wrong = next((name for name in entry if name not in allowed), None)
    if wrong is not None or needed not in entry:
        what = f"no key {shown_argument(wrong)!r} in" if wrong is not None else f"{needed} is missing in"
        raise UsageError(f"--config {path}: {what} [[{key}]]; it takes {', '.join(allowed) or 'no table'}")
    if key == "source":
        return f"{entry['name']}={entry['address']}" if "name" in entry else str(entry["address"])
    text = str(entry["label"]) + (f"={entry['threshold']}" if "threshold" in entry else "")
    more = (f",{name}={entry[f'{name}-s']}" for name in ("for", "cooldown") if f"{name}-s" in entry)
    return text + "".join(more)


Config = Annotated[
    Path | None,
    typer.Option(is_eager=True, callback=read_config, help="TOML file with options of this command, named as here."),
]


def with_live_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that takes ``live: LiveArguments`` all of its fields as options."""

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        live = LiveArguments(**{name: given.pop(name) for name in names})
        verb(**given, live=live)

    hints = get_type_hints(LiveArguments)
    fields = dataclasses.fields(LiveArguments)
    names = [field.name for field in fields]
    own_hints = get_type_hints(verb, include_extras=True)
    own = [
        parameter.replace(annotation=own_hints[parameter.name])
        for parameter in inspect.signature(verb).parameters.values()
        if parameter.name != "live"
    ]
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[hints[field.name], LIVE_OPTIONS[field.name]],
        )
        for field in fields
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    del run.__wrapped__
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
    return run


class BackendName(str, Enum):
    """Values of ``--backend``."""

    AUTO = "auto"
    CPU = "onnxruntime-cpu"
    CUDA = "onnxruntime-cuda"
    ORT_TENSORRT = "onnxruntime-tensorrt"
    TENSORRT = "tensorrt"


class DecoderName(str, Enum):
    """Values of ``--decoder``."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class PatchesName(str, Enum):
    """Values of ``--patches``."""

    POLICY = "policy"
    CENTRE = "centre"
    RANDOM = "random"


class ScheduleName(str, Enum):
    """Values of ``--schedule``."""

    AUTO = "auto"
    CLIP = "clip"
    STREAM = "stream"


DEFAULT_MODEL_NOTE = (
    "the default model: `fight` or `no_fight` in surveillance video (its MODEL_CARD.md says what it is not for)"
)


VideoTrack = Annotated[
    int | None,
    typer.Option(
        min=0, help="Video track to read, from 0 as in FFmpeg's v:N. [default: the one with the main picture]"
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: usable cores]")]
ConvSearchName = Annotated[
    ConvSearch,
    typer.Option(
        "--conv-search",
        help="Choose convolution algorithms of ONNX Runtime on a GPU by heuristics, or by timing them all at start-up.",
    ),
]
RunBundle = Annotated[
    Path | None, typer.Option(help="Folder of the bundle to run. [default: the model that ships with the product]")
]
Backend = Annotated[BackendName, typer.Option(help="What runs the graphs.")]
Variant = Annotated[str, typer.Option(help="Which of the bundle's variants.")]
ResultsOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write results here: JSON lines, or CSV if so named.")
]
Decoder = Annotated[
    DecoderName,
    typer.Option(help="Decode on the CPU, on the NVIDIA GPU that runs the model, or auto: there, where it can."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]
Exit = Annotated[
    str | None,
    typer.Option("--exit", help="Stop early by one of the bundle's threshold sets: NAME, or NAME/coarse-to-fine."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=set_debug)]


Backends = Annotated[str | None, typer.Option(help="By commas. [default: those that can run here]")]
Variants = Annotated[str | None, typer.Option(help="By commas. [default: those made for each backend]")]
Exits = Annotated[str | None, typer.Option(help="Threshold sets by commas, or none. [default: all of the bundle]")]
ThreadCounts = Annotated[str | None, typer.Option(help="CPU threads, by commas. [default: usable cores]")]
Rounds = Annotated[int, typer.Option(min=1, help="In each of which every setting has its turn.")]
ClipCount = Annotated[int, typer.Option(min=1, help="Clips to judge accuracy on, at most.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the choice of clips and of the order in a round.")]
LabelledData = Annotated[
    Path | None, typer.Option(help="Folder with a sub-folder per class; CSV `video,class`; or a split list.")
]
SplitFrames = Annotated[Path | None, typer.Option(help="For a split list: the folder its paths lie in.")]
