"""What the world does to a run: it is killed, disks are full, clocks jump, others write the same bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from adafocus_edge.bundle.engines import read_engines
from adafocus_edge.bundle.manifest import MANIFEST, Bundle, encode_manifest
from adafocus_edge.bundle.store import (
    LOCK,
    copied_bundle,
    copy_bundle,
    default_bundle,
    new_bundle,
    read_bundle,
    update_bundle,
)
from adafocus_edge.errors import BundleError
from adafocus_edge.live.events import EventDetector, EventRule
from adafocus_edge.live.sinks.recorder import Recorder
from adafocus_edge.live.sinks.snapshots import Snapshots
from adafocus_edge.system.files import draft_file, locked, write_text
from tests.conftest import ROOT, SMALL, edge, one_line_error
from tests.support.live_parts import SPEC, WALL_S, event, live_frame, until
from tests.support.prefork import run_module

FIGHTS = ROOT / "tests" / "fights"
CLIPS = [FIGHTS / "fight" / "fi013.mp4", FIGHTS / "no_fight" / "nofi018.mp4"]
FP16 = "--clips 4 --samples 8 --method minmax --threads 2 --variants fp16 --exit-goal".split()
CALIBRATE = [*FP16, "a=steps:4"]
MEASURE = "--backends onnxruntime-cpu --variants fp32 --segments 8 --clips 4".split()
TUNE = [*MEASURE, *"--rounds 1 --min-accuracy 1".split()]
BENCHMARK = [*MEASURE, *"--rounds 2 --schedules clip --peers none".split()]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a Linux system's way")


def started(*command: object, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, told = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, told)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(folder: Path) -> list[str]:
    """What is left of drafts, locks and working folders."""
    return [str(path) for path in folder.rglob(".*")]


# -- kill -9 -----------------------------------------------------------------------------------------------------------


class Walk:
    """Runs a command again and again, killed at another of its changes to a folder each time, and then to its end.

    Args:
        folder: where all of its output goes.
        command: the verb and its options.
        before: makes what is there before each run.
        environment: for the runs.
    """

    def __init__(
        self, folder: Path, command: list[object], before: Callable[[], Any] = lambda: None, **environment: object
    ) -> None:
        self.folder, self.command, self.before, self.environment = folder, command, before, environment

    def run(self, number: int) -> subprocess.CompletedProcess[str]:
        log = self.folder.parent / "changes.log"
        arguments = [str(part) for part in (self.folder, number, log, *self.command)]
        environment = {**os.environ, **{name: str(value) for name, value in self.environment.items()}}
        torch = self.command[0] == "export"
        done = run_module("tests.support.dies", arguments, ROOT, environment, torch=torch, timeout_s=300)
        if number == 0:
            assert done.returncode == 0, done.stderr
            self.changes = log.read_text().splitlines()
        return done

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.before()

    def over(self, points: int, check: Callable[[], Any], result: Callable[[], Any], *, left: int = 0) -> None:
        """Kill at so many places, evenly spread over an unbroken run.

        Args:
            points: how many.
            check: of what a killed run leaves.
            result: what a run that was finished gives; all must give the same.
            left: hidden files that may stay for each killed run.
        """
        self.fresh()
        self.run(0)
        expected = result()
        total = len(self.changes)
        for point in sorted({round(1 + (total - 1) * number / (points - 1)) for number in range(points)}):
            self.fresh()
            done = self.run(point)
            assert done.returncode == -signal.SIGKILL, (point, done.stderr)
            check()
            self.run(0)
            assert result() == expected, (point, total)
            assert len(hidden(self.folder)) <= left, (point, hidden(self.folder))


@LINUX
def test_a_killed_preparation_is_finished_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out" / "data"
    options = "--size 32 --fps 1 --workers 1 --quiet".split()

    def check() -> None:
        for frames in out.glob("frames/*/[!.]*"):  # whole, or not there
            assert (frames / "fps.txt").exists()
            assert all(path.stat().st_size for path in frames.iterdir())
        for text in out.glob("*.txt"):
            assert text.read_text().endswith("\n")

    Walk(out.parent, ["prepare", FIGHTS, "-o", out, *options]).over(5, check, lambda: content(out))


GRAPHS = default_bundle() / "fp32"
"""Stand for what PyTorch's exporter makes, which takes long."""


