"""What the command line offers: help, examples, names old and new, completion; and that options have one home."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

import training.options
from adafocus_edge.backends.registry import ALIASES, BACKENDS
from adafocus_edge.backends.tensorrt.build import BuildRequest
from adafocus_edge.benchmark.settings import BenchmarkOptions, CompareOptions, TuneOptions
from adafocus_edge.bundle.engines import BuildOptions
from adafocus_edge.cli import app as cli
from adafocus_edge.cli.help import choices, default, described, is_argument, panel_of, split_help
from adafocus_edge.cli.serve import _all_sources
from adafocus_edge.evaluation.settings import EvaluateOptions
from adafocus_edge.live.settings import LiveArguments
from adafocus_edge.model.exits import CONFIDENCES, ORDERS
from adafocus_edge.runtime.settings import ClassifyOptions, RunOptions
from adafocus_edge.serve.options import ServeOptions
from adafocus_edge.system.options import Option
from calibration.ranges import METHODS
from calibration.variants import VARIANTS
from tests.cli.test_cli import without
from tests.conftest import ROOT, edge, one_line_error
from training.layouts import LAYOUTS
from training.prepare import PrepareOptions

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
CLIP = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
REQUESTS: dict[str, tuple[type, ...]] = {
    "classify": (ClassifyOptions, LiveArguments),
    "serve": (ServeOptions, RunOptions, LiveArguments),
    "evaluate": (EvaluateOptions,),
    "benchmark": (BenchmarkOptions, CompareOptions),
    "tune": (TuneOptions,),
}


def help_of(*arguments: str) -> str:
    """Return a help as it is on 80 columns."""
    done = CliRunner().invoke(cli.app, [*arguments], prog_name="adafocus-edge")
    assert done.exit_code == 0, done.output
    return done.output


def option_of(verb: str, name: str) -> Any:
    return next(one for one in COMMANDS[verb].params if name in (one.name, *one.opts))


def parsed(verb: str, *arguments: object) -> Any:
    """Return the context of a command line that is parsed and not run."""
    return COMMANDS[verb].make_context(verb, [*map(str, arguments)])


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_a_help_of_the_terminals_width_with_examples_that_parse(verb: str) -> None:
    shown = help_of(verb, "-h")
    assert shown == help_of(verb, "--help")
    assert shown.startswith(f"Usage: adafocus-edge {verb} [OPTIONS]")
    assert "\nGeneral:\n" in shown
    too_long = [line for line in shown.splitlines() if len(line) > 80 and "://" not in line]
    assert too_long == []
    _, examples = split_help(COMMANDS[verb].help)
    assert examples
    for line in examples.splitlines():
        program, name, *arguments = shlex.split(line, comments=True)
        assert (program, name) == ("adafocus-edge", verb)
        parsed(verb, *arguments)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_option_has_a_panel_and_a_sentence(verb: str) -> None:
    for one in COMMANDS[verb].params:
        if getattr(one, "hidden", False):
            continue
        assert re.match(r"[A-Z].*\.$", one.help, re.DOTALL), one.help
        assert "<" not in described(one), one.name
        assert is_argument(one) or panel_of(one)


def test_the_programs_help_lists_all_verbs_by_panel() -> None:
    shown = help_of("--help")
    assert shown == help_of("-h")
    for panel in ("Run a model", "Make a model", "Suit it to a device", "Measure and inspect", "Options"):
        assert f"\n{panel}:\n" in shown
    assert [name for name in COMMANDS if not re.search(rf"^  {name} +[A-Z]", shown, re.MULTILINE)] == []
    assert help_of("-V") == help_of("--version")


def test_help_takes_the_width_of_wide_terminals_up_to_a_limit() -> None:
    for columns in (80, 90, 200):
        done = edge("tune", "--help", COLUMNS=str(columns))
        widest = max(map(len, done.stdout.splitlines()))
        assert min(columns, 100) - 10 <= widest <= min(columns, 100)


def test_help_is_coloured_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    coloured = CliRunner().invoke(cli.app, ["inspect", "-h"], color=True).output
    assert "\x1b[" in coloured
    assert "\x1b[" not in CliRunner().invoke(cli.app, ["inspect", "-h"]).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in CliRunner().invoke(cli.app, ["inspect", "-h"], color=True).output


# -- one home for options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", REQUESTS)
def test_the_options_of_a_request_are_its_fields(verb: str) -> None:
    """Every field with an ``Option``, with its default, and each only once."""
    names = [one.name for one in COMMANDS[verb].params]
    assert len(set(names)) == len(names)
    for request in REQUESTS[verb]:
        hints = get_type_hints(request, include_extras=True)
        for field in dataclasses.fields(request):
            option = next((one for one in getattr(hints[field.name], "__metadata__", ()) if type(one) is Option), None)
            if option is None:
                continue
            made = option_of(verb, field.name)
            value = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            assert (made.help, panel_of(made), made.default) == (option.help, option.panel, value), field.name


def test_defaults_and_choices_of_other_packages_agree_with_theirs() -> None:
    """Packages that a device may lack are not imported for help, so these stand in the verbs, too."""
    for verb, request in (("prepare", PrepareOptions), ("build", BuildRequest), ("build", BuildOptions)):
        for field in dataclasses.fields(request):
            if field.default not in (dataclasses.MISSING, (), None):
                assert option_of(verb, field.name).default == field.default, field.name
    assert choices(option_of("prepare", "dataset")) == ["custom", *(name for name in LAYOUTS if name != "custom")]
    assert set(choices(option_of("calibrate", "method"))) == {"auto", *METHODS}
    assert choices(option_of("calibrate", "confidence")) == list(CONFIDENCES)
    assert set(option_of("calibrate", "variants").default.split(",")) == set(VARIANTS)
    assert all(name in option_of("calibrate", "orders").help for name in ORDERS)


# -- names old and new ------------------------------------------------------------------------------------------------


def test_backends_have_short_names_and_results_the_full_ones(tmp_path: Path) -> None:
    for verb in ("classify", "serve", "evaluate"):
        backend = option_of(verb, "backend")
        assert set(choices(backend)) == {"auto", *BACKENDS, *ALIASES}
        for alias, name in ALIASES.items():
            given = {"evaluate": ["--data", "x"], "classify": ["x"], "serve": []}[verb]
            assert parsed(verb, *given, "--backend", alias).params["backend"] == name
    for verb in ("benchmark", "tune"):
        assert parsed(verb, "--backends", "cuda,cpu,tensorrt,cpu").params["backends"] == (
            "onnxruntime-cuda", "onnxruntime-cpu", "tensorrt",
        )  # fmt: skip
    config = tmp_path / "c.toml"
    config.write_text('backend = "cpu"\n')
    done = edge("classify", CLIP, "--config", config, "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backend"] == "onnxruntime-cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("benchmark", "--backends", "abacus"), ("--backends abacus: 'abacus' must be one of onnxruntime-cpu,",)),
        (("benchmark", "--backends", ","), ("--backends is empty: give comma-separated names, or none",)),
        (("benchmark", "--segments", "4,x"), ("--segments 4,x: must be comma-separated whole numbers",)),
        (("benchmark", "--schedules", "clip,steam"), ("'steam' must be one of clip, stream",)),
        (("benchmark", "--peers", "nobody"), ("'nobody' must be one of pytorch-eager,",)),
        (("evaluate", "--data", "x", "--patches", "best"), ("'best' must be one of policy, centre, random, oracle",)),
        (("evaluate",), ("--data is missing: give a folder",)),
        (("tune", "--data", "x", "--name", "a/b"), ("--name 'a/b': must be a printable word without /",)),
        (("classify", "x.mp4", "--exit", "a", "--exit-confidence", "0.5"), ("--exit and --exit-confidence",)),
        (("classify", "x.mp4", "--backend", "abacus"), ("abacus", "onnxruntime-cpu")),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_wrong_values_name_the_option_and_what_is_allowed(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    one_line_error(edge(*arguments), 2, *words)


def test_sources_of_serve_are_given_by_position_or_as_before(tmp_path: Path) -> None:
    def sources(*arguments: object) -> list[str]:
        with parsed("serve", *arguments) as context:
            given = context.params
            return _all_sources(context, given["source"] or [], given["old_sources"] or [])

    config = tmp_path / "c.toml"
    config.write_text('max-cameras = 2\n[[source]]\nname = "gate"\naddress = "rtsp://h/x"\n')
    assert sources("0", "a=b.mp4") == ["0", "a=b.mp4"]
    assert sources("--source", "0", "--source=a=b.mp4") == ["0", "a=b.mp4"]
    assert sources("0", "--source", "1", "--overlap", "2") == ["0", "1"]
    assert sources() == []
    assert sources("--config", config) == ["gate=rtsp://h/x"]
    assert sources("--config", config, "0") == ["0"]
    assert sources("--config", config, "--source", "0") == ["0"]


def test_the_number_of_browser_cameras_has_an_old_name_too(tmp_path: Path) -> None:
    def max_cameras(*arguments: object) -> tuple[int, int | None]:
        given = parsed("serve", *arguments).params
        return given["max_cameras"], given["old_max_cameras"]

    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text("most_cameras = 3\n")
    new.write_text("max-cameras = 3\n")
    assert max_cameras() == (4, None)
    assert max_cameras("--max-cameras", 9) == (9, None)
    assert max_cameras("--most-cameras", 9) == (4, 9)
    for config in (old, new):
        assert max_cameras("--config", config) == (3, None)
        assert max_cameras("--config", config, "--max-cameras", 9) == (9, None)
    assert "--most-cameras" not in help_of("serve", "--help")


@pytest.mark.parametrize("form", [("film={}",), ("--source", "film={}")], ids=["position", "option"])
def test_serve_runs_with_a_source(form: tuple[str, ...], tmp_path: Path) -> None:
    arguments = [part.format(CLIP) for part in form]
    done = edge("serve", *arguments, "--port", 0, "--duration", 3, "--status", 1, "--json", "--most-cameras", 1)
    assert done.returncode == 0, done.stderr
    url, *status = map(json.loads, done.stdout.splitlines())
    assert url["url"].startswith("http://127.0.0.1:")
    assert any("film" in json.dumps(one) for one in status)


# -- training, completion ---------------------------------------------------------------------------------------------


def test_the_help_of_train_lists_every_option_with_its_default() -> None:
    shown = help_of("train", "--help")
    for group in training.options.GROUPS:
        assert f"\n{group}:\n" in shown
    for field in dataclasses.fields(training.options.TrainOptions):
        pattern = rf"\b{field.name}\b" if field.name in training.options.UNUSED else rf"^  {field.name}="
        assert re.search(pattern, shown, re.MULTILINE), field.name
    assert re.search(r"^  batch_size=64 +Clips per update", shown, re.MULTILINE)
    assert "README" not in shown
    assert "``" not in shown


def test_the_help_of_train_without_its_extra_says_how_to_install_it() -> None:
    done = without({"hydra", "torch", "omegaconf"}, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: adafocus-edge train" in done.stdout
    assert "pip install 'adafocus-edge[train]'" in " ".join(done.stdout.split()) or "batch_size=64" in done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("adafocus-edge cl", {"classify"}),
        ("adafocus-edge classify --backe", {"--backend"}),
        ("adafocus-edge classify --backend cu", {"cuda"}),
        ("adafocus-edge tune --percentile p", {"p95", "p99"}),
    ],
)
def test_the_shell_completes_verbs_options_and_choices(words: str, found: set[str]) -> None:
    done = edge(_ADAFOCUS_EDGE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == found


def test_the_program_alone_shows_its_help_as_an_error() -> None:
    alone, asked = edge(), edge("--help")
    assert (alone.returncode, alone.stdout) == (2, "")
    assert asked.stdout.startswith("Usage: adafocus-edge [OPTIONS] VERB [ARGS]...\n")
    assert alone.stderr.rstrip() == f"{asked.stdout.rstrip()}\nerror: no verb given (see --help)"


def test_a_verb_imports_no_other_verb() -> None:
    code = (
        "import sys, typer; from adafocus_edge.cli.app import app; root = typer.main.get_command(app)\n"
        "command = root.get_command(None, 'inspect'); assert command.name == 'inspect'\n"
        "print(sorted(n for n in sys.modules if n.startswith('adafocus_edge.cli.') and n.split('.')[2] in sys.argv))"
    )
    command = [sys.executable, "-c", code, *(name.replace("-", "_") for name in COMMANDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['adafocus_edge.cli.inspect']\n"


def test_the_completion_script_is_shown() -> None:
    done = edge("--show-completion", "bash")
    assert done.returncode == 0, done.stderr
    assert "_ADAFOCUS_EDGE_COMPLETE=complete_bash" in done.stdout
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_help_imports_no_request_of_a_verb_that_is_slow() -> None:
    """The dataclasses of options stand in modules that import neither NumPy nor msgspec."""
    code = (
        "import sys, adafocus_edge.cli.app; print([n for n in ('numpy', 'msgspec', 'av', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_literals_are_the_only_choices() -> None:
    for verb, command in COMMANDS.items():
        for one in command.params:
            annotation = one.type_descriptor.annotation
            kinds = [annotation, *get_args(annotation)]
            assert not [kind for kind in kinds if getattr(kind, "__members__", None)], f"{verb} {one.name}: an enum"
            assert default(one) is not None
