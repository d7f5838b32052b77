"""Archives: the rows of a run equal those of `classify`, none twice and none missing, whatever is killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from adafocus_edge.bundle.manifest import encode_manifest
from adafocus_edge.bundle.store import open_bundle, sha256_of
from adafocus_edge.errors import BackendError, BundleError, UsageError
from adafocus_edge.media.sources import Source
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.runtime.archive import dispatch, run
from adafocus_edge.runtime.archive.dispatch import MAX_DEATHS, Died, Dispatcher, Done, Ready, Unfit
from adafocus_edge.runtime.archive.journal import open_journal
from adafocus_edge.runtime.archive.on_ray import RayExecutor
from adafocus_edge.runtime.archive.on_this_machine import LocalExecutor
from adafocus_edge.runtime.archive.settings import ArchiveOptions
from adafocus_edge.runtime.archive.shipped import Shipped, unpacked
from adafocus_edge.runtime.archive.station import ArchiveJob, Station
from adafocus_edge.runtime.settings import ClassifyOptions
from adafocus_edge.system.cpu import usable_cores
from tests.conftest import ROOT, edge, one_line_error
from tests.support.videos import encode

CLIPS = 500
TIMES = ("latency_ms", "model_ms")
QUICK = ("--exit-confidence", 0.0, "--logits", "-q", "--json")
"""One glimpse per clip: what is tested is who gets which clip, and what becomes of it."""
WITH_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e .[ray]")


# -- the folder of rows ------------------------------------------------------------------------------------------------


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"source": f"clip {number}", **({"label": "walk", "class_id": 3} | more)}


def test_a_run_goes_on_behind_its_last_whole_row(tmp_path):
    folder = tmp_path / "rows"
    with open_journal(folder, {"model": "a"}, rows_per_part=3) as journal:
        for number in range(5):
            journal.write(row(number))
        journal.write(row(0, label="again"))  # has a row
    newest = folder / "jsonl" / "part-00001.jsonl"
    with newest.open("ab") as file:
        file.write(b'{"source": "clip 5", "la')  # the driver was killed here
    with open_journal(folder, {"model": "a"}, rows_per_part=3) as journal:
        assert journal.done == {f"clip {number}" for number in range(5)}
        for number in range(4, 8):
            journal.write(row(number) if number != 6 else {"source": "clip 6", "error": "clip 6: damaged"})
        assert journal.failed == {"clip 6"}
        journal.finish({"sources": 8})
    assert sorted(path.name for path in (folder / "jsonl").iterdir()) == [f"part-{n:05d}.jsonl" for n in range(3)]
    lines = [
        json.loads(line) for path in sorted((folder / "jsonl").iterdir()) for line in path.read_text().splitlines()
    ]
    assert [entry["source"] for entry in lines] == [f"clip {number}" for number in range(8)]
    table = pyarrow.parquet.read_table(folder / "parquet")
    assert table.column("source").to_pylist() == [entry["source"] for entry in lines]
    assert table.column("error").to_pylist() == [entry.get("error") for entry in lines]


def test_a_name_that_is_not_utf_8_is_found_again(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    with open_journal(tmp_path / "rows", {}) as journal:
        journal.write({"source": name, "error": "damaged"})
    with open_journal(tmp_path / "rows", {}) as journal:
        assert journal.done == {name}


def test_a_folder_of_something_else_or_of_another_model_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("Dear")
    with pytest.raises(UsageError, match="holds other files"), open_journal(tmp_path / "mine", {}):
        pass
    rows = tmp_path / "rows"
    with open_journal(rows, {"model": "a"}), pytest.raises(UsageError, match="another run is writing"):
        open_journal(rows, {"model": "a"}).__enter__()
    with pytest.raises(UsageError, match="rows of model 'a', and this run has 'b'"):
        open_journal(rows, {"model": "b"}).__enter__()


def test_relative_names_mean_other_files_in_another_folder(small_bundle, tmp_path):
    """The second command would find a row for each of its files, and read none of them."""
    homes = [tmp_path / name for name in ("here", "there")]
    for home in homes:
        (home / "clips").mkdir(parents=True)
        encode(home / "clips" / "a.mp4", 8, size=(64, 64))
    rows = tmp_path / "rows"
    command = ("classify", "clips", "--bundle", small_bundle, "--engine", "local", "-o", rows, *QUICK)
    assert edge(*command, cwd=homes[0]).returncode == 0
    words = f"paths relative to {homes[0]}, and those of this run are relative to {homes[1]}: run it in {homes[0]}"
    one_line_error(edge(*command, cwd=homes[1]), 2, words)
    assert edge(*command, cwd=homes[0]).returncode == 0
    absolute = [str(home / "clips") if word == "clips" else word for home in homes[1:] for word in command]
    assert json.loads(edge(*absolute, cwd=homes[1]).stdout)["classified"] == 1


def test_the_folder_that_names_are_relative_to_is_stored_once_it_is_known(tmp_path):
    rows = tmp_path / "rows"
    for folder in (None, "/a", None, "/a"):
        with open_journal(rows, {"model": "a", "folder": folder}):
            pass
    with pytest.raises(UsageError, match="relative to /a, and those of this run are relative to /b"):
        open_journal(rows, {"model": "a", "folder": "/b"}).__enter__()
    archived = [Source(name, name) for name in ("https://host/a.mp4", "s3://bucket/a.mp4", "/videos/a.mp4")]
    assert run._folder_of(archived) is None
    assert run._folder_of([*archived, Source("a.mp4", "a.mp4")]) == str(Path.cwd())


def test_a_run_that_was_killed_before_it_wrote_its_settings_goes_on(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / ".lock").touch()
    (rows / ".run.json.x7a0.draft").write_text("{")
    with open_journal(rows, {"model": "a"}) as journal:
        journal.write(row(0))
    assert sorted(path.name for path in rows.iterdir()) == ["jsonl", "parquet", "run.json"]


# -- who gets what -----------------------------------------------------------------------------------------------------


class Mortal:
    """An executor in this thread, whose processes die of some sources, with everything that they were given."""

    threads = 2

    def __init__(self, poison: set[str], dies_first: int = 0, *, by_machine: bool = False) -> None:
        self.poison, self.dies_first, self.by_machine = poison, dies_first, by_machine
        self.waiting: list[Any] = []
        self.started = 0
        self.given: Counter[str] = Counter()
        self.most = 0

    def start(self) -> int:
        self.started += 1
        self.waiting.append(Ready(self.started, "mortal"))
        return self.started

    def submit(self, worker: int, batch: int, sources: Any) -> None:
        self.given.update(source.name for source in sources)
        self.waiting.append((worker, batch, sources))
        self.most = max(self.most, sum(isinstance(one, tuple) and one[0] == worker for one in self.waiting))

    def events(self, wait_s: float) -> Iterator[Any]:
        if not self.waiting:
            return
        first = self.waiting.pop(0)
        if not isinstance(first, tuple):
            yield first
            return
        worker, batch, sources = first
        if self.dies_first or self.poison & {source.name for source in sources}:
            self.dies_first = max(0, self.dies_first - 1)
            self.waiting = [one for one in self.waiting if not (isinstance(one, tuple) and one[0] == worker)]
            yield Died(worker, "out of memory", by_machine=True) if self.by_machine else Died(worker, "signal 9")
        else:
            yield Done(worker, batch, [{"source": source.name} for source in sources])

    def close(self) -> None:
        pass


SOURCES = [Source(f"{n}.mp4", f"{n}.mp4") for n in range(100)]


def dispatched(executor: Mortal, processes: int = 3) -> dict[str, Any]:
    rows: list[Any] = []
    Dispatcher(executor, lambda: processes, rows.append, lambda: None).run(SOURCES)
    assert sorted(row["source"] for row in rows) == sorted(source.name for source in SOURCES)
    return {row["source"]: row for row in rows}


def test_processes_are_kept_busy_but_not_given_more_than_twice_their_threads():
    executor = Mortal(set())
    dispatched(executor)
    assert executor.most == 2 * executor.threads
    assert set(executor.given.values()) == {1}
    assert executor.started == 3


@pytest.mark.parametrize("processes", [1, 3])
def test_a_file_that_kills_its_process_is_found_and_the_others_get_their_rows(processes):
    executor = Mortal({"17.mp4", "63.mp4"})
    rows = dispatched(executor, processes)
    assert {name for name, found in rows.items() if "error" in found} == {"17.mp4", "63.mp4"}
    assert f"17.mp4: cannot be read: the process that read it died {MAX_DEATHS} times" in rows["17.mp4"]["error"]
    # beside a poison, a file is tried again at most once for each time that it was in the way
    assert max(executor.given.values()) <= 2 + MAX_DEATHS


@pytest.mark.parametrize("processes", [1, 3])
def test_many_files_in_a_row_that_kill_their_process_do_not_end_the_run(processes):
    poison = {f"{n}.mp4" for n in range(30, 60)}
    rows = dispatched(Mortal(poison), processes)
    assert {name for name, found in rows.items() if "error" in found} == poison


def test_a_file_that_is_too_much_for_the_machine_gets_its_row_once_others_have_theirs():
    executor = Mortal({"0.mp4", "99.mp4"}, by_machine=True)
    rows = dispatched(executor, 1)
    assert {name for name, found in rows.items() if "error" in found} == {"0.mp4", "99.mp4"}
    assert rows["0.mp4"]["error"].endswith("died 2 times (out of memory)")
    assert next(iter(rows)) != "0.mp4"


@pytest.mark.parametrize("count", [1, 100])
def test_a_machine_on_which_no_file_can_be_read_ends_the_run_and_costs_no_row(count):
    rows: list[Any] = []
    executor = Mortal({source.name for source in SOURCES}, by_machine=True)
    with pytest.raises(BackendError, match="died .*out of memory"):
        Dispatcher(executor, lambda: 1, rows.append, lambda: None).run(SOURCES[:count])
    assert rows == []


def test_a_process_that_is_killed_from_outside_costs_no_row():
    rows = dispatched(Mortal(set(), dies_first=2))
    assert not any("error" in found for found in rows.values())


def test_a_run_whose_processes_all_die_ends():
    with pytest.raises(BackendError, match="died one after the other; the last: signal 9"):
        dispatched(Mortal(set(), dies_first=10**6))


def test_a_process_that_cannot_load_the_model_ends_the_run():
    executor = Mortal(set())
    executor.start = lambda: executor.waiting.append(Unfit(1, BackendError("no such file"))) or 1
    with pytest.raises(BackendError, match="no such file"):
        dispatched(executor, 1)


# -- a process ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(small_bundle: Path) -> ArchiveJob:
    """One thread, one glimpse per clip."""
    bundle = open_bundle(small_bundle)
    variant, options = bundle.choose_variant(), ClassifyOptions()
    exits = ExitThresholds.at(0.0, bundle.spec.segments)
    return ArchiveJob(
        Shipped.of(bundle, variant), variant, "onnxruntime-cpu", options.conv_search, None, "auto", exits, 1,
        logits=False, threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def station(job: ArchiveJob) -> Station:
    made = Station(job)
    made.prepare()
    return made


def test_the_error_of_a_file_that_was_copied_names_the_file(station, tmp_path):
    pytest.importorskip("fsspec")
    name = f"file://{tmp_path}/session=0.mp4"
    (tmp_path / "session=0.mp4").write_bytes(b"no video")
    (row,) = station.classify([Source(name, name)])
    assert row["source"] == name
    assert row["error"].startswith(f"{name}: ")
    assert "adafocus-" not in row["error"]


def test_a_shortage_of_the_machine_is_no_row(station, tmp_path):
    resource = pytest.importorskip("resource")
    clip = encode(tmp_path / "clip.mp4", 8, size=(64, 64))
    assert "error" not in station.classify([Source("clip", str(clip))])[0]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(BackendError, match="clip.* short of memory, threads or open files"):
            station.classify([Source("clip", str(clip))])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "error" not in station.classify([Source("clip", str(clip))])[0]


def test_a_bundle_with_another_profile_is_the_same_model_and_one_with_other_classes_is_not(small_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(small_bundle, copy)
    bundle = open_bundle(copy)
    shipped = Shipped.of(bundle, bundle.choose_variant())
    (copy / "bundle.json").write_bytes(encode_manifest(replace(bundle.manifest, reports={"parity": "measured again"})))
    with unpacked(shipped, None) as folder:
        assert folder == copy
    assert Shipped.of(open_bundle(copy), shipped.variant) == shipped
    names = (copy / "classes.txt").read_text().splitlines()
    (copy / "classes.txt").write_text("".join(f"{name}\n" for name in ["another", *names[1:]]))
    manifest = replace(bundle.manifest, classes_sha256=sha256_of(copy / "classes.txt"))
    (copy / "bundle.json").write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError, match="has changed since the run began"), unpacked(shipped, None):
        pass


NEEDS_ADLFS = Source("far", "abfs://container/clip.mp4")
WITHOUT_ADLFS = pytest.mark.skipif(
    importlib.util.find_spec("fsspec") is None or importlib.util.find_spec("adlfs") is not None,
    reason="needs fsspec, and adlfs not to be installed",
)


@WITHOUT_ADLFS
def test_processes_that_lack_a_package_end_the_run_with_that_reason(job, monkeypatch):
    monkeypatch.setattr(dispatch, "MAX_LOST", 1)
    rows, executor = [], LocalExecutor(job)
    try:
        with pytest.raises(BackendError, match=r"2 processes died .*: far: Install adlfs"):
            Dispatcher(executor, lambda: 1, rows.append, lambda: None).run([NEEDS_ADLFS])
    finally:
        executor.close()
    assert rows == []


@pytest.mark.parametrize("on_device", [False, True])
def test_threads_have_one_core_each_unless_they_decode_in_turn(job, station, on_device):
    own = Station(replace(job, schedule="stream"))
    own._bundle = station._bundle
    own._model = replace(station._model, resident=object() if on_device else None)

    def cores() -> int:
        own._classifier()
        return usable_cores()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(cores).result() == (thread.submit(free_cores).result() if on_device else 1)


def free_cores() -> int:
    """Usable cores of a new thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(usable_cores).result()


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 500 names of three tiny clips, one of which is damaged."""
    home = tmp_path_factory.mktemp("archive")
    made = [encode(home / f"{name}.mp4", frames, size=(64, 64)) for name, frames in (("a", 8), ("b", 12))]
    damaged = home / "damaged.mp4"
    damaged.write_bytes(made[0].read_bytes()[:700])
    for number in range(CLIPS):
        (home / "clips").mkdir(exist_ok=True)
        (home / "clips" / f"{number}.mp4").hardlink_to(damaged if number % 100 == 7 else made[number % 2])
    return home / "clips"


@pytest.fixture(scope="module")
def expected(archive: Path, small_bundle: Path) -> dict[str, dict[str, Any]]:
    """The rows of a plain `classify`."""
    done = edge("classify", archive, "--bundle", small_bundle, *QUICK)
    assert done.returncode == 1
    found = {entry["source"]: entry for entry in map(timeless, done.stdout.splitlines())}
    assert len(found) == CLIPS
    assert sum("error" in entry for entry in found.values()) == CLIPS // 100
    return found


def timeless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in TIMES}


def rows_in(output: Path) -> list[dict[str, Any]]:
    parts = sorted((output / "jsonl").glob("*.jsonl"))
    return [timeless(line) for part in parts for line in part.read_text().splitlines()]


def command(archive: Path | str, bundle: Path, output: Path, *more: object) -> list[str]:
    words = ("classify", archive, "--bundle", bundle, *QUICK, "-o", output, *more)
    return [sys.executable, "-m", "adafocus_edge", *map(str, words)]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    STARTED.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    return STARTED[-1]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """End what a test started and, having failed, did not wait for."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Wait until something is true, while a process runs."""
    until = time.monotonic() + 120
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def count(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (output / "jsonl").glob("*.jsonl"))


