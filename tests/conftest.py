"""What several tests share: golden outputs, checkpoints with deterministic weights, bundles made of them, videos."""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adafocus_edge.model.spec import ModelSpec
from benchmarks.official import CASES, CHECKPOINT, cached_export, cached_folder
from tests.support.prefork import run_module

# PyTorch takes three seconds to import, NumPy's users one: nothing that every run of pytest imports may need them.
if TYPE_CHECKING:
    import numpy as np
    import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: each computes on one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs so, and every process of the tests would inherit it: none could be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
CLIPS = ROOT / "tests" / "clips"
GOLDEN_FRAMES = {"actnet128": ROOT / "export" / "frames", "actnet96": GOLDEN / "actnet96"}
GOLDEN_CASES = {case: (*CASES[case], frames) for case, frames in GOLDEN_FRAMES.items()}
"""Seed, patch size and frames of each golden case."""


def official_spec(**changes: Any) -> ModelSpec:
    """The official ActivityNet model, with changes."""
    spec: dict[str, Any] = dict(
        glancer="mobilenet_v2",
        focuser="resnet50",
        glance_dim=1280,
        focus_dim=2048,
        frame_size=224,
        glance_size=224,
        patch_size=128,
        grid=7,
        segments=16,
        policy_state=1024,
        classifier_state=1024,
        classes=200,
    )
    return ModelSpec(**(spec | changes))


SMALL = official_spec(
    focuser="resnet18",
    focus_dim=512,
    glance_size=96,
    patch_size=160,
    grid=5,
    segments=8,
    policy_state=64,
    classifier_state=96,
    classes=7,
    with_glancer=False,
    policy_conv=False,
)
"""A model that differs from the official one wherever it can."""


def weights_of(spec: ModelSpec, seed: int) -> dict[str, torch.Tensor]:
    """Deterministic weights under the official names for any model."""
    import torch
    from weights import values

    from training.model import AdaFocus

    made = {}
    for name, value in AdaFocus(spec).state_dict().items():
        made[name] = torch.from_numpy(values(name.replace(".policy_old.", ".policy."), tuple(value.shape), seed))
    return made


