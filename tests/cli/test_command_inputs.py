"""What the command line reads, and when: a bundle's graphs once, wrong inputs before anything slow; and ``--json``."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.manifest import Profile
from adafocus_edge.bundle.store import default_bundle, open_bundle, read_bundle, sha256_of, update_bundle
from adafocus_edge.cli.app import app
from adafocus_edge.cli.benchmark import old_json_form
from adafocus_edge.errors import BundleError
from adafocus_edge.model.spec import GRAPHS
from tests.conftest import ROOT, edge, one_line_error
from tests.training.test_train import TINY

FIGHTS = ROOT / "tests" / "fights"
CLIP = FIGHTS / "fight" / "fi013.mp4"
SLOW = ("onnxruntime", "torch", "onnx")
"""Packages that take long to import."""
WATCHED = """
import atexit, collections, json, os, sys
opened = collections.Counter()
def see(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".onnx", "bundle.json")) and "r" in (arguments[1] or ""):
        opened[os.fsdecode(arguments[0])] += 1
def tell():
    with open({told!r}, "w") as file:
        json.dump({{"opened": opened, "loaded": [name for name in {slow!r} if name in sys.modules]}}, file)
sys.addaudithook(see)
atexit.register(tell)
sys.argv = ["adafocus-edge", *sys.argv[1:]]
from adafocus_edge.cli.app import main
main()
"""
"""The command line in a process that counts what it opens: all of Python's own reading, whoever asks for it."""
MEASURED = ("--backends", "onnxruntime-cpu", "--variants", "fp32", "--exits", "none", "--peers", "none", "--rounds", 1)


def watched(tmp_path: Path, *arguments: object) -> tuple[subprocess.CompletedProcess[str], Counter[str], set[str]]:
    """Run the command line; return also how often which file was read, and which slow packages were imported."""
    told = tmp_path / "told.json"
    code = WATCHED.format(told=str(told), slow=SLOW)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=environment,
    )  # fmt: skip
    found = json.loads(told.read_text())
    return done, Counter(found["opened"]), set(found["loaded"])


@pytest.fixture
def bundle(tmp_path) -> Path:
    """The default model with a profile."""
    path = tmp_path / "bundle"
    shutil.copytree(default_bundle(), path)
    profile = Profile("onnxruntime-cpu", "fp32", "clip", 4, 1, "", "here", "fast", 1.0, 100.0, 1, "2026-01-01")
    update_bundle(path, lambda manifest: dataclasses.replace(manifest, profiles={"fast": profile}))
    return path


# -- once -----------------------------------------------------------------------------------------------------------

VARIANTS = ("fp32", "fp16", "int8-cpu")


def files_of(bundle: Path, *variants: str) -> dict[str, int]:
    """Return the files of some variants of a bundle, each read once."""
    names = ["bundle.json", *(f"{variant}/{graph}.onnx" for variant in variants for graph in GRAPHS)]
    return {str(bundle / name): 1 for name in names}


@pytest.mark.parametrize(
    "command",
    [
        ("classify", CLIP, "--bundle", "BUNDLE"),
        ("classify", CLIP, "--bundle", "BUNDLE", "--profile", "fast"),
        ("classify", CLIP, "--bundle", "BUNDLE", "--duration", 1),
        ("evaluate", "BUNDLE", "--data", FIGHTS),
        ("benchmark", "BUNDLE", *MEASURED, "--schedules", "clip"),
        ("inspect", "BUNDLE"),
        ("serve", "--bundle", "BUNDLE", "--port", 0, "--duration", 0.1),
    ],
    ids=lambda command: " ".join(map(str, command[:1])) + ("-profile" if "--profile" in command else ""),
)
def test_a_bundle_is_read_once(command, bundle, tmp_path):
    done, opened, _ = watched(tmp_path, *(bundle if part == "BUNDLE" else part for part in command))
    assert done.returncode == 0, done.stderr
    variants = ("fp32",) if command[0] in ("classify", "serve") else VARIANTS  # those that are not run are not read
    assert opened == files_of(bundle, *variants)