def descendants(pid: int) -> dict[int, str]:
    """Return the processes below one, with their command lines."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, below = {}, {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        for child in below:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def killed_half_way(words: list[str], output: Path, workers: Callable[[subprocess.Popen[str]], list[int]]) -> None:
    """Kill a process of the run after a while, then the driver; start it again, and let it end."""
    process = start(words)
    wait_for(lambda: count(output) > 40, process)
    os.kill(wait_for(lambda: workers(process), process)[0], signal.SIGKILL)
    at = count(output)
    wait_for(lambda: count(output) > at + 40, process)
    process.kill()
    process.communicate(timeout=60)
    before = count(output)
    assert before < CLIPS
    process = start(words)
    printed, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (1, "")
    summary = json.loads(printed)
    assert (summary["sources"], summary["classified"], summary["failed"]) == (CLIPS, CLIPS * 99 // 100, CLIPS // 100)
    assert 40 < summary["before"] <= before


def check_rows(output: Path, expected: dict[str, dict[str, Any]]) -> None:
    found = rows_in(output)
    assert Counter(entry["source"] for entry in found) == Counter(expected.keys())  # nothing twice, nothing missing
    for entry in found:
        assert entry == expected[entry["source"]]
    table = pyarrow.parquet.read_table(output / "parquet").to_pylist()
    assert Counter(entry["source"] for entry in table) == Counter(expected.keys())
    for entry in table:
        wanted = expected[entry["source"]]
        assert (entry["label"], entry["confidence"], entry["error"]) == tuple(
            wanted.get(name) for name in ("label", "confidence", "error")
        )


def test_processes_here_give_the_rows_of_classify_though_one_and_the_driver_are_killed(
    archive, expected, small_bundle, tmp_path
):
    output = tmp_path / "rows"

    def workers(process: subprocess.Popen[str]) -> list[int]:
        return [pid for pid, words in descendants(process.pid).items() if "spawn_main" in words]

    killed_half_way(command(archive, small_bundle, output, "--engine", "local"), output, workers)
    check_rows(output, expected)
    again = start(command(archive, small_bundle, output, "--engine", "local"))
    printed, _ = again.communicate(timeout=60)
    assert (again.returncode, json.loads(printed)["before"]) == (1, CLIPS)
    check_rows(output, expected)


def test_an_archive_run_that_is_interrupted_says_so_and_leaves_no_process(archive, small_bundle, tmp_path):
    output = tmp_path / "rows"
    process = start(command(archive, small_bundle, output, "--engine", "local"))
    wait_for(lambda: count(output) > 10, process)
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors) == (130, "", "interrupted\n")
    for pid in below:
        until = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists(), below[pid]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """Address of a cluster of two machines, and the process that holds it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_cluster"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    address = process.stdout.readline().strip()
    assert address
    below = descendants(process.pid)
    yield address, process.pid
    process.communicate(timeout=120)
    left = [pid for pid in below if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)


