"""The check of a GPU machine, end to end on the CPU: parts, limits, what is kept, what is prepared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adafocus_edge.bundle.store import copy_bundle, default_bundle, read_bundle
from adafocus_edge.model.spec import STEP_GRAPH
from benchmarks.gpu import parts as all_parts
from benchmarks.gpu.__main__ import _chosen
from benchmarks.gpu.parts import BUDGET_S, PARTS, SHARES, WITHOUT_MODEL
from benchmarks.gpu.runner import FAILED, OK, SKIP_CODE, SKIPPED, TIMED_OUT, Limit, run_parts
from benchmarks.gpu.running import counted, write_clips
from benchmarks.gpu.table import reached, table
from benchmarks.gpu.work import complete
from benchmarks.official import cached_export, export_key
from tests.conftest import BACKEND_SKIP, ROOT, required_gpu_failure

SMALL = "--device cpu --model default --steps 20 --rounds 4 --streams 2 --seconds 1 --sources 2".split()


def gpu_check(*arguments):
    command = [ROOT / "scripts" / "gpu-check", *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)


def test_a_run_on_the_cpu_keeps_what_every_part_found(tmp_path):
    prepared = tmp_path / "prepared"
    copy_bundle(default_bundle(), prepared / "calibrated")
    for variant in read_bundle(default_bundle()).manifest.variants:  # as --prepare does
        shutil.rmtree(prepared / "calibrated" / variant)
    (prepared / "prepared.json").write_text(json.dumps({"default_model_sha256": "", "files": {}, "bytes": 0}))
    report = tmp_path / "report.json"
    names = "setup,parity,live,throughput,latency,benchmark,leaks,conv_search,engines"
    done = gpu_check(
        *SMALL,
        "--parts",
        names,
        "--budget",
        1500,
        "--report",
        report,
        "--prepared",
        prepared,
        "--folder",
        tmp_path / "w",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(report.read_text())
    ended = {name: part["status"] for name, part in made["parts"].items()}
    assert ended == {name: SKIPPED if name == "engines" else OK for name in PARTS if name in names.split(",")}
    results = {name: part["result"] for name, part in made["parts"].items()}
    assert results["parity"]["rows"][0]["ok"] is True
    (live,) = results["live"]["rows"]
    assert live["sources"] == 2
    assert live["glimpses"] > 0
    assert live["p99_ms"] > 0
    assert [row["streams"] for row in results["throughput"]["rows"][0]["frames_in"]["host"]] == [1, 2]
    assert results["benchmark"]["prepared"] is True
    assert str(tmp_path / "w" / "calibrated") in results["benchmark"]["commands"][0]
    assert results["benchmark"]["rows"]
    assert results["leaks"]["rows"][0]["steps"] == 20
    assert results["conv_search"]["rows"][0]["first_clip_s"] > 0
    assert made["device"] == "cpu"
    assert made["reached"] is None
    assert "onnxruntime-cpu" in done.stdout


def test_wrong_options_and_a_device_that_is_not_there_are_told(tmp_path):
    done = gpu_check("--parts", "parity,leeks")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: --parts leeks: must be one of setup, ")
    from adafocus_edge.backends.onnxruntime import cuda_obstacle

    if cuda_obstacle() is None:
        pytest.skip("there is a GPU")
    report = tmp_path / "report.json"
    done = gpu_check("--model", "default", "--parts", "parity", "--report", report, "--folder", tmp_path / "w")
    assert done.returncode == 1
    part = json.loads(report.read_text())["parts"]["parity"]
    assert part["status"] == FAILED
    assert "no backend ran: onnxruntime-cuda cannot run here" in part["why"]
    assert part["result"]["rows"] == []
    assert len(part["result"]["not_run"]) == 5


# -- limits, on real processes ----------------------------------------------------------------------------------------

SCRIPTS = {
    "quick": "print('done')",
    # Keeps what it has, starts a process of its own, and then hangs where no signal that can be caught ends it.
    "hangs": "open(RESULT, 'w').write('{\"rows\": [1]}'); import signal, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "open(FOLDER + '/child', 'w').write(str(child.pid))\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    "fails": "raise SystemExit('no such luck')",
    "elsewhere": f"print('not on this machine'); raise SystemExit({SKIP_CODE})",
    "needs": "raise AssertionError('not to be run')",
    "last": "open(RESULT, 'w').write('{\"rows\": [2]}')",
}


def test_a_part_that_hangs_is_cut_and_the_others_go_on(tmp_path):
    written, limits = [], {}

    def command(name, limit_s):
        limits[name] = limit_s
        script = f"RESULT = {str(tmp_path / (name + '.json'))!r}; FOLDER = {str(tmp_path)!r}\n{SCRIPTS[name]}"
        return [sys.executable, "-c", script]

    parts = [Limit(name, 10, "fails" if name == "needs" else None) for name in SCRIPTS]
    report = {}
    run_parts(parts, command, tmp_path, 36.0, report, lambda found: written.append(json.loads(json.dumps(found))))
    found = report["parts"]
    assert {name: part["status"] for name, part in found.items()} == {
        "quick": OK, "hangs": TIMED_OUT, "fails": FAILED, "elsewhere": SKIPPED, "needs": SKIPPED, "last": OK,
    }  # fmt: skip
    assert [len(one["parts"]) for one in written] == [1, 2, 3, 4, 5, 6]  # after every part
    assert found["hangs"]["result"] == {"rows": [1]}  # what it had kept counts
    assert found["fails"]["why"] == "no such luck"
    assert found["elsewhere"]["why"] == "not on this machine"
    assert found["needs"]["why"] == "fails did not end with ok"
    assert "needs" not in limits
    assert found["last"]["result"] == {"rows": [2]}
    # What a part leaves goes to the next one; what one took too much is taken from the next ones.
    assert limits["quick"] == 6
    assert limits["hangs"] == pytest.approx(6 + 6 - found["quick"]["seconds"])
    used = sum(part["seconds"] for name, part in found.items() if name != "last")
    assert limits["last"] == pytest.approx(max(1.0, 36 - used))
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # with all that it has started
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def test_a_run_that_is_ended_keeps_its_report_and_leaves_no_process(tmp_path):
    script = f"RESULT = {str(tmp_path / 'hangs.json')!r}; FOLDER = {str(tmp_path)!r}\n{SCRIPTS['hangs']}"
    written, child = [], tmp_path / "child"

    def stop():
        while not child.exists() or not child.read_text():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_parts(
            [Limit("hangs", 1)], lambda *_: [sys.executable, "-c", script], tmp_path, 600.0, {},
            lambda found: written.append(json.loads(json.dumps(found))),
        )  # fmt: skip
    assert written[-1]["parts"]["hangs"] == {
        "status": TIMED_OUT, "why": "the run was interrupted", "result": {"rows": [1]},
    }  # fmt: skip
    assert not alive(int(child.read_text()))


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_parts_fit_into_the_budget():
    assert list(SHARES) == list(PARTS)
    assert sum(SHARES.values()) == BUDGET_S
    assert set(WITHOUT_MODEL) < set(PARTS)
    assert _chosen("leaks,tests") == ["setup", "tests", "leaks"]
    assert _chosen("tests") == ["tests"]
    assert _chosen(None) == list(PARTS)
    assert all(part.__module__.startswith(all_parts.__package__) for part in PARTS.values())


# -- what is made of it -----------------------------------------------------------------------------------------------


def percentiles(value):
    return {"p50": value, "p95": value, "p99": value}


def test_goals_are_judged_by_the_best_backend_that_ran():
    report = {"device": "h200", "parts": {}}
    assert set(reached(report).values()) == {None}
    assert len(table(report)) == 2
    row = {"backend": "onnxruntime-cuda", "variant": "fp16", "clip_ms": percentiles(5.0)}
    report["parts"] = {
        "latency": {"result": {"rows": [
            {**row, "step_ms": percentiles(0.8), "host_share": None},
            {**row, "backend": "other", "step_ms": percentiles(2.0), "host_share": 0.5},
            {**row, "variant": "fp32", "step_ms": percentiles(0.1), "host_share": 0.5},
        ]}},
        "throughput": {"status": TIMED_OUT, "result": {"rows": [{
            "backend": "other", "variant": "fp16", "best_clips_per_s": 2100.0,
            "frames_in": {"host": [{"streams": 8, "clips_per_s": 2100.0}]},
        }]}},
        "peers": {"result": {"rows": [
            {"peer": "eager PyTorch, the official way", "precision": "fp32", "step_ms": percentiles(3.2)},
            {"peer": "eager PyTorch, the official way", "precision": "fp16 (autocast)", "step_ms": percentiles(2.5)},
            {"peer": "torch.compile", "precision": "fp16", "failed": "no compiler"},
        ]}},
    }  # fmt: skip
    assert reached(report) == {
        "step_ms": True, "host_share": None, "times_eager": True, "clips_per_s": True,
        "backend_of_steps": "onnxruntime-cuda", "backend_of_clips": "other",
    }  # fmt: skip
    report["parts"]["peers"]["result"]["rows"].pop(1)
    assert reached(report)["times_eager"] is None
    lines = "\n".join(table(report))
    assert "| onnxruntime-cuda | fp16 | 0.80 / 0.80 / 0.80 | 5.00 |" in lines
    assert "| 2100, 8 |" in lines
    assert "| torch.compile | fp16 | failed |" in lines


def test_a_live_run_is_counted_between_two_statuses():
    def source(glimpses, dropped, p99):
        return {
            "frames": 3 * glimpses, "glimpses": glimpses, "dropped": dropped, "windows": 0,
            "latency_ms": percentiles(p99),
        }  # fmt: skip

    statuses = [
        (100.0, [source(0, 40, None), source(0, 40, None)]),
        (104.0, [source(8, 50, 900.0), source(6, 50, 900.0)]),
        (110.0, [source(56, 51, 20.0), source(54, 50, 30.0)]),
    ]
    found = counted(statuses, 104.0, 2)
    assert (found["glimpses"], found["dropped"], found["asked_glimpses"]) == (96, 1, 96)
    assert (found["p99_ms"], found["glimpses_per_s"], found["warm_after_s"]) == (30.0, 16.0, 4.0)


def test_a_bundle_gets_what_it_lacks(small_bundle, tmp_path):
    bundle = copy_bundle(small_bundle, tmp_path / "bundle")
    assert list(bundle.manifest.variants) == ["fp32"]
    complete(bundle.path)
    made = read_bundle(bundle.path)
    assert all(STEP_GRAPH in graphs for graphs in made.manifest.variants.values())
    assert list(made.manifest.variants) == ["fp32", "fp16"]


def test_both_classes_are_listed_to_train_on(tmp_path):
    write_clips(tmp_path / "list.csv", 30)
    names = [line.rpartition(",")[2] for line in (tmp_path / "list.csv").read_text().splitlines()[1:]]
    assert len(names) == 30
    assert {names.count(name) for name in set(names)} == {15}


def test_a_golden_case_is_exported_once(golden, monkeypatch):
    first = cached_export(golden)
    assert first.name == f"{golden}-{export_key()}"
    monkeypatch.setattr("benchmarks.official.make_bundle", None)  # would be called to export again
    assert cached_export(golden) == first


def test_what_skips_itself_fails_where_a_gpu_is_required():
    cannot = f"Skipped: {BACKEND_SKIP}TensorRT is not installed"
    assert required_gpu_failure([], 0) is None
    assert required_gpu_failure([cannot], 3) is None
    assert "no backend ran" in required_gpu_failure([cannot], 0)
    assert "tests were skipped: Skipped: no pynvml" in required_gpu_failure([cannot, "Skipped: no pynvml"], 3)


# The tests of the GPU themselves, where there is none: on an H200 that is made believe, with the CPU's kernels.
BELIEVED = """
import adafocus_edge.backends.device.cuda as cuda
import adafocus_edge.backends.registry as load
import adafocus_edge.backends.onnxruntime as ort

ort.cuda_obstacle = ort.gpu_obstacle = lambda: None
cuda.this_gpu = lambda: cuda.Gpu("NVIDIA H200", "9.0")
real = load.load_model
load.load_model = lambda bundle, variant, *_, **more: real(bundle, variant, "onnxruntime-cpu", **more)
"""


def test_the_tests_of_a_gpu_stand_by_themselves_for_each_backend(tmp_path):
    (tmp_path / "believed.py").write_text(BELIEVED)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "ADAFOCUS_EDGE_REQUIRE_GPU": "1"}

    def run(expression):
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "believed", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "tests/backends/test_gpu.py", "-k", expression],
            cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    done = run("gives")
    assert done.returncode == 0, done.stdout
    assert "2 passed, 2 skipped" in done.stdout
    assert BACKEND_SKIP in done.stdout
    alone = run("gives and tensorrt")
    assert alone.returncode == 1, alone.stdout
    assert "a GPU is required, but no backend ran on it" in alone.stdout