@LINUX
def test_a_killed_export_leaves_the_old_bundle_or_the_new_one(small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "bundle"
    command = ["export", small_checkpoint, "-o", out, "--patch-size", SMALL.patch_size, "--segments", SMALL.segments]

    def result() -> Any:
        manifest = read_bundle(out).manifest
        return manifest.model, manifest.variants, manifest.classes_sha256

    def whole() -> None:
        assert read_bundle(out).manifest.model.classes in (2, SMALL.classes)

    walk = Walk(
        out.parent, [*command, "--force", "-q"], lambda: copy_bundle(default_bundle(), out), TEST_EXPORTED=GRAPHS
    )
    walk.over(3, whole, result)
    assert result()[0].classes == SMALL.classes


@LINUX
def test_a_killed_calibration_is_finished_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out" / "bundle"

    def result() -> Any:
        found = read_bundle(out).manifest
        settings = {
            name: row["settings"] for name, row in found.reports["calibration"]["rows"].items() if name != "fp32"
        }
        return found.variants, found.thresholds, settings, found.reports["calibration"]["judged"]

    def check() -> None:
        if out.exists():
            assert "fp32" in read_bundle(out).manifest.variants

    Walk(out.parent, ["calibrate", "--data", FIGHTS, "-o", out, *CALIBRATE, "-q"]).over(3, check, result)


@LINUX
def test_a_killed_tuning_leaves_the_bundle_whole(tmp_path: Path) -> None:
    out = tmp_path / "out" / "bundle"

    def result() -> Any:
        found = read_bundle(out)
        assert found.profile("tuned").top1 > 50
        return found.manifest.variants, list(found.manifest.profiles)

    def check() -> None:
        if out.exists():
            read_bundle(out)

    command = ["tune", "--data", FIGHTS, "-o", out, *TUNE, "--force", "-q"]
    Walk(out.parent, command).over(3, check, result)


@LINUX
def test_a_killed_build_is_finished_by_the_next(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    out = tmp_path / "out" / "bundle"

    def engines() -> dict[str, str]:
        (folder,) = (out / "engines").glob("tensorrt-rtx-*")
        found = read_engines(folder).engines
        assert all((folder / info.file).stat().st_size == info.size_bytes for info in found.values())
        return {graph: info.graph_sha256 for graph, info in found.items()}

    def check() -> None:
        if out.exists():
            read_bundle(out)
        if list(out.glob("engines/*/engines.json")):
            assert engines()

    Walk(out.parent, ["build", "-o", out, "--target", "sm_89", "-q"]).over(3, check, engines)


@LINUX
def test_a_killed_benchmark_goes_on_and_keeps_the_old_report(tmp_path: Path) -> None:
    out = tmp_path / "out" / "report.json"

    def before() -> None:
        out.write_text("of yesterday\n")

    def check() -> None:
        assert out.read_text() == "of yesterday\n" or result()

    def result() -> Any:
        report = json.loads(out.read_text())
        return report["data"], [(row["key"], row["top1"], row["model_ms"]["rounds"]) for row in report["rows"]]

    command = ["benchmark", "--data", FIGHTS, *BENCHMARK, "-o", out, "-q"]
    Walk(out.parent, command, before).over(4, check, result)


@LINUX
def test_a_killed_classification_keeps_the_old_results(tmp_path: Path) -> None:
    out, videos = tmp_path / "out" / "results.jsonl", tmp_path / "out" / "videos"

    def frames(path: Path) -> int:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))

    def before() -> None:
        out.write_text("of yesterday\n")
        videos.mkdir()

    def check() -> None:
        assert out.read_text() == "of yesterday\n" or result()
        for path in videos.glob("[!.]*"):
            assert frames(path) > 40
        for part in out.parent.glob(".results.jsonl.*"):  # the results so far, by whole lines
            assert all(json.loads(line)["label"] for line in part.read_text().splitlines())

    def result() -> Any:
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        found = [(line["source"], line["label"], line["confidence"], line["steps_used"]) for line in lines]
        return found, {path.name: frames(path) for path in videos.glob("[!.]*")}

    command = ["classify", *CLIPS, "-o", out, "--save-video", videos, "-q"]
    Walk(out.parent, command, before).over(5, check, result, left=1)