@WITH_RAY
def test_a_cluster_gives_the_rows_of_classify_though_an_actor_and_the_driver_are_killed(
    archive, expected, small_bundle, tmp_path, cluster
):
    address, holder = cluster
    output = tmp_path / "rows"

    def actors(process: subprocess.Popen[str]) -> list[int]:
        return [pid for pid, words in descendants(holder).items() if words.startswith("ray::Station")]

    words = command(archive, small_bundle, output, "--engine", "ray", "--address", address, "--actor-cores", 1)
    killed_half_way(words, output, actors)
    check_rows(output, expected)
    assert json.loads((output / "summary.json").read_text())["processes"] == 2


def test_a_start_with_other_sources_counts_its_own_and_may_not_write_into_the_bundle(small_bundle, tmp_path):
    clip, rows = encode(tmp_path / "good.mp4", 8, size=(64, 64)), tmp_path / "rows"
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    given = ("--bundle", small_bundle, *QUICK, "--engine", "local", "-o")
    both = edge("classify", clip, bad, *given, rows)
    assert (both.returncode, json.loads(both.stdout)["failed"]) == (1, 1)
    one = edge("classify", clip, *given, rows)
    assert one.returncode == 0, one.stderr
    counts = [json.loads(one.stdout)[name] for name in ("sources", "classified", "failed", "before")]
    assert counts == [1, 1, 0, 1]
    inside = small_bundle / "out"
    one_line_error(edge("classify", clip, *given, inside), 2, f"--output {inside}: would overwrite a source or a file")
    assert not inside.exists()


