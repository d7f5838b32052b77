"""`adafocus-edge build`: real engines, which TensorRT-RTX builds without a GPU; what is kept, rebuilt and refused."""

import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from adafocus_edge.backends import probe
from adafocus_edge.backends.device import cuda
from adafocus_edge.backends.registry import load_model
from adafocus_edge.backends.tensorrt import library as tensorrt_library
from adafocus_edge.backends.tensorrt.build import BuildRequest, build, in_words
from adafocus_edge.bundle import engines as engine_files
from adafocus_edge.bundle.engines import BUILT, BuildOptions, BuiltFor, Engines, find_engines, read_engines, refusal
from adafocus_edge.bundle.store import copy_bundle, default_bundle, read_bundle, sha256_of, update_bundle
from adafocus_edge.doctor import examine
from adafocus_edge.errors import BackendError, BuildError, UsageError
from adafocus_edge.model.spec import GRAPHS, Gpu
from calibration import int8
from calibration.fp16 import to_half
from calibration.graphs import load_graph, save_graph
from calibration.ranges import histograms
from export.fuse import fuse
from tests.conftest import GOLDEN, edge, one_line_error
from tests.training.test_model import frames_of

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="TensorRT-RTX's wheels are for x86-64 Linux"
    ),
]
ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9")
FRAMES = frames_of(GOLDEN / "actnet96")


@pytest.fixture
def bundle(tmp_path):
    """The default model, which is small, to build engines in."""
    copy_bundle(default_bundle(), tmp_path / "bundle")
    return read_bundle(tmp_path / "bundle")


def built(bundle, **options):
    """Build, and say which graphs were built and why."""
    request = BuildRequest(**options)
    done = build(bundle, request, lambda: fuse, lambda *_: None)
    return done, {row.graph: row.built for row in done.rows if row.built is not None}


def add_variant(path, name):
    """Give a bundle an FP16 or INT8 variant: the calibration's own conversions, on ranges of a few frames."""
    bundle = read_bundle(path)
    graphs = {graph: load_graph(bundle.graph_path("fp32", graph)) for graph in GRAPHS}
    feeds = {"glancer": {"frame": FRAMES[:2]}, "focuser": {"frame": FRAMES[:2], "origin": np.zeros((2, 2), np.float32)}}
    folder = path.parent / name
    folder.mkdir()
    for graph, model in graphs.items():
        if name == "int8-trt" and graph in feeds:
            found = histograms(model, lambda graph=graph: [feeds[graph]])
            ranges = {tensor: one.range_by("minmax") for tensor, one in found.items()}
            model = int8.for_tensorrt(model, ranges, skip=int8.stem(model))  # noqa: PLW2901
        else:
            model = to_half(model)  # noqa: PLW2901
        save_graph(model, folder / f"{graph}.onnx")

    def change(manifest):
        infos = {
            graph: dataclasses.replace(
                manifest.variants["fp32"][graph],
                file=f"{name}/{graph}.onnx",
                sha256=sha256_of(folder / f"{graph}.onnx"),
                size_bytes=os.path.getsize(folder / f"{graph}.onnx"),
            )
            for graph in GRAPHS
        }
        return dataclasses.replace(manifest, variants={**manifest.variants, name: infos})

    return update_bundle(path, change, name, folder)