@pytest.mark.parametrize("command", ["tune", "calibrate"])
def test_a_bundle_that_is_copied_is_read_to_check_it_and_to_copy_it(command, bundle, tmp_path):
    more = {
        "tune": ("--min-accuracy", 0, "--clips", 2, "--rounds", 1, "--segments", 2, "--backends", "onnxruntime-cpu"),
        "calibrate": ("--variants", "none", "--clips", 4),
    }[command]
    copy = tmp_path / "copy"
    done, opened, _ = watched(tmp_path, command, bundle, "--data", FIGHTS, "-o", copy, "--json", "-q", *more)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    for graph in GRAPHS:
        assert opened[str(bundle / "fp32" / f"{graph}.onnx")] == 2


def test_what_was_changed_after_it_was_checked_is_not_run(bundle):
    found = read_bundle(bundle)
    with load_model(found, backend="onnxruntime-cpu"):
        pass
    graph = bundle / "fp32" / "focuser.onnx"
    before = graph.stat()
    content = bytearray(graph.read_bytes())
    place = content.rfind(b"\x00\x00", 0, len(content) // 2)  # among the weights: still a graph, of the same size
    content[place] ^= 1
    graph.write_bytes(content)
    os.utime(graph, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert graph.stat().st_size == before.st_size
    with pytest.raises(BundleError, match=r"focuser\.onnx: changed since the bundle was made"):
        load_model(found, backend="onnxruntime-cpu")
    with pytest.raises(BundleError, match=r"focuser\.onnx: changed since the bundle was made"):
        read_bundle(bundle)


def test_a_hash_is_never_that_of_an_older_content(tmp_path):
    import hashlib

    file = tmp_path / "a"
    for number in range(50):  # as fast as can be: several within one tick of the disk's clock
        content = f"{number:08}".encode()
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
        assert sha256_of(file) == hashlib.sha256(content).hexdigest()


def test_opening_a_bundle_checks_all_but_the_graphs_content(bundle):
    (bundle / "fp32" / "policy.onnx").write_bytes(b"no graph")
    assert open_bundle(bundle).classes == ("fight", "no_fight")
    with pytest.raises(BundleError, match=r"policy\.onnx: changed"):
        read_bundle(bundle)
    (bundle / "classes.txt").write_text("fight\nno fight\n")
    with pytest.raises(BundleError, match=r"classes\.txt: changed"):
        open_bundle(bundle)
    (bundle / "fp32" / "policy.onnx").unlink()
    with pytest.raises(BundleError, match=r"policy\.onnx: missing"):
        open_bundle(bundle)


# -- wrong inputs first ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("classify", "nosuch.mp4"), "nosuch.mp4: no such file"),
        (("classify", "nosuch.mp4", "--json", "--duration", 1), "nosuch.mp4: no such file"),
        (("classify", "a=nosuch.mp4", "--schedule", "stream"), "nosuch.mp4: no such file"),
        (("classify", CLIP, "-o", "here/told.json/x"), "cannot be written"),
        (("evaluate", "--data", "nosuch"), "nosuch: no such folder, CSV or split list"),
        (("evaluate", "ckpt.pth", "--data", "nosuch"), "nosuch: no such folder, CSV or split list"),
        (("evaluate", "nosuch.pth", "--data", FIGHTS), "nosuch.pth: no such bundle or checkpoint"),
        (("evaluate", "--data", "list.txt"), "give --frames DIR"),
        (("evaluate", "--data", FIGHTS, "--classes", "nosuch.txt"), "nosuch.txt: no such class file"),
        (("evaluate", "ckpt.pth", "--data", FIGHTS, "-o", "list.txt/x.json"), "Not a directory"),
        (("evaluate", "ckpt.pth", "--data", FIGHTS, "-o", "ckpt.pth"), "--output ckpt.pth: is an input"),
        (("evaluate", "--data", "list.txt", "--frames", ".", "-o", "list.txt"), "--output list.txt: is an input"),
        (("calibrate", "--data", "nosuch", "-o", "new"), "nosuch: no such folder, CSV or split list"),
        (("calibrate", "--data", FIGHTS, "--report-on", "nosuch", "-o", "new"), "nosuch: no such folder"),
        (("benchmark", "--data", "nosuch"), "nosuch: no such folder, CSV or split list"),
        (("benchmark", "--quick", "-o", "list.txt/report.json"), "Not a directory"),
        (("benchmark", "--quick", "--checkpoint", "nosuch.pth"), "nosuch.pth: no such checkpoint file"),
        (("tune", "--data", "nosuch", "-o", "new", "--min-accuracy", 1), "nosuch: no such folder, CSV or split list"),
        (("export", "nosuch.pth", "-o", "new"), "nosuch.pth: no such checkpoint file"),
        (("export", "ckpt.pth", "-o", "new", "--classes", "nosuch.txt"), "nosuch.txt: no such class file"),
        (("export", "ckpt.pth", "-o", "new", "--frames", "nosuch.mp4"), "nosuch.mp4: no such file"),
        (("export", "ckpt.pth", "-o", "list.txt/new"), "Not a directory"),
        (("prepare", "nosuch", "-o", "new"), "nosuch: no such folder of videos"),
        (("train", "dataset=custom", "data_dir=nosuch", "train_stage=1"), "data_dir=nosuch: no such folder"),
        (("train", "dataset=custom", "data_dir=.", "train_stage=1", "resume=no.pth"), "resume=no.pth: no such"),
        (("train", "dataset=custom", "data_dir=.", "train_stage=1", "epoch=2"), "did you mean 'epochs'"),
    ],
    ids=lambda value: " ".join(map(str, value[:3])) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_inputs_are_reported_before_anything_slow(command, words, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "told.json").touch()
    (tmp_path / "list.txt").write_text("a 30 0\n")
    (tmp_path / "ckpt.pth").write_bytes(b"never read")
    before = {path.name for path in tmp_path.iterdir()}
    done, opened, loaded = watched(tmp_path, *command)
    assert done.returncode in (1, 2)
    (error,) = (line for line in done.stderr.splitlines() if not line.startswith("the default model"))
    assert error.startswith("error: ")
    assert words in error
    assert {Path(name).name for name in opened} <= {"bundle.json"}
    assert loaded == set()
    assert {path.name for path in tmp_path.iterdir()} - before == {"told.json"}


def test_sources_that_are_all_missing_end_the_run_at_once_with_their_json(tmp_path):
    out = tmp_path / "out.jsonl"
    done, opened, loaded = watched(tmp_path, "classify", "a.mp4", "b=c.mp4", "a.mp4", "--json", "-q", "-o", out)
    wanted = [
        {"source": "a.mp4", "error": "a.mp4: no such file"},
        {"source": "b", "error": "c.mp4: no such file"},
        {"source": "a.mp4", "error": "a.mp4: no such file"},
    ]
    assert done.returncode == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted
    assert [json.loads(line) for line in out.read_text().splitlines()] == wanted
    assert done.stderr.splitlines() == [f"error: {entry['error']}" for entry in wanted]
    assert (list(opened), loaded) == ([str(default_bundle() / "bundle.json")], set())


def test_live_sources_that_are_all_missing_end_the_run_at_once_with_its_notices(tmp_path):
    out = tmp_path / "out.jsonl"
    done, _, loaded = watched(tmp_path, "classify", "a.mp4", "--duration", 9, "--json", "-q", "-o", out)
    assert (done.returncode, done.stderr) == (1, "error: a.mp4: no such file\n")
    (notice,) = map(json.loads, done.stdout.splitlines())
    assert (notice["source"], notice["notice"], notice["error"]) == ("a.mp4", "failed", "a.mp4: no such file")
    assert json.loads(out.read_text())["error"] == "a.mp4: no such file"
    assert loaded == set()


def test_a_missing_source_among_good_ones_is_reported_first_and_the_others_go_on(tmp_path):
    done, opened, _ = watched(tmp_path, "classify", CLIP, "gone.mp4", CLIP, "--json")
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["source"] for entry in found] == [str(CLIP), "gone.mp4", str(CLIP)]  # in the order given
    assert found[1] == {"source": "gone.mp4", "error": "gone.mp4: no such file"}
    assert found[0]["label"] == found[2]["label"] == "fight"
    _, error, backend = done.stderr.splitlines()
    assert (error, backend.partition(":")[0]) == ("error: gone.mp4: no such file", "backend")
    assert opened == files_of(default_bundle(), "fp32")