def test_an_object_store_without_engine_is_one_line(small_bundle):
    done = edge("classify", "s3://bucket/clip.mp4", "--bundle", small_bundle, "-q")
    one_line_error(done, 1, "s3://bucket/clip.mp4: is in an object store: give --engine local or --engine ray")


@WITH_RAY
@WITHOUT_ADLFS
def test_actors_that_lack_a_package_end_the_run_with_that_reason(job, cluster, monkeypatch):
    monkeypatch.setattr(dispatch, "MAX_LOST", 1)
    rows, executor = [], RayExecutor(ArchiveOptions(cluster[0], 1.0, engine="ray"), lambda threads: job)
    try:
        with pytest.raises(BackendError, match=r"2 processes died .*: far: Install adlfs"):
            Dispatcher(executor, lambda: 1, rows.append, lambda: None).run([NEEDS_ADLFS])
    finally:
        executor.close()
    assert rows == []


@WITH_RAY
def test_a_cluster_that_is_not_there_and_options_without_one_are_one_line(archive, small_bundle, tmp_path):
    given = ("classify", archive, "--bundle", small_bundle, "-q")
    rows = tmp_path / "rows"
    one_line_error(edge(*given, "--engine", "local"), 2, "--engine local: give --output DIR")
    one_line_error(edge(*given, "-o", rows, "--address", "auto"), 2, "--address auto: is for --engine ray")
    one_line_error(edge(*given, "-o", rows, "--engine", "ray", "--address", "here"), 2, "must be auto or HOST:PORT")
    one_line_error(edge(*given, "-o", rows, "--engine", "ray", "--backend", "cuda"), 2, "give each process a GPU")
    one_line_error(
        edge(*given, "-o", rows, "--engine", "local", "--save-video", rows), 2, "--engine local: --save-video"
    )
    process = start(command(archive, small_bundle, rows, "--engine", "ray", "--address", "127.0.0.1:1"))
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, printed) == (1, "")
    assert errors.startswith("error: --address 127.0.0.1:1: no Ray cluster can be reached there")
    assert len(errors.splitlines()) == 1


def test_files_of_an_object_store_are_listed_and_fetched(archive, expected, small_bundle, tmp_path):
    pytest.importorskip("fsspec")
    output = tmp_path / "rows"
    process = start(command(f"file://{archive}/1?.mp4", small_bundle, output, "--engine", "local"))
    assert process.communicate(timeout=120)[1] == ""
    found = {entry["source"].removeprefix("file://"): entry for entry in rows_in(output)}
    assert len(found) == 10
    for name, entry in found.items():
        assert {**entry, "source": name} == expected[name]