# -- full disks, and those that cannot be written ----------------------------------------------------------------------


def mounted(place: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return not os.geteuid() and not subprocess.run(command, check=False, capture_output=True).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes disks of a size, such as ``1m``."""
    places = []

    def make(size: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        if not mounted(place, f"size={size}"):
            pytest.skip("mounting a small disk takes root and the right to mount")
        places.append(place)
        return place

    yield make
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path, leave_bytes: int) -> None:
    """Leave so much room on a disk."""
    (place / "ballast").unlink(missing_ok=True)
    free = shutil.disk_usage(place).free
    if free > leave_bytes:
        (place / "ballast").write_bytes(bytes(free - leave_bytes))


def test_a_full_disk_ends_an_export_in_a_line(small_checkpoint, disk, tmp_path):
    place = disk("40m")
    old = place / "bundle"
    copy_bundle(default_bundle(), old)
    fill(place, 5_000_000)
    before = content(place)
    command = ["export", small_checkpoint, "-o", old, "--patch-size", 160, "--segments", 8, "--force"]
    done = Walk(tmp_path, command, TEST_EXPORTED=GRAPHS).run(-1)
    one_line_error(done, 1, f"{old}: cannot be written (No space left on device)")
    assert content(place) == before
    assert hidden(place) == []


def test_a_full_disk_ends_a_calibration_in_a_line(disk):
    place = disk("40m")
    bundle = place / "bundle"
    fill(place, 5_000_000)  # too little for a copy
    done = edge("calibrate", "--data", FIGHTS, "-o", bundle, *CALIBRATE, "-q")
    one_line_error(done, 1, f"{bundle}: cannot be written (No space left on device)")
    assert [path.name for path in place.iterdir()] == ["ballast"]
    (place / "ballast").unlink()
    copy_bundle(default_bundle(), bundle)
    fill(place, 1_000_000)  # and for a variant
    before = read_bundle(bundle).manifest
    done = edge("calibrate", bundle, "--data", FIGHTS, *FP16, "none", "-q")
    one_line_error(done, 1, f"{bundle}: cannot be written (No space left on device)")
    assert read_bundle(bundle).manifest.variants == before.variants
    assert hidden(place) == []
    fill(place, 0)
    one_line_error(edge("tune", bundle, "--data", FIGHTS, *TUNE, "-q"), 1, "No space left on device")
    assert read_bundle(bundle).manifest.profiles == {}


def test_a_full_disk_keeps_whole_results_only(disk):
    place = disk("64k")
    out = place / "results.jsonl"
    out.write_text("of yesterday\n")
    fill(place, 5_000)
    done = edge("classify", *CLIPS * 3, "--logits", "-o", out, "-q")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert re.fullmatch(r"results so far are in .*\.part", first)
    assert second == f"error: {out}: cannot be written (No space left on device)"
    assert out.read_text() == "of yesterday\n"
    (part,) = place.glob(".results.jsonl.*.part")
    assert [json.loads(line)["label"] for line in part.read_text().splitlines()]
    part.unlink()
    for name in ("results.jsonl", "results.csv"):  # and where there is no room at all, nothing stays
        (place / "more").write_bytes(bytes(shutil.disk_usage(place).free))
        done = edge("classify", CLIPS[0], "-o", place / name, "-q")
        one_line_error(done, 1, f"{place / name}: cannot be written (No space left on device)")
        assert hidden(place) == []
        (place / "more").unlink()
    assert out.read_text() == "of yesterday\n"
    fill(place, 6_000)  # room for the lines, and none for a second form of them
    done = edge("classify", CLIPS[0], "-o", place / "results.parquet", "-q")
    assert done.returncode == 1
    assert done.stderr.endswith("results.parquet: cannot be written (No space left on device)\n"), done.stderr
    (part,) = hidden(place)
    assert [json.loads(line)["label"] for line in Path(part).read_text().splitlines()]
    assert not (place / "results.parquet").exists()


def test_a_full_disk_leaves_no_half_video(disk):
    place = disk("64k")
    out = place / "seen.mp4"
    out.write_bytes(b"of yesterday")
    fill(place, 20_000)
    done = edge("classify", CLIPS[0], "--save-video", out, "-q")
    one_line_error(done, 1, f"{out}: cannot be written (No space left on device)")
    assert out.read_bytes() == b"of yesterday"
    assert hidden(place) == []


def test_a_full_disk_ends_a_benchmark_in_a_line_and_it_goes_on(disk, tmp_path):
    place = disk("64k")
    out = place / "report.json"
    out.write_text("of yesterday\n")
    fill(place, 12_000)
    command = ["benchmark", "--data", FIGHTS, *BENCHMARK, "-o", out, "-q"]
    one_line_error(edge(*command), 1, "cannot be written (No space left on device)")
    assert out.read_text() == "of yesterday\n"
    (place / "ballast").unlink()
    done = edge(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["rows"]
    assert hidden(place) == []


def test_a_full_folder_of_temporary_files_is_told(disk):
    place = disk("1m")
    done = edge("benchmark", "--data", FIGHTS, *BENCHMARK, "-q", TMPDIR=place)
    one_line_error(done, 1, f"{place}/", "No space left on device", "set TMPDIR to a folder with 5 MB free")
    assert list(place.iterdir()) == []


def test_a_full_disk_refuses_an_upload_and_keeps_nothing_of_it(disk, monkeypatch):
    pytest.importorskip("starlette")
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.runtime.classifier import Classifier
    from tests.serve.test_serve import new_run, quick, send

    place = disk("1m")
    fill(place, 20_000)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    found = read_bundle(default_bundle())
    with load_model(found, "auto", "onnxruntime-cpu", 1) as model:
        classifier = Classifier(model, found.classes, schedule="stream")
        with quick(classifier, new_run(classifier)) as server:
            answer = send(server, CLIPS[0].read_bytes(), "clip.mp4")
    assert answer.status == 507
    assert answer.error == "clip.mp4: cannot be stored on the server (No space left on device)"
    assert [path.name for path in place.iterdir()] == ["ballast"]


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "--data", FIGHTS, *CALIBRATE, "-o", "{}/bundle"],
        ["tune", "--data", FIGHTS, *TUNE, "-o", "{}/bundle"],
        ["build", "--target", "sm_89", "-o", "{}/bundle"],
        ["benchmark", *BENCHMARK, "-o", "{}/report.json"],
        ["classify", CLIPS[0], "-o", "{}/results.csv"],
        ["classify", CLIPS[0], "--save-video", "{}/seen.mp4"],
        ["classify", CLIPS[0], "--record", "{}/seen"],
        ["classify", CLIPS[0], "--snapshots", "{}/seen", "--event", "fight"],
        ["prepare", FIGHTS, "-o", "{}/data", "--size", 32],
    ],
    ids=lambda command: f"{command[0]} {command[-1] if '{}' in str(command[-1]) else command[-3]}",
)
def test_where_nothing_can_be_written_is_told_in_a_line(command, disk, tmp_path):
    """A read-only disk, a file where a folder should be, and a name that is too long."""
    (tmp_path / "file").write_text("of yesterday\n")
    places = {tmp_path / "file": "Not a directory|File exists|is a file", tmp_path / ("n" * 300): "name too long"}
    with pytest.MonkeyPatch.context():
        place = disk("1m")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        places[place] = "Read-only file system"
    for where, words in places.items():
        done = edge(*(str(part).format(where) for part in command), "-q")
        assert done.returncode in (1, 2), (where, done)
        one_line_error(done, done.returncode, where.name)
        assert re.search(words, done.stderr), done.stderr
    assert (tmp_path / "file").read_text() == "of yesterday\n"


def test_another_users_folder_is_told_in_a_line(tmp_path, monkeypatch):
    """Permission bits do not stop root."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    closed = Path("/tmp") / f"adafocus-edge-test-{os.getpid()}"
    closed.mkdir(mode=0o755)
    try:
        bundle = closed / "bundle"
        copy_bundle(default_bundle(), bundle)
        before = content(closed)
        user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        for command in (
            ["classify", CLIPS[0], "-o", closed / "o.csv"],
            ["tune", bundle, "--data", FIGHTS, *TUNE],
            ["calibrate", bundle, "--data", FIGHTS, *CALIBRATE],
            ["build", bundle, "--target", "sm_89"],
        ):
            words = [*user, sys.executable, "-m", "adafocus_edge", *map(str, command), "-q"]
            done = subprocess.run(
                words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HOME": "/tmp"}, check=False
            )
            if "Permission denied" not in done.stderr and done.returncode == 126:
                pytest.skip("another user may not read this checkout")
            one_line_error(done, 1, str(closed), "cannot be written (Permission denied)")
        assert content(closed) == before
    finally:
        shutil.rmtree(closed)


# -- two processes, one bundle -----------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    copy_bundle(default_bundle(), tmp_path / "bundle")
    return read_bundle(tmp_path / "bundle")


def noted(path: Path, name: str, pause_s: float = 0.0) -> Bundle:
    def change(manifest):
        time.sleep(pause_s)
        return replace(manifest, reports={**manifest.reports, name: {}})

    return update_bundle(path, change)


def test_no_update_of_a_bundle_is_lost(bundle):
    """Each reads the manifest, thinks, and writes it: the others wait."""
    names = [f"report {number}" for number in range(8)]
    threads = [threading.Thread(target=noted, args=(bundle.path, name, 0.05)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) <= set(read_bundle(bundle.path).manifest.reports)
    assert hidden(bundle.path) == []


def test_an_update_waits_for_a_variant_that_is_replaced_and_keeps_it(bundle, tmp_path):
    def variant(content: str) -> None:
        folder = tmp_path / content
        shutil.copytree(bundle.path / "fp32", folder)

        def change(manifest):
            entered.set()
            time.sleep(0.3)
            graphs = {
                n: replace(g, file=f"copy/{n}.onnx", precision=content) for n, g in manifest.variants["fp32"].items()
            }
            return replace(manifest, variants={**manifest.variants, "copy": graphs})

        update_bundle(bundle.path, change, "copy", folder)

    for content_ in ("first", "second"):  # added, and then replaced: by an exchange of the whole folder
        entered = threading.Event()
        thread = threading.Thread(target=variant, args=(content_,))
        thread.start()
        assert entered.wait(30)
        noted(bundle.path, content_)
        thread.join()
        found = read_bundle(bundle.path).manifest
        assert found.variants["copy"]["policy"].precision == content_
        assert content_ in found.reports
    assert {"first", "second"} <= set(found.reports)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    assert hidden(bundle.path) == []


def test_a_bundle_is_not_replaced_while_it_is_changed(bundle):
    def replaced() -> None:
        with new_bundle(bundle.path, replace=True) as draft:
            shutil.copytree(default_bundle(), draft, dirs_exist_ok=True)
            (draft / "fp32").rename(draft / "new")
            variants = {
                "new": {n: replace(g, file=f"new/{n}.onnx") for n, g in bundle.manifest.variants["fp32"].items()}
            }
            (draft / MANIFEST).write_bytes(encode_manifest(replace(bundle.manifest, variants=variants)))

    exporting = threading.Thread(target=replaced)

    def change(manifest):
        exporting.start()
        time.sleep(0.5)
        return replace(manifest, reports={"late": {}})

    assert update_bundle(bundle.path, change).manifest.reports == {"late": {}}
    exporting.join()
    assert list(read_bundle(bundle.path).manifest.variants) == ["new"]


def test_a_lock_does_not_outlive_its_holder(bundle):
    script = (
        "import sys, time; from pathlib import Path; from adafocus_edge.bundle.store import bundle_lock\n"
        "with bundle_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    process = started("-c", script, bundle.path)
    assert process.stdout is not None
    process.stdout.readline()
    assert (bundle.path / LOCK).exists()
    with pytest.raises(BlockingIOError), locked(bundle.path / LOCK):
        pass
    process.kill()
    ended(process)
    noted(bundle.path, "after")
    assert hidden(bundle.path) == []


def test_calibrations_and_tunings_at_the_same_time_lose_nothing(bundle):
    """The second calibration is turned away in a line; all else is in the bundle at the end."""
    data = ["--data", FIGHTS]
    begun = [
        started("-m", "adafocus_edge", "calibrate", bundle.path, *data, *CALIBRATE, "-q"),
        started("-m", "adafocus_edge", "tune", bundle.path, *data, *TUNE, "--name", "one", "-q"),
        started("-m", "adafocus_edge", "tune", bundle.path, *data, *TUNE, "--name", "two", "-q"),
        started("-m", "adafocus_edge", "calibrate", bundle.path, *data, *CALIBRATE, "-q"),
    ]
    one, *tunings, other = map(ended, begun)
    assert {done.returncode for done in tunings} == {0}, [done.stderr for done in tunings]
    if one.returncode:
        one, other = other, one
    assert one.returncode == 0, one.stderr
    if other.returncode:
        one_line_error(other, 1, f"{bundle.path}: another calibration is writing to it")
    found = read_bundle(bundle.path).manifest
    assert set(found.variants) == set(read_bundle(default_bundle()).manifest.variants)
    assert set(found.thresholds) == {"a", "half", "safe"}
    assert set(found.profiles) == {"one", "two"}
    assert hidden(bundle.path.parent) == []


def test_a_profile_that_came_meanwhile_is_not_replaced(bundle, monkeypatch):
    """The name was free when measuring began."""
    from typer.testing import CliRunner

    from adafocus_edge.benchmark import tune
    from adafocus_edge.cli import app as cli

    measured = tune.measure_settings
    reports: list[Any] = []

    def run(*arguments):
        reports.extend([] if reports else [measured(*arguments)])
        if change is not None:
            update_bundle(bundle.path, change)
        return reports[0]

    monkeypatch.setattr(tune, "measure_settings", run)
    command = ["tune", *map(str, [bundle.path, "--data", FIGHTS, *TUNE, "-q"])]
    change: Any = None
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    profile = read_bundle(bundle.path).profile("tuned")
    update_bundle(bundle.path, lambda manifest: replace(manifest, profiles={}))
    change = lambda manifest: replace(manifest, profiles={"tuned": replace(profile, demand="another's")})  # noqa: E731
    done = CliRunner().invoke(cli.app, command)
    assert "has a profile 'tuned' already" in str(done.exception)
    assert read_bundle(bundle.path).profile("tuned").demand == "another's"
    update_bundle(bundle.path, lambda manifest: replace(manifest, profiles={}))

    def other_precision(manifest):
        graphs = {name: replace(info, precision="other") for name, info in manifest.variants["fp32"].items()}
        return replace(manifest, variants={"fp32": graphs}, profiles={})

    change = other_precision
    done = CliRunner().invoke(cli.app, command)
    assert "its variant fp32 was replaced meanwhile: tune again" in str(done.exception)
    assert read_bundle(bundle.path).manifest.profiles == {}


def test_a_calibration_is_not_put_into_another_model(bundle, monkeypatch):
    """Exported anew while it was calibrated: graphs of the old weights would have gone into the new bundle."""
    from adafocus_edge.evaluation.calibrate_settings import CalibrateArguments
    from calibration import calibrate
    from calibration.options import calibrate_as_asked

    def other(manifest):
        graphs = manifest.variants["fp32"]
        policy = replace(graphs["policy"], sha256="0" * 64)
        return replace(manifest, variants={"fp32": {**graphs, "policy": policy}})

    made = calibrate.Maker.make

    def make(self, name):
        (bundle.path / MANIFEST).write_bytes(encode_manifest(other(bundle.manifest)))
        return made(self, name)

    monkeypatch.setattr(calibrate.Maker, "make", make)
    asked = CalibrateArguments(
        data=FIGHTS, variants="fp16", clips=4, samples=8, seed=1, method="minmax", max_accuracy_drop=100.0,
        exit_goal=["none"], threads=2,
    )  # fmt: skip
    before = {path.name: path.read_bytes() for path in (bundle.path / "fp16").iterdir()}
    with pytest.raises(BundleError, match="was replaced by another model meanwhile"):
        calibrate_as_asked(bundle.path, asked)
    assert {path.name: path.read_bytes() for path in (bundle.path / "fp16").iterdir()} == before


def test_a_copy_of_a_bundle_that_changes_meanwhile_is_no_copy(bundle, tmp_path, monkeypatch):
    copytree = shutil.copytree

    def changed(source, target, *more, **options):
        done = copytree(source, target, *more, **options)
        if Path(source) == bundle.path:
            (Path(target) / "fp32" / "policy.onnx").write_bytes(b"torn")
        return done

    monkeypatch.setattr(shutil, "copytree", changed)
    with pytest.raises(BundleError, match="changed while it was being copied: run again"):
        copied_bundle(bundle, tmp_path / "copy")
    monkeypatch.undo()
    assert copied_bundle(bundle, tmp_path / "copy").manifest == bundle.manifest


# -- what killed runs leave --------------------------------------------------------------------------------------------


def test_drafts_of_killed_runs_are_removed_and_those_in_use_are_not(tmp_path):
    report, folder = tmp_path / "report.json", tmp_path / "bundle"
    (tmp_path / ".report.json.abandoned.draft").write_text("half")
    (tmp_path / ".bundle.abandoned.part").mkdir()
    (tmp_path / ".bundle.abandoned.part" / "half").write_text("half")
    (tmp_path / ".report.json.results.part").write_text("results so far of `classify`")
    with draft_file(report) as used, new_bundle(folder) as draft:
        write_text(report, "whole")
        with new_bundle(tmp_path / "bundle", replace=True):
            assert draft.exists()
        assert used.exists()
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left == [".report.json.results.part"]
    assert report.read_text() == "whole"


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_does_not_make_the_newest_the_oldest(tmp_path):
    """Names and times of files say that yesterday's are newer: what this run writes stays all the same."""
    told: list[str] = []
    for folder, count in (("recordings", 3), ("snapshots", 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            stamp = f"20231114-22132{number}"
            name = f"camera_0-{stamp}.mp4" if folder == "recordings" else f"camera_0-{stamp}-juggling.jpg"
            (tmp_path / folder / name).write_text("of before")
            os.utime(tmp_path / folder / name, (WALL_S + 4e9, WALL_S + 4e9))
    back_s = WALL_S - 86_400.0
    recorder = Recorder(tmp_path / "recordings", SPEC, told.append, rotate_s=1.0, keep=3, waiting=1000)
    for index in range(45):
        recorder.enqueue(live_frame(index=index, time_s=index / 10, wall_s=back_s - index * 60.0))  # ever farther back
    recorder.close(60)
    snapshots = Snapshots(tmp_path / "snapshots", SPEC, told.append, keep=3)
    for number in range(5):
        snapshots.enqueue(event(number=number, wall_s=back_s - number * 60.0))
        until(lambda: not snapshots.waiting)
    snapshots.close(60)
    assert told == []
    for folder in ("recordings", "snapshots"):
        kept = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert len(kept) == 3
        assert all("20231113" in name for name in kept), kept  # the last three of this run
    assert kept[0].startswith("camera_0-20231113-220920")


def test_durations_are_measured_by_a_clock_that_nobody_sets():
    """The system's time is only reported, never used to measure."""
    allowed = {
        # held against the times of files, which are the system's; set back: hashed again
        "adafocus_edge/bundle/store.py": 1,
        # held against the times of events, which are the system's
        "adafocus_edge/live/event_store.py": 3,
        "adafocus_edge/live/capture.py": 3,  # when a frame was seen, when something happened to a source
        "adafocus_edge/live/session.py": 1,  # when a file that is not there was reported
        "adafocus_edge/live/run.py": 2,  # when frames began to be dropped, when a source was removed
        "adafocus_edge/live/outage.py": 1,  # when a server was lost
        "adafocus_edge/live/packet_copy.py": 1,  # when a packet arrived, for the names of files
        "adafocus_edge/system/log_lines.py": 1,  # when a line was logged
        "adafocus_edge/serve/board.py": 1,  # what time it is here, for the page
        "adafocus_edge/live/watchdog.py": 1,  # when a source was found silent
    }
    found = {}
    for package in ("adafocus_edge", "training", "export", "calibration"):
        for path in (ROOT / package).rglob("*.py"):
            if count := len(re.findall(r"\btime\.time(?:_ns)?\(", path.read_text())):
                found[path.relative_to(ROOT).as_posix()] = count
    assert found == allowed


def test_a_live_run_goes_on_when_the_clock_is_set_back(tmp_path, monkeypatch):
    """Events, windows and recordings of a file that is played as if live, while the time of day runs backwards."""
    from adafocus_edge.live import capture

    plain = edge("classify", CLIPS[0], "--event", "fight=0.1", "--record", tmp_path / "a", "--drop", "never", "--json")
    assert plain.returncode == 0, plain.stderr
    script = (
        "import time, itertools; n = itertools.count(); time.time = lambda: 1.7e9 - 60.0 * next(n)\n"
        "from adafocus_edge.cli.app import main; main()"
    )
    more = ["--event", "fight=0.1", "--record", tmp_path / "b", "--drop", "never", "--json"]
    back = ended(started("-c", script, "classify", CLIPS[0], *more))
    assert back.returncode == 0, back.stderr

    def seen(text: str) -> list[Any]:
        lines = [json.loads(line) for line in text.splitlines()]
        return [(line.get("start_s"), line.get("label"), line.get("event")) for line in lines]

    assert seen(back.stdout) == seen(plain.stdout)
    assert len(list((tmp_path / "b").glob("*.mp4"))) == len(list((tmp_path / "a").glob("*.mp4"))) == 1
    assert capture.time is time


def test_an_event_follows_the_sources_time():
    detector = EventDetector(EventRule("fight", 0.5, for_s=1.0))
    assert [detector.update(time_s, 0.9) for time_s in (0.0, 0.5, 1.0)] == [None, None, "start"]


# -- folders that go away ----------------------------------------------------------------------------------------------


@LINUX
@pytest.mark.parametrize(
    ("command", "once", "gone"),
    [
        (
            ["benchmark", "--data", FIGHTS, *BENCHMARK, "-o", "{}/out/report.json"],
            "out/.*.parts/*.npz",
            "out/.*.parts",
        ),
        (["benchmark", "--data", FIGHTS, *BENCHMARK], "tmp/adafocus-edge-*/*.npy", "tmp"),
        (["calibrate", "{}/out/b", "--data", FIGHTS, *FP16, "none"], "out/.b.calibrate.*/*", "out/.b.calibrate.*"),
        (["calibrate", "{}/out/b", "--data", FIGHTS, *CALIBRATE], "out/.b.calibrate.*", "out/b"),
        (["prepare", FIGHTS, "-o", "{}/out/data", "--size", 320], "out/data/frames/*/*/*", "out/data"),
    ],
    ids=["a benchmark's state", "temporary files", "a calibration's work", "the bundle", "frames"],
)
def test_a_folder_that_goes_away_under_a_run_is_told_in_a_line(command, once, gone, tmp_path):
    """Or the run goes on without it."""
    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    if "calibrate" in command:
        copy_bundle(default_bundle(), tmp_path / "out" / "b")
    words = [str(part).format(tmp_path) for part in command]
    process = started("-m", "adafocus_edge", *words, "-q", TMPDIR=tmp_path / "tmp")
    while process.poll() is None and not list(tmp_path.glob(once)):
        time.sleep(0.001)
    there = list(tmp_path.glob(gone))
    assert there
    for path in there:
        shutil.rmtree(path, ignore_errors=True)
    done = ended(process)
    assert "Traceback" not in done.stderr
    if done.returncode:
        one_line_error(done, 1, str(tmp_path))