def test_every_graph_is_built_kept_and_shown(bundle):
    done = edge("build", bundle.path, "--target", "sm_89", "--streams", 4, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert [row["graph"] for row in made["engines"]] == list(BUILT)
    assert {row["built"] for row in made["engines"]} == {"not built yet"}
    assert made["batches"] == [1, 4, 8]
    assert made["targets"] == ["sm_89"]
    folder = Path(made["folder"])
    assert folder.parent == bundle.path / "engines"
    assert folder.name == f"tensorrt-rtx-{made['version']}-sm89-fp32"
    for row in made["engines"]:
        assert row["sha256"] == sha256_of(folder / row["file"])
        assert row["size_bytes"] > 100_000
    again = edge("build", bundle.path, "--target", "sm_89", "--streams", 4)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("  kept") == len(BUILT)
    assert "batches up to 8" in again.stdout
    shown = edge("inspect", bundle.path)
    assert folder.name in shown.stdout
    entry = json.loads(edge("inspect", bundle.path, "--json").stdout)["engines"]
    assert [(one["folder"], one["variant"]) for one in entry] == [(folder.name, "fp32")]
    assert not list(folder.glob(".build.*"))


@pytest.mark.parametrize("name", ["int8-trt", "fp16"])
def test_calibrated_variants_are_built_with_a_step_that_is_joined_for_it(name, bundle):
    """Every target that the library knows but Turing, which has no FP32 matrix products in it."""
    bundle = add_variant(bundle.path, name)
    assert set(bundle.manifest.variants[name]) == set(GRAPHS)
    done, why = built(bundle, variant=name, targets=("sm_86", "sm_120"))
    assert set(why) == set(BUILT)
    assert read_engines(done.folder).variant == name
    assert {row.graph for row in done.rows if row.engine.size_bytes > 100_000} == set(BUILT)


@pytest.mark.parametrize("golden", ["actnet128"], indirect=True)
def test_the_official_preset_is_built_in_every_precision(golden_bundle, tmp_path):
    path = Path(shutil.copytree(golden_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))
    sizes = {}
    for name in ("fp32", "fp16", "int8-trt"):
        bundle = read_bundle(path) if name == "fp32" else add_variant(path, name)
        done, why = built(bundle, variant=name, targets=("sm_89",), options=BuildOptions(streams=32))
        assert set(why) == set(BUILT)
        assert done.engines.batches == (1, 16, 32)
        sizes[name] = done.engines.engines["focuser"].size_bytes
    assert max(sizes["fp16"], sizes["int8-trt"]) < 0.6 * sizes["fp32"]


def test_the_default_model_is_built_in_a_copy(tmp_path):
    copy = tmp_path / "copy"
    for word in ("not built yet", "kept"):
        done = edge("build", "-o", copy, "--target", "sm_120")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(word) == len(BUILT)
    assert read_bundle(copy).manifest == read_bundle(default_bundle()).manifest
    assert not (default_bundle() / "engines").exists()


def test_an_engine_is_built_again_when_and_only_when_something_that_matters_changed(bundle, monkeypatch):
    done, why = built(bundle)
    assert set(why) == set(BUILT)
    assert done.engines.built_for.targets == ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
    assert done.folder.name.endswith("portable-fp32")
    assert built(bundle)[1] == {}

    # A graph: this one, the step that is joined of it, and no other.
    graph = bundle.graph_path("fp32", "policy")
    model = onnx.load_model(graph)
    model.doc_string = "changed"
    onnx.save_model(model, graph)

    def rehash(manifest):
        info = dataclasses.replace(manifest.variants["fp32"]["policy"], sha256=sha256_of(graph))
        return dataclasses.replace(manifest, variants={"fp32": {**manifest.variants["fp32"], "policy": info}})

    bundle = update_bundle(bundle.path, rehash)
    assert built(bundle)[1] == {"policy": "the graph changed", "step": "the graph changed"}
    assert built(bundle)[1] == {}

    # A file that is gone, and one that is damaged.
    (done.folder / "glancer.engine").unlink()
    damaged = done.folder / "focuser.engine"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert built(bundle)[1] == {"glancer": "its file is missing", "focuser": "its file is damaged"}

    # The options.
    options = BuildOptions(streams=3)
    assert built(bundle, options=options)[1] == dict.fromkeys(BUILT, "the options changed")
    assert built(bundle, options=options)[1] == {}
    assert set(built(bundle, options=options, force=True)[1].values()) == {"forced"}

    # The release of the library: in a folder of its own.
    library = tensorrt_library.find_library("tensorrt-rtx")
    newer = dataclasses.replace(library, version="99.1")
    monkeypatch.setattr("adafocus_edge.backends.tensorrt.build.find_library", lambda _: newer)
    other, why = built(bundle, options=options)
    assert why == dict.fromkeys(BUILT, "not built yet")
    assert other.folder != done.folder
    # Even where a folder was renamed, the manifest knows.
    shutil.rmtree(other.folder)
    done.folder.rename(other.folder)
    assert set(built(bundle, options=options)[1].values()) == {"built for another device or with another version"}


def test_a_killed_build_goes_on_where_it_stopped(bundle):
    command = [sys.executable, "-m", "adafocus_edge", "build", str(bundle.path), "--target", "sm_89"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    manifests = bundle.path / "engines"
    deadline = time.monotonic() + 120
    while not list(manifests.glob("*/engines.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    running.communicate()
    read_bundle(bundle.path)  # whole at every moment
    _, why = built(bundle, targets=("sm_89",))
    assert 0 < len(why) < len(BUILT)
    assert "glancer" not in why
    assert not list(manifests.glob("*/.build.*"))


def test_an_interrupted_build_ends_at_once_and_leaves_what_is_done(bundle):
    command = [sys.executable, "-m", "adafocus_edge", "build", str(bundle.path), "--target", "sm_89"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((bundle.path / "engines").glob("*/engines.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Traceback" not in said
    folder = next((bundle.path / "engines").glob("*/"))
    assert set(read_engines(folder).engines) < set(BUILT)
    for info in read_engines(folder).engines.values():
        assert sha256_of(folder / info.file) == info.sha256


def test_an_interruption_that_tensorrt_swallows_still_ends_the_build(bundle, monkeypatch):
    """One that comes while its logger calls back into Python: seen in CI as a build that went on to its end."""
    library = tensorrt_library.find_library("tensorrt-rtx")

    class Interrupted(library.module.ILogger):
        def __init__(self):
            super().__init__()
            self.errors, self.calls = [], 0

        def log(self, severity, text):
            self.calls += 1
            if self.calls == 3:
                signal.raise_signal(signal.SIGINT)

    logger = Interrupted()
    monkeypatch.setattr(tensorrt_library.Library, "logger", lambda self: logger)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        built(bundle, targets=("sm_89",))
    assert logger.calls > 3
    assert not list((bundle.path / "engines").glob("*/engines.json"))
    assert signal.getsignal(signal.SIGINT) is before


def test_two_builds_do_not_meet(bundle):
    import fcntl

    folder = engine_files.engine_folder(
        bundle,
        BuiltFor("tensorrt-rtx", tensorrt_library.find_library("tensorrt-rtx").version, "", ("sm_89",)),
        "sm89",
        "fp32",
    )
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        one_line_error(
            edge("build", bundle.path, "--target", "sm_89"), 1, folder.name, "another build is writing to it"
        )


def test_what_cannot_be_built_is_told_in_a_line(bundle, tmp_path):
    def fails(code, *words, options=()):
        one_line_error(edge("build", bundle.path, *options), code, *words)

    fails(2, "--target sm_42", "supports sm_75", options=["--target", "sm_42"])
    fails(2, "--target is empty", options=["--target", ","])
    fails(2, "no variant 'int8-trt'; its variants are: fp32", options=["--variant", "int8-trt"])
    fails(1, "TensorRT is not installed", "pip install 'adafocus-edge[tensorrt]'", options=["--library", "tensorrt"])
    fails(2, "--version-compatible is for TensorRT", options=["--version-compatible"])
    fails(2, "--hardware-compatible is for TensorRT", options=["--hardware-compatible", "ampere+"])
    # Turing has no FP32 matrix products: TensorRT-RTX reports it itself.
    fails(1, "policy.onnx", "SM75", "FP32 GEMM is not supported", options=["--target", "sm_75"])
    one_line_error(edge("build", tmp_path / "nowhere"), 1, "no such bundle")
    one_line_error(edge("build"), 2, "--output is missing: the default model")
    fails(2, "already exists and is not a copy", options=["-o", tmp_path])
    fails(2, "--target sm_42", options=["-o", tmp_path / "copy", "--target", "sm_42"])
    assert not (tmp_path / "copy").exists()
    assert not list((bundle.path / "engines").glob("*/.build.*"))


def test_the_parsers_messages_name_node_operator_and_what_to_do(bundle, tmp_path):
    """A graph with an operator that TensorRT does not know."""
    node = onnx.helper.make_node("Det", ["frame"], ["feature_map"], name="glancer/strange")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "glancer",
        [value("frame", onnx.TensorProto.FLOAT, [2, 3, 3])], [value("feature_map", onnx.TensorProto.FLOAT, [2])],
    )  # fmt: skip
    path = bundle.graph_path("fp32", "glancer")
    onnx.save_model(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path
    )
    with pytest.raises(BuildError) as caught:
        built(bundle)
    told = str(caught.value)
    assert str(path) in told
    assert "glancer/strange (Det)" in told
    assert "onnxruntime-cuda" in told
    assert "\n" not in told
    path.write_bytes(b"no graph")
    with pytest.raises(BuildError, match=r"glancer\.onnx: TensorRT-RTX .* cannot"):
        built(bundle)
    assert not (bundle.path / "engines").exists()  # nothing came of it
    assert in_words("TensorRT 10", []) == "TensorRT 10 cannot read it"


def test_engines_are_refused_with_a_reason_on_the_wrong_device(bundle, monkeypatch):
    built(bundle, targets=("sm_89",))
    library = tensorrt_library.find_library("tensorrt-rtx")
    folder, found = find_engines(bundle, "fp32", library.name, library.version, ADA)
    assert found.built_for.targets == ("sm_89",)
    wrong = Gpu("NVIDIA GeForce RTX 5090", "12.0")
    with pytest.raises(BackendError, match=r"sm89-fp32: built for sm_89, not for sm_120\); run: adafocus-edge build"):
        find_engines(bundle, "fp32", library.name, library.version, wrong)
    with pytest.raises(BackendError, match=r"built with tensorrt-rtx .*, but 9\.9 is installed"):
        find_engines(bundle, "fp32", library.name, "9.9", ADA)
    # As a user meets it: the backend that was asked for by name, on another GPU and then without one.
    monkeypatch.setattr(probe, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "this_gpu", lambda: wrong)
    with pytest.raises(BackendError, match="no engines of fp32 for NVIDIA GeForce RTX 5090"):
        load_model(bundle, backend="tensorrt")
    monkeypatch.setattr(cuda, "this_gpu", lambda: ADA)
    graph = folder / "policy.engine"
    graph.write_bytes(graph.read_bytes() + b"!")
    with pytest.raises(BackendError, match="policy: its file is damaged"):
        load_model(bundle, backend="tensorrt")
    monkeypatch.undo()
    if probe.gpu_obstacle() is not None:
        done = edge("classify", "tests/clips/R6llTwEh07w.mp4", "--bundle", bundle.path, "--backend", "tensorrt")
        one_line_error(done, 1, "tensorrt cannot run here", "--backend onnxruntime-cpu")


def test_a_step_that_no_longer_fits_is_left_out(bundle):
    """The four engines do the same without it; a stale one is never loaded."""
    built(bundle, targets=("sm_89",))
    library = tensorrt_library.find_library("tensorrt-rtx")
    folder, _ = find_engines(bundle, "fp32", library.name, library.version, ADA)
    (folder / "step.engine").unlink()
    (folder / "pixels.engine").write_bytes(b"damaged")
    _, found = find_engines(bundle, "fp32", library.name, library.version, ADA)
    assert set(found.engines) == set(GRAPHS)


def test_a_gpu_that_the_library_cannot_build_for_is_told(bundle, monkeypatch):
    monkeypatch.setattr(probe, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "this_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    with pytest.raises(BackendError, match=r"does not run on this GPU \(NVIDIA H200, sm_90\), only on sm_75.*-cuda"):
        built(bundle)
    assert not (bundle.path / "engines").exists()  # raised before anything is built
    with pytest.raises(UsageError, match=r"--target sm_90: .* supports sm_75, .* onnxruntime-cuda"):
        built(bundle, targets=("sm_90",))
    with pytest.raises(BackendError, match=r"does not run on this GPU"):
        load_model(bundle, backend="tensorrt")
    (line,) = (found for found in examine() if found.part.endswith("TensorRT-RTX"))
    assert line.status == "none"
    assert "does not run on this GPU (NVIDIA H200, sm_90)" in line.detail
    assert "onnxruntime-cuda" in line.detail
    done, _ = built(bundle, targets=("sm_120",))  # for another one it does
    assert done.engines.built_for.device == ""


def test_a_release_that_knows_more_gpus_than_it_runs_on_builds_for_those_only(bundle, monkeypatch):
    """As TensorRT-RTX did on an H200: it built engines there that it then refused to load."""
    library = tensorrt_library.find_library("tensorrt-rtx")
    real = library.module.ComputeCapability
    more = SimpleNamespace(__members__={**real.__members__, "SM90": real.CURRENT})
    module = SimpleNamespace(**{**vars(library.module), "ComputeCapability": more})
    monkeypatch.setattr(
        "adafocus_edge.backends.tensorrt.build.find_library", lambda _: dataclasses.replace(library, module=module)
    )
    with pytest.raises(UsageError, match="--target sm_90"):
        built(bundle, targets=("sm_90",))
    monkeypatch.setattr(probe, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "this_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    with pytest.raises(BackendError, match="does not run on this GPU"):
        built(bundle)


def test_a_gpu_that_the_library_runs_on_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(probe, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "this_gpu", lambda: ADA)
    (line,) = (found for found in examine() if found.part.endswith("TensorRT-RTX"))
    assert (line.status, line.detail) == ("ok", tensorrt_library.find_library("tensorrt-rtx").title)


def test_another_frame_size_needs_another_graph_of_pixels(bundle):
    other = dataclasses.replace(
        bundle,
        manifest=dataclasses.replace(
            bundle.manifest, model=dataclasses.replace(bundle.spec, frame_size=256, patch_size=96)
        ),
    )
    assert engine_files.graph_hash(bundle, "fp32", "pixels") != engine_files.graph_hash(other, "fp32", "pixels")


def test_a_gpu_without_engines_is_told_to_build(bundle, monkeypatch):
    monkeypatch.setattr(probe, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "this_gpu", lambda: ADA)
    with pytest.raises(
        BackendError, match=r"no engines of fp32 have been built; run: adafocus-edge build \S+ --variant"
    ):
        load_model(bundle, backend="tensorrt")


PORTABLE = BuiltFor("tensorrt-rtx", "1.7", "", ("sm_80", "sm_86"))
ON_H200 = BuiltFor("tensorrt", "10.13.3", "NVIDIA H200", ("sm_90",))


@pytest.mark.parametrize(
    ("built_for", "options", "library", "gpu", "why"),
    [
        (ON_H200, {}, ("tensorrt", "10.13.3"), ("NVIDIA H200", "9.0"), None),
        (ON_H200, {}, ("tensorrt", "10.13.3"), ("NVIDIA H100", "9.0"), "built on NVIDIA H200"),
        (ON_H200, {"hardware_compatible": "same"}, ("tensorrt", "10.13.3"), ("NVIDIA H100", "9.0"), None),
        (ON_H200, {"hardware_compatible": "same"}, ("tensorrt", "10.13.3"), ("A100", "8.0"), "built for sm_90"),
        (ON_H200, {"hardware_compatible": "ampere+"}, ("tensorrt", "10.13.3"), ("A100", "8.0"), None),
        (ON_H200, {"hardware_compatible": "ampere+"}, ("tensorrt", "10.13.3"), ("T4", "7.5"), "from Ampere on"),
        (ON_H200, {}, ("tensorrt", "10.14.0"), ("NVIDIA H200", "9.0"), "10.14.0 is installed"),
        (ON_H200, {"version_compatible": True}, ("tensorrt", "10.14.0"), ("NVIDIA H200", "9.0"), None),
        (ON_H200, {"version_compatible": True}, ("tensorrt", "10.2.0"), ("NVIDIA H200", "9.0"), "10.2.0 is installed"),
        (ON_H200, {"version_compatible": True}, ("tensorrt", "11.0.0"), ("NVIDIA H200", "9.0"), "11.0.0 is installed"),
        (ON_H200, {}, ("tensorrt-rtx", "1.7"), ("NVIDIA H200", "9.0"), "but tensorrt-rtx is installed"),
        (PORTABLE, {}, ("tensorrt-rtx", "1.7"), ("RTX 3060", "8.6"), None),
        (PORTABLE, {}, ("tensorrt-rtx", "1.7"), ("T4", "7.5"), "built for sm_80, sm_86, not for sm_75"),
        (PORTABLE, {}, ("tensorrt-rtx", "1.7"), ("NVIDIA H200", "9.0"), "not for sm_90"),
    ],
)
def test_who_may_load_what(built_for, options, library, gpu, why):
    said = refusal(Engines(built_for, "fp32", BuildOptions(**options), (1,)), *library, Gpu(*gpu))
    assert (said is None) == (why is None), said
    assert why is None or why in said


def test_a_library_that_does_not_load_is_told(monkeypatch):
    with pytest.raises(UsageError, match="expected one of auto, tensorrt, tensorrt-rtx"):
        tensorrt_library.find_library("openvino")

    def broken(name):
        raise ImportError("libnvinfer.so.10: cannot open\nshared object file")

    monkeypatch.setattr(tensorrt_library, "import_module", broken)
    with pytest.raises(BackendError, match="tensorrt cannot be loaded .libnvinfer.so.10: cannot open shared .*pip"):
        tensorrt_library.find_library("tensorrt")


def test_a_damaged_manifest_of_engines_counts_for_nothing(bundle):
    done, _ = built(bundle)
    (done.folder / "engines.json").write_text("{")
    one_line_error(edge("inspect", bundle.path), 1, "engines.json", "damaged")
    assert set(built(bundle)[1].values()) == {"not built yet"}
    content = (done.folder / "engines.json").read_text()
    (done.folder / "engines.json").write_text(content.replace('"glancer.engine"', '"../../bundle.json"'))
    one_line_error(edge("inspect", bundle.path), 1, "not an engine")