def write_checkpoint(weights: dict[str, torch.Tensor], path: Path, **more: Any) -> Path:
    """Write weights in the official layout."""
    import numpy as np
    import torch
    from official_checkpoint import SECTIONS

    sections = {
        section: {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        for section, prefix in SECTIONS.items()
    }
    torch.save({**sections, "epoch": 51, "acc": np.float64(71.0), "optimizer": None, **more}, path)
    return path


def edge(*arguments: object, cwd: Path | None = None, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    words = [str(argument) for argument in arguments]
    return run_module(
        "adafocus_edge", words, cwd, {**os.environ, "COLUMNS": "200", **{k: str(v) for k, v in environment.items()}},
        torch=words[:1] in (["train"], ["export"]) or any(".pth" in word for word in words), timeout_s=600,
    )  # fmt: skip


def one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a command failed as promised: its exit code, one line on stderr, and what that line says."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("backend:")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


BACKEND_SKIP = "this backend cannot run here: "
"""What the reason of a skip begins with that is no failure where a GPU is required, as long as another backend runs."""


def required_gpu_failure(skipped: list[str], passed_on_gpu: int) -> str | None:
    """Say why a run that requires a GPU has failed although no test did, or return None.

    Args:
        skipped: reasons of the tests that skipped themselves.
        passed_on_gpu: how many tests of the GPU passed.
    """
    if others := [reason for reason in skipped if BACKEND_SKIP not in reason]:
        return f"a GPU is required, but tests were skipped: {others[0]}"
    if skipped and not passed_on_gpu:
        return f"a GPU is required, but no backend ran on it: {skipped[0]}"
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where a GPU is required, a test that skips itself fails the run, unless only one of several backends cannot."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("ADAFOCUS_EDGE_REQUIRE_GPU") != "1" or reporter is None:
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", ())]
    passed = sum("gpu" in report.keywords for report in reporter.stats.get("passed", ()))
    if why := required_gpu_failure(reasons, passed):
        reporter.write_line(why, red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of the GPU is skipped where there is none, unless a GPU is required."""
    if not item.get_closest_marker("gpu"):
        return
    from adafocus_edge.backends.onnxruntime import cuda_obstacle

    if obstacle := cuda_obstacle():
        if os.environ.get("ADAFOCUS_EDGE_REQUIRE_GPU") == "1":
            pytest.fail(obstacle.why)
        pytest.skip(obstacle.why)


class FailuresAtOnce:
    """Prints why a test failed, and where a process crashed, at once: a long run may be stopped before the summary.

    Args:
        reporter: pytest's own.
        crashes: a folder; each process of the tests writes the stacks of its threads there if it crashes.
    """

    def __init__(self, reporter: Any, crashes: Path) -> None:
        self._reporter = reporter
        self._crashes = crashes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the test and the last line of its error."""
        if report.failed:
            why = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] or [report.longreprtext]
            self._reporter.ensure_newline()
            self._reporter.write_line(f"{report.nodeid}, {report.when}: {why[0][1:300].strip()}", red=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a process of the tests where it writes to."""
        node.workerinput["crash"] = str(self._crashes / node.gateway.id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Print what a process that crashed was doing."""
        for line in crash_lines(Path(node.workerinput["crash"])):
            self._reporter.write_line(f"{node.gateway.id}: {line}", red=True)


def crash_lines(stacks: Path) -> list[str]:
    """What of the stacks of a crashed process tells where it was: the signal, and the thread that it came to."""
    parts = stacks.read_text().split("\n\n") if stacks.is_file() else []
    current = [line for part in parts if part.startswith("Current thread") for line in part.splitlines()[:13]]
    return [*(parts[:1] if current else []), *current]


@pytest.hookimpl(trylast=True)  # pytest's reporter is made by then, and its own file for crashes chosen
def pytest_configure(config: pytest.Config) -> None:
    """Print failures at once, in the process that prints."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if crash := getattr(config, "workerinput", {}).get("crash"):
        faulthandler.enable(os.open(crash, os.O_WRONLY | os.O_CREAT))  # open until the process has ended
    elif reporter is not None:
        crashes = tempfile.TemporaryDirectory(prefix="adafocus-edge-crashes-")
        config.add_cleanup(crashes.cleanup)
        config.pluginmanager.register(FailuresAtOnce(reporter, Path(crashes.name)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Fail a test that leaves its process with real-time priority (``usual_scheduling``, tests/support/videos.py), or
    with a log that is silent in the tests after it.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail("the test left this process with real-time priority")
    log = logging.getLogger("adafocus_edge")
    found = logging.root.manager.disable, logging.root.level, log.level, log.propagate, log.disabled
    usual = logging.NOTSET, logging.WARNING, logging.NOTSET, True, False
    if found != usual:
        logging.root.setLevel(logging.WARNING)
        log.setLevel(logging.NOTSET)
        log.propagate, log.disabled = True, False
        logging.disable(logging.NOTSET)
        pytest.fail(f"the test, or a thread that it left behind, changed the log: {found}, usually {usual}")


LONGEST = (
    "live/test_live", "export/test_v2", "calibration/test_calibration", "live/test_copy", "benchmark/test_haystack",
    "training/test_train", "export/test_export", "robustness/test_faults", "serve/test_serve", "backends/test_triton",
    "release/test_install", "runtime/test_archive", "backends/test_build", "live/test_streams", "api/test_api",
    "cli/test_cli", "evaluation/test_evaluate", "training/test_all_stages", "backends/test_nvdec",
)  # fmt: skip
"""Files whose tests take longest, which begin first where several processes share them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, a file each at a time, the longest files come first."""
    if not hasattr(config, "workerinput"):
        return
    place = {name: number for number, name in enumerate(LONGEST)}

    def place_of(item: pytest.Item) -> int:
        return place.get(item.path.relative_to(ROOT / "tests").with_suffix("").as_posix(), len(LONGEST))

    items.sort(key=place_of)


def chosen_words(config: pytest.Config) -> list[str]:
    """Words of ``-k``, any of which a test must have in its name; none where files cannot be left out by them."""
    words = re.findall(r"[^\s()]+", str(config.getoption("keyword", "")).lower())
    operators = {"and", "or"}
    anywhere = " ".join((*GOLDEN_CASES, config.rootpath.name)).lower()
    if any(word == "not" or (word not in operators and word in anywhere) for word in words):
        return []  # what is not wanted, or what may name a test of any file
    return [word for word in words if word not in operators]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Report that files may be left out."""
    words = chosen_words(config)
    return [f"files without {' or '.join(map(repr, words))} in path or text: left out"] if words else []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that do not hold a word of ``-k``: importing them all takes longer than most tests."""
    words = chosen_words(config)
    if not words or collection_path.suffix != ".py":
        return None
    text = (str(collection_path.relative_to(ROOT)) + collection_path.read_text()).lower()
    return None if any(word in text for word in words) else True


@pytest.fixture
def threads_begun(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Threads that the test's own thread begins; what earlier tests left may begin and end others meanwhile."""
    begun: list[threading.Thread] = []
    mine, start = threading.current_thread(), threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        if threading.current_thread() is mine:
            begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return begun


@pytest.fixture(scope="session")
def small_weights() -> dict[str, torch.Tensor]:
    return weights_of(SMALL, seed=5)


def make_small(folder: Path) -> None:
    """Write the small model's checkpoint and class names, and export it by the command line with its joined step."""
    checkpoint = write_checkpoint(weights_of(SMALL, seed=5), folder / "small.pth.tar")
    classes = folder / "classInd.txt"
    classes.write_text("".join(f"activity {number}\n" for number in range(SMALL.classes)))
    done = edge(
        "export", checkpoint, "-o", folder / "bundle", "--patch-size", SMALL.patch_size, "--segments", SMALL.segments,
        "--classes", classes, "--fused",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's checkpoint; ``classInd.txt`` beside it, and its bundle."""
    made = cached_folder("small", make_small, repr(SMALL))
    folder = tmp_path_factory.mktemp("small")
    return Path(shutil.copytree(made, folder, dirs_exist_ok=True)) / "small.pth.tar"


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path) -> Path:
    """The small model, exported by the command line with its joined step."""
    return small_checkpoint.with_name("bundle")


@pytest.fixture(scope="module")
def v2_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AdaFocus V2, exported by the command line once for this code; a copy, with its checkpoint beside it."""
    from tests.support import small_v2

    made = cached_folder("small-v2", small_v2.make_small_v2, Path(small_v2.__file__).read_text())
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("v2"), dirs_exist_ok=True)) / "bundle"


@pytest.fixture(scope="session", params=sorted(GOLDEN_CASES))
def golden(request: pytest.FixtureRequest) -> str:
    """Name of a golden case."""
    return str(request.param)


@pytest.fixture(scope="session")
def golden_outputs(golden: str) -> dict[str, np.ndarray]:
    import numpy as np

    with np.load(GOLDEN / f"golden_{golden}.npz") as outputs:
        return dict(outputs)


@pytest.fixture(scope="session")
def golden_frames(golden: str) -> Path:
    return GOLDEN_CASES[golden][2]


@pytest.fixture(scope="session")
def golden_checkpoint(golden: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(cached_export(golden) / CHECKPOINT, tmp_path_factory.mktemp(golden)))


@pytest.fixture(scope="session")
def golden_bundle(golden: str, golden_checkpoint: Path) -> Path:
    """A golden case, exported by the command line once for this code; a copy, so that a test may write to it."""
    return Path(shutil.copytree(cached_export(golden) / "bundle", golden_checkpoint.with_name("bundle")))