# -- --json is a switch ----------------------------------------------------------------------------------------------


def test_every_verb_has_json_as_a_switch():
    import typer.main

    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        (option,) = (p for p in command.params if "--json" in p.opts)
        assert option.is_flag, name
        assert option.help.startswith("Print "), name
        assert not option.hidden, name


def test_the_old_form_of_json_is_told_from_the_switch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(default_bundle(), "bundle.json")  # a bundle may be called so
    for arguments, expected in (
        ("B --json", "B --json"),
        ("--json bundle.json", "--json bundle.json"),
        ("--json . -q", "--json . -q"),
        ("--json --quick", "--json --quick"),
        ("--json -o a.json", "--json -o a.json"),
        ("-- --json new.json", "-- --json new.json"),
        ("B --json new.json", "B --json-file new.json"),
        ("--json report B", "--json-file report B"),
        ("--json=new.json B", "--json-file=new.json B"),
        ("--json=bundle.json", "--json-file=bundle.json"),
        ("--json a.json --json", "--json-file a.json --json"),
    ):
        assert old_json_form(arguments.split()) == expected.split(), arguments


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A benchmark with all outputs, and JSON on stdout."""
    folder = tmp_path_factory.mktemp("measured")
    files = [part for name in ("a.json", "b.csv", "c.md", "d.html", "e.png") for part in ("-o", folder / name)]
    return folder, edge("benchmark", *MEASURED, "--schedules", "clip", "--json", *files)


def test_outputs_are_written_as_their_names_say(measured):
    folder, done = measured
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads((folder / "a.json").read_text()) == report
    assert report["rows"][0]["backend"] == "onnxruntime-cpu"
    assert "onnxruntime-cpu" in (folder / "b.csv").read_text().splitlines()[1]
    assert (folder / "c.md").read_text().lstrip().startswith(("#", "|"))
    assert (folder / "d.html").read_text().lower().startswith("<!doctype html")
    assert (folder / "e.png").read_bytes().startswith(b"\x89PNG")
    assert "deprecated" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.csv", "c.md", "d.html", "e.png"]


@pytest.mark.parametrize("form", [("--json", "FILE"), ("--json=FILE",)], ids=["apart", "joined"])
def test_the_old_form_writes_the_file_with_a_note(form, measured, tmp_path):
    new, table = tmp_path / "new", tmp_path / "rows.txt"  # the old form told formats by options, not by names
    form = [part.replace("FILE", str(new)) for part in form]
    done = edge("benchmark", "--from", measured[0] / "a.json", *form, "--csv", table)
    assert done.returncode == 0, done.stderr
    assert json.loads(new.read_text()) == json.loads((measured[0] / "a.json").read_text())
    assert table.read_text() == (measured[0] / "b.csv").read_text()
    assert "onnxruntime-cpu" in done.stdout
    assert not done.stdout.startswith("{")
    notes = done.stderr.splitlines()
    assert notes[0].startswith(f"note: --json FILE is deprecated: use --output {new}")
    assert notes[1].startswith(f"note: --csv FILE is deprecated: use --output {table}")
    assert edge("benchmark", "--from", measured[0] / "a.json", *form, "-q").stderr == ""


def test_the_switch_may_stand_before_a_bundle(measured, tmp_path):
    done = edge("benchmark", "--json", default_bundle(), "--from", measured[0] / "a.json")
    one_line_error(done, 2, "--from takes an existing report: remove the bundle and --data")  # it was taken for one
    done = edge("benchmark", "--json", "--from", measured[0] / "a.json")
    assert json.loads(done.stdout) == json.loads((measured[0] / "a.json").read_text())
    assert done.stderr == ""


def test_other_verbs_refuse_a_file_after_the_switch():
    one_line_error(edge("inspect", "--json=a.json"), 2, "--json", "does not take a value")


def only_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json_is_all_that_is_printed(tmp_path):
    assert only_json(edge("inspect", "--json"))["classes"] == ["fight", "no_fight"]
    assert only_json(edge("doctor", "--json"))
    assert only_json(edge("prepare", FIGHTS, "-o", tmp_path / "data", "--no-frames", "--json"))
    url = only_json(edge("serve", "--port", 0, "--duration", 0.1, "--json"))["url"]
    assert url.startswith("http://127.0.0.1:")
    train = ("train", *TINY, f"data_dir={tmp_path / 'data'}", "train_stage=0", "epochs=1", "workers=0",
             f"hydra.run.dir={tmp_path / 'run'}", "--json")  # fmt: skip
    trained = only_json(edge(*train))
    assert Path(trained["checkpoint"]).is_file()
    assert trained["epochs"] == 1
    judged = only_json(edge(*train, "evaluate=true", f"resume={trained['checkpoint']}"))
    assert judged["clips"] > 0
