"""Calibration: what is recorded, how graphs are quantized for each target, and the verb from end to end."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle, update_bundle
from adafocus_edge.errors import BackendError, DataError
from adafocus_edge.evaluation.dataset import Example, read_data
from adafocus_edge.evaluation.evaluate import with_patches
from adafocus_edge.model.spec import GRAPHS, contract
from adafocus_edge.runtime.glimpse import see_clip
from calibration import int8
from calibration.compare import Run, compare
from calibration.fp16 import to_half
from calibration.graphs import layers, load_graph, producers, save_graph
from calibration.judge import Viewer
from calibration.ranges import histograms
from calibration.samples import halve, read_windows, record
from tests.calibration.helpers import FIGHTS, graph_of, ranges_of, run_graph
from tests.conftest import edge, one_line_error
from tests.support.diverged import copy_diverged
from tests.support.plain_model import copy_plain_model
from tests.support.trt_networks import parsed

RTX = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="TensorRT-RTX's wheels are for x86-64 Linux"
)


# -- samples ----------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_the_loop_meets(model, fights, samples):
    """Every recorded input is one of the loop's own: frames with the policy's origins, states and features."""
    assert {graph: {name: rows.shape[0] for name, rows in feeds.items()} for graph, feeds in samples.of.items()} == {
        "glancer": {"frame": 12},
        "policy": {"feature_map": 12, "policy_state": 12},
        "focuser": {"frame": 12, "origin": 12},
        "classifier": {"focus": 12, "state": 12},
    }
    origins = {}
    for frames in fights.frames:
        for frame, glimpse in zip(frames, see_clip(model, frames), strict=True):
            origins[frame.tobytes()] = glimpse.origins[0]
    for frame, origin in zip(samples.of["focuser"]["frame"], samples.of["focuser"]["origin"], strict=True):
        assert np.array_equal(origins[frame.tobytes()], origin)
    assert np.array_equal(samples.of["glancer"]["frame"], samples.of["focuser"]["frame"])
    # The recurrent graphs see states that were reached, not only the zeros of a beginning.
    assert (np.abs(samples.of["classifier"]["state"]).max(axis=1) > 0).any()
    # What a graph gives for a recorded input is what the next one was recorded with.
    focus = model.focuser.run(dict(samples.of["focuser"].items()))["focus"]
    np.testing.assert_allclose(focus, samples.of["classifier"]["focus"], rtol=1e-4, atol=1e-4)


def test_a_model_whose_outputs_are_not_numbers_is_not_calibrated(fights, tmp_path):
    bundle = read_bundle(copy_diverged(default_bundle(), tmp_path / "bundle"))
    with load_model(bundle, "fp32", "onnxruntime-cpu") as diverged:
        viewer = Viewer(diverged, fights, (), labelled=False, progress=lambda *_: None)
        with pytest.raises(BackendError, match="the model's outputs are not finite numbers"):
            viewer.seen("clip")


def test_recording_is_seeded_and_other_patches_can_be_taken(model, fights, samples):
    again = record(model, fights, 12, seed=3)
    for graph in GRAPHS:
        for name, rows in samples.of[graph].items():
            assert np.array_equal(rows, again.of[graph][name])
    other = record(model, fights, 12, seed=4)
    assert not np.array_equal(other.of["glancer"]["frame"], samples.of["glancer"]["frame"])
    centre = record(with_patches(model, "centre"), fights, 12, seed=3)
    assert (centre.of["focuser"]["origin"] == 0.5).all()


def test_sources_stay_together_and_classes_are_shared():
    examples = [
        Example(f"{source}-{number}", Path("x"), (source % 2,), source=f"s{source}")
        for source in range(20)
        for number in range(1 + source % 3)
    ]
    one, other = halve(examples, 0.5, seed=0)
    assert len(one) + len(other) == len(examples)
    assert not {e.source for e in one} & {e.source for e in other}
    for label in (0, 1):
        counts = [sum(e.labels[0] == label for e in side) for side in (one, other)]
        assert abs(counts[0] - counts[1]) <= 2
    assert [e.name for e in halve(examples, 0.5, seed=0)[0]] == [e.name for e in one]
    small_part, _ = halve(examples, 0.2, seed=0)
    assert len(small_part) == pytest.approx(0.2 * len(examples), abs=4)


def test_live_windows_are_taken_at_the_glimpse_rate(fights):
    spec = read_bundle(default_bundle()).spec
    examples = read_data(FIGHTS, ("fight", "no_fight")).examples[:2]
    windows = read_windows(examples, spec, glimpse_fps=10, most=100)
    clip = examples[0].open_clip()
    assert len(windows) >= 2
    per_clip = int((clip.frame_count - 1 + clip.fps / 10) / (clip.fps / 10 * spec.segments))
    assert sum(name.startswith(examples[0].name) for name in windows.names) == min(per_clip, 4)
    assert len(read_windows(examples, spec, glimpse_fps=10, most=1)) == 1
    with pytest.raises(DataError, match=r"clips of 14.0 s \(8 glimpses, 0.5 per second\).* give --glimpse-fps"):
        read_windows(examples, spec, glimpse_fps=0.5, most=100)


# -- TensorRT ---------------------------------------------------------------------------------------------------------


def makers_of(layers_found):
    """The layer that makes each tensor."""
    return {layer.get_output(n).name: layer for layer in layers_found for n in range(layer.num_outputs)}


@RTX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("which", "name"), [("default", "glancer"), ("default", "focuser"), ("small", "focuser")])
def test_tensorrt_finds_every_pair_where_it_wants_it(which, name, small, samples, tmp_path):
    """On the network that TensorRT made of the graph: convolutions, residual additions and pooling read 8 bits."""
    bundle = read_bundle(default_bundle()) if which == "default" else small
    graph = load_graph(bundle.graph_path("fp32", name))
    if which == "default":
        ranges = ranges_of(graph, samples, name)
    else:
        feeds = {"frame": np.full((2, 224, 224, 3), 90, np.uint8), "origin": np.zeros((2, 2), np.float32)}
        ranges = {tensor: h.range_by("minmax") for tensor, h in histograms(graph, lambda: [feeds]).items()}
    made = int8.for_tensorrt(graph, ranges, skip=int8.stem(graph))
    save_graph(made, tmp_path / "int8.onnx")
    trt, _parser, _network, found = parsed(tmp_path / "int8.onnx", bundle.spec, name)
    makers = makers_of(found)

    def reads_bytes(layer, place):
        maker = makers.get(layer.get_input(place).name)
        return maker is not None and maker.type == trt.LayerType.DEQUANTIZE

    def source(tensor):
        """The layer behind activations."""
        maker = makers.get(tensor.name)
        while maker is not None and maker.type == trt.LayerType.ACTIVATION:
            maker = makers.get(maker.get_input(0).name)
        return maker

    convolutions = [layer for layer in found if layer.type == trt.LayerType.CONVOLUTION]
    assert len(convolutions) == len(layers(graph))
    for layer in convolutions[len(int8.stem(graph)) :]:
        assert reads_bytes(layer, 0), layer.name
        assert reads_bytes(layer, 1), layer.name  # its weights, 8-bit constants
    additions = [
        layer for layer in found
        if layer.type == trt.LayerType.ELEMENTWISE and len(layer.get_output(0).shape) == 4
        and layer.get_output(0).dtype == trt.float32 and source(layer.get_input(0)) is not None
        and any((s := source(layer.get_input(p))) is not None and s.type == trt.LayerType.CONVOLUTION for p in (0, 1))
        and any(reads_bytes(layer, p) for p in (0, 1))
    ]  # fmt: skip
    residual = sum(node.op_type == "Add" and node.output[0] in ranges for node in graph.graph.node)
    assert len(additions) == residual
    for layer in additions:  # the branch that skips in 8 bits, the convolution's own straight into the addition
        assert sorted([reads_bytes(layer, 0), reads_bytes(layer, 1)]) == [False, True], layer.name
    pools = [layer for layer in found if layer.type in (trt.LayerType.REDUCE, trt.LayerType.POOLING)]
    assert pools
    assert all(reads_bytes(layer, 0) for layer in pools)
    zero_points = [onnx.numpy_helper.to_array(w) for w in made.graph.initializer if w.name.endswith("zero_point")]
    assert all((zero == 0).all() for zero in zero_points)
    biases = {node.input[2] for node in made.graph.node if node.op_type == "Conv"}
    assert biases <= {w.name for w in made.graph.initializer if w.data_type == onnx.TensorProto.FLOAT}


@RTX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", GRAPHS)
def test_half_precision_is_typed_in_the_graph(name, small, tmp_path):
    graph = load_graph(small.graph_path("fp32", name))
    save_graph(to_half(graph), tmp_path / "half.onnx")
    trt, _parser, _network, found = parsed(tmp_path / "half.onnx", small.spec, name)
    session = OrtSession(tmp_path / "half.onnx")
    assert (session.inputs, session.outputs) == contract(small.spec, name)
    heavy = [n for n in found if n.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)]
    kept = 1 if name == "policy" else 0  # the layer that decides on the patch
    assert len(heavy) == len(layers(graph))
    assert sum(layer.get_output(0).dtype == trt.float32 for layer in heavy) == kept
    assert sum(layer.get_output(0).dtype == trt.float16 for layer in heavy) == len(heavy) - kept
    assert os.path.getsize(tmp_path / "half.onnx") < 0.6 * os.path.getsize(small.graph_path("fp32", name))


def test_half_precision_looks_at_the_same_places(model, fights, tmp_path):
    for name in GRAPHS:
        save_graph(to_half(graph_of(default_bundle(), name)), tmp_path / f"{name}.onnx")
    from adafocus_edge.backends.onnxruntime import open_graphs

    with open_graphs(model.spec, lambda name: tmp_path / f"{name}.onnx", "fp16", "onnxruntime-cpu") as half:
        for frames in fights.frames:
            for one, other in zip(see_clip(model, frames), see_clip(half, frames), strict=True):
                assert np.array_equal(one.origins, other.origins)
                np.testing.assert_allclose(one.logits, other.logits, atol=0.1)


# -- comparing --------------------------------------------------------------------------------------------------------


def test_what_a_variant_costs_is_counted():
    logits = np.zeros((4, 2, 3), np.float32)
    logits[:, :, 0] = 1
    changed = logits.copy()
    changed[1, 1] = [0, 3, 0]
    patches = np.zeros((4, 2, 2), np.int64)
    moved = patches.copy()
    moved[2, 0] = [5, 0]
    found = compare(Run(changed, moved), Run(logits, patches), np.array([0, 0, 0, 1]))
    assert found.top1 == 50
    assert found.top1_drop == 25
    assert found.label_agreement == 75
    assert found.action_agreement == 87.5
    assert found.clips_with_other_patches == 1
    assert (found.logit_error_max, found.logit_scale) == (3, 1)


# -- the bundle -------------------------------------------------------------------------------------------------------


def test_a_variant_is_replaced_in_one_step(small_bundle, tmp_path):
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    before = read_bundle(bundle)
    for content in ("first", "second"):
        folder = tmp_path / content
        shutil.copytree(bundle / "fp32", folder)

        def change(manifest, content=content):
            from dataclasses import replace

            graphs = {
                n: replace(g, file=f"copy/{n}.onnx", precision=content) for n, g in manifest.variants["fp32"].items()
            }
            return replace(manifest, variants={**manifest.variants, "copy": graphs})

        after = update_bundle(bundle, change, "copy", folder)
        assert after.manifest.variants["copy"]["policy"].precision == content
        assert not folder.exists()
    assert after.manifest.variants["fp32"] == before.manifest.variants["fp32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


# -- the verb ---------------------------------------------------------------------------------------------------------

REPORT_KEYS = ["rows", "thresholds", "clips_seen", "warnings", "judged", "measured"]
MADE_KEYS = [
    "method", "methods", "graphs_alone", "kept", "on_calibration_clips", "reduce_range", "data", "tools", "settings",
]  # fmt: skip
JUDGED_KEYS = [
    "purpose", "size_mb", "share_of_fp32_size", "top1", "top1_interval_95", "top1_drop", "top1_drop_interval_95",
    "label_agreement", "action_agreement", "clips_with_other_patches", "logit_error_max", "logit_error_mean",
    "logit_scale", "per_step_top1", "exits", "clips", "ms_per_clip", "ms_per_step", "times_faster_per_clip",
]  # fmt: skip
"""Keys of the report and of its rows, in the order in which `bundle.json` has always had them."""
QUICK = ["--clips", "6", "--samples", "16", "--method", "minmax", "--threads", "2", "--max-accuracy-drop", "100"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The default model, calibrated on its own clips by the command line."""
    folder = tmp_path_factory.mktemp("calibrated")
    done = edge(
        "calibrate", "--data", FIGHTS, "-o", folder / "bundle", *QUICK, "--orders", "clip,coarse-to-fine,live",
        "--glimpse-fps", "4", "--plot", folder / "report.png", "--variants", "int8-cpu,int8-trt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "early exit" in done.stdout
    assert "in brackets: times of variants made for other hardware" in done.stdout
    return folder / "bundle"


def test_the_report_is_in_the_manifest_and_in_a_picture(calibrated):
    assert (calibrated.parent / "report.png").read_bytes().startswith(b"\x89PNG")
    bundle = read_bundle(calibrated)
    rows = bundle.manifest.reports["calibration"]["rows"]
    assert sorted(rows) == ["fp16", "fp32", "int8-cpu", "int8-trt"]  # the default model has fp16 already
    assert list(bundle.manifest.reports["calibration"]) == REPORT_KEYS
    assert list(rows["fp32"]) == JUDGED_KEYS
    assert list(rows["int8-cpu"]) == [*MADE_KEYS, *JUDGED_KEYS, "verdict", "layers"]
    assert rows["fp32"]["top1_drop"] == 0
    assert rows["fp32"]["label_agreement"] == rows["fp32"]["action_agreement"] == 100
    row = rows["int8-cpu"]
    assert row["share_of_fp32_size"] <= 0.30
    assert row["settings"]["seed"] == 1007
    assert row["settings"]["samples"] == 16
    assert set(row["graphs_alone"]) == set(GRAPHS)
    assert {entry["graph"] for entry in row["kept"]} == {"glancer", "focuser"}
    assert all(rows[name]["ms_per_clip"] > 0 and rows[name]["ms_per_step"] > 0 for name in rows)
    assert set(row["layers"]) == {"glancer", "focuser"}
    sets = bundle.manifest.thresholds
    assert set(sets) == {"half", "safe"}
    assert [one.order for one in sets["half"]] == ["clip", "coarse-to-fine", "live"]
    assert sets["half"][2].glimpse_fps == 4
    assert set(row["exits"]["half"]) == {"clip", "coarse-to-fine", "live"}
    precisions = {graph: info.precision for graph, info in bundle.manifest.variants["int8-cpu"].items()}
    assert precisions == {
        "glancer": "int8 U8S8, 49 of 52 layers", "policy": "int8 dynamic, 4 of 5 layers",
        "focuser": "int8 U8S8, 49 of 52 layers", "classifier": "int8 dynamic",
    }  # fmt: skip
    assert bundle.choose_variant() == "fp32"  # a variant is chosen with open eyes


def test_what_was_made_is_kept_and_replaced_only_by_force(calibrated, tmp_path):
    bundle = Path(shutil.copytree(calibrated, tmp_path / "bundle"))
    again = ["calibrate", bundle, "--data", FIGHTS, *QUICK, "--exit-goal", "none", "--variants", "int8-cpu"]
    before = (bundle / "bundle.json").read_bytes()
    done = edge(*again)
    assert done.returncode == 0, done.stderr
    assert "int8-cpu: kept, already made with the same clips and options" in done.stderr
    assert (bundle / "bundle.json").read_bytes() == before
    one_line_error(edge(*again, "--seed", 3), 2, "variant int8-cpu exists, made with other clips or options", "--force")
    assert (bundle / "bundle.json").read_bytes() == before
    done = edge(*again, "--seed", 3, "--force")
    assert done.returncode == 0, done.stderr
    after = read_bundle(bundle).manifest
    assert after.reports["calibration"]["rows"]["int8-cpu"]["settings"]["seed"] == 3
    assert set(after.variants) == {"fp16", "fp32", "int8-cpu", "int8-trt"}
    assert set(after.thresholds) == {"half", "safe"}
    goal = ["--variants", "none", "--exit-goal", "half=steps:3"]
    one_line_error(edge("calibrate", bundle, "--data", FIGHTS, *QUICK, *goal), 2, "exit thresholds half exist, solved")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_clips_stop_early_by_the_bundles_thresholds(calibrated, tmp_path):
    video = FIGHTS / "fight" / "fi013.mp4"
    sets = read_bundle(calibrated).manifest.thresholds["half"]
    for name, thresholds in (("half", sets[0]), ("half/coarse-to-fine", sets[1])):
        done = edge(
            "classify",
            video,
            "--bundle",
            calibrated,
            "--variant",
            "int8-cpu",
            "--exit",
            name,
            "--json",
            "--logits",
            "-q",
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        passed = [thresholds.passes(n, np.array(step["logits"], np.float32)) for n, step in enumerate(result["steps"])]
        assert not any(passed[:-1])
        assert result["steps_used"] == 8 or passed[-1]
        frames = [step["frame_index"] for step in result["steps"]]
        if thresholds.order == "clip":
            assert frames == sorted(frames)
        elif len(frames) > 1:
            assert frames[0] > frames[1]  # the middle, then the first
    one_line_error(
        edge("classify", video, "--bundle", calibrated, "--exit", "none", "-q"), 2, "no exit thresholds 'none'"
    )
    one_line_error(edge("classify", video, "--bundle", calibrated, "--exit", "half/live", "-q"), 2, "files are seen in")
    copy_plain_model(tmp_path / "plain")
    plain = edge("classify", video, "--bundle", tmp_path / "plain", "--exit", "half", "-q")
    one_line_error(plain, 2, "`adafocus-edge calibrate` computes them")


def test_evaluation_counts_early_exits(calibrated):
    done = edge("evaluate", calibrated, "--data", FIGHTS, "--exit", "half", "--json", "-q")
    assert done.returncode == 0, done.stderr
    early = json.loads(done.stdout)["exit"]
    assert 1 <= early["mean_steps"] <= 8
    assert early["gflops_per_clip"] == pytest.approx(
        json.loads(done.stdout)["gflops_per_clip"] * early["mean_steps"] / 8, rel=1e-3
    )
    table = edge("evaluate", calibrated, "--data", FIGHTS, "--exit", "half/coarse-to-fine", "-q")
    assert "as many exits at random" in table.stdout


def test_inspect_shows_variants_and_thresholds(calibrated):
    shown = edge("inspect", calibrated).stdout
    assert "variant int8-cpu" in shown
    assert "half: at most 4 steps, clip" in shown


def test_plain_videos_will_do(tmp_path):
    """Without labels, accuracy is agreement with the float model."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for clip in sorted(FIGHTS.glob("*/*.mp4"))[:8]:
        shutil.copy(clip, videos)
    done = edge("calibrate", "--data", videos, "-o", tmp_path / "b", *QUICK, "--variants", "fp16", "--json")
    assert done.returncode == 0, done.stderr
    assert "no labels, so accuracy is measured as agreement" in done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert rows["fp32"]["top1"] == 100
    assert rows["fp16"]["settings"]["labelled"] is False
    # The default model's own, which was converted without data, is replaced, and what was said of it goes with it.
    assert "fp16: replaced the variant that was converted without data" in done.stderr
    reports = [read_bundle(path).manifest.reports for path in (default_bundle(), tmp_path / "b")]
    assert ["fp16" in one for one in reports] == [True, False]


def test_sensitive_layers_are_kept_until_the_variant_fits(model, fights, samples, tmp_path):
    """With labels that only the float model gives, whatever quantization changes counts as lost."""
    from calibration.compare import run
    from calibration.remembering import remembering
    from calibration.variants import Choices, Maker

    bundle = read_bundle(default_bundle())
    reference = run(model, fights)
    from dataclasses import replace

    activities = []
    clips = replace(fights, labels=reference.logits[:, -1].argmax(axis=1))
    maker = Maker(
        remembering(model), lambda graph: bundle.graph_path("fp32", graph), samples, clips, reference,
        Choices("minmax", -1.0, True, 2), tmp_path, lambda what, *_: activities.append(what),
    )  # fmt: skip
    # Not even a perfect variant gains a point, so every graph ends up whole: the search runs to its end.
    made = maker.make("int8-cpu")
    assert any("each layer of the focuser alone" in what for what in activities)
    assert any("without each of its worst layers" in what for what in activities)
    facts = made.quantization
    assert facts.on_calibration_clips.logit_error_max <= 1e-3
    assert "more than --max-accuracy-drop" in made.notes[0]
    whole = {entry.graph for entry in facts.kept if entry.layer == "all"}
    costly = {graph for graph, cost in facts.graphs_alone.items() if cost.logit_error_max > 0}
    assert whole == costly >= {"focuser", "classifier"}  # graphs that cost nothing stay as they are
    assert all(entry.why for entry in facts.kept)
    assert made.precision["focuser"] == "fp32"
    ranked = maker._ranked("int8-cpu", "focuser", "minmax")
    scores = [layer.error_alone + layer.error_saved for layer in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(ranked) == len(layers(maker.float["focuser"])) - 3


def test_a_killed_run_leaves_the_bundle_whole_and_is_finished_by_the_next(tmp_path):
    bundle = tmp_path / "bundle"
    command = [
        "calibrate",
        "--data",
        FIGHTS,
        "-o",
        bundle,
        *QUICK,
        "--variants",
        "fp16,int8-cpu",
        "--exit-goal",
        "none",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (bundle / "fp16").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = read_bundle(bundle).manifest  # whole
    assert "int8-cpu" not in there.variants
    done = edge(*command)
    assert done.returncode == 0, done.stderr
    after = read_bundle(bundle).manifest
    assert set(after.variants) == {"fp32", "fp16", "int8-cpu"}
    rows = after.reports["calibration"]["rows"]
    assert set(rows) == {"fp32", "fp16", "int8-cpu"}
    assert all(row["ms_per_clip"] and row["clips"] for row in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_bad_data_and_options_are_told_in_a_line(small_bundle, tmp_path):
    videos = sorted(FIGHTS.glob("*/*.mp4"))
    rows = [f"{video},{video.parent.name}" for video in videos]

    def csv(name, lines):
        path = tmp_path / name
        path.write_text("video,class\n" + "\n".join(lines) + "\n")
        return path

    out = ["-o", tmp_path / "out"]
    few = edge("calibrate", "--data", csv("few.csv", rows[:4]), *out, "-q")
    one_line_error(few, 1, "few.csv: ", "at least 4 are needed")
    strange = edge("calibrate", "--data", csv("strange.csv", [*rows, f"{videos[0]},dancing"]), *out, "-q")
    one_line_error(strange, 1, "strange.csv, line 14: unknown class 'dancing'; the classes are fight, no_fight")
    gone = edge("calibrate", "--data", csv("gone.csv", [f"gone{n}.mp4,fight" for n in range(9)]), *out, "-q")
    one_line_error(gone, 1, "only 0 of ")
    one_line_error(edge("calibrate", "--data", FIGHTS, "-q"), 2, "--output is missing")
    one_line_error(edge("calibrate", small_bundle, "-q"), 2, "--data is missing")
    one_line_error(
        edge("calibrate", "--data", FIGHTS, *out, "--variants", "int4", "-q"), 2, "--variants int4: must be one of"
    )
    one_line_error(edge("calibrate", "--data", FIGHTS, *out, "--exit-goal", "fast", "-q"), 2, "NAME=KIND:VALUE")
    one_line_error(
        edge("calibrate", "--data", FIGHTS, *out, "--method", "best", "-q"), 2, "--method", "'best' is not one of"
    )
    other = edge("calibrate", small_bundle, "--data", FIGHTS, "-q")
    one_line_error(other, 1, "unknown class")
    shutil.copytree(small_bundle, tmp_path / "other")
    one_line_error(edge("calibrate", "--data", FIGHTS, "-o", tmp_path / "other", "-q"), 2, "a bundle of another model")
    same = edge("calibrate", "--data", FIGHTS, "--report-on", FIGHTS, *out, "-q")
    one_line_error(same, 2, "of its clips are also in --data")
    slow = ["--variants", "none", "--orders", "live", "--glimpse-fps", "0.5"]
    one_line_error(edge("calibrate", "--data", FIGHTS, *out, *QUICK, *slow, "-q"), 1, "give --glimpse-fps")
    one_class = csv("one.csv", [*(row for row in rows if row.endswith(",fight")), *(row for row in rows[-1:])])
    done = edge("calibrate", "--data", one_class, *out, *QUICK, "--variants", "none", "--exit-goal", "a=accuracy:101")
    one_line_error(done, 1, "at least 4 are needed")


def test_a_class_that_no_clip_shows_is_told(tmp_path):
    videos = sorted(FIGHTS.glob("fight/*.mp4")) + sorted(FIGHTS.glob("no_fight/*.mp4"))[:1]
    rows = "".join(f"{video},{video.parent.name}\n" for video in [*videos, *videos[:2]])
    (tmp_path / "data.csv").write_text(f"video,class\n{rows}")
    goal = ["--variants", "none", "--exit-goal", "a=steps:4"]
    done = edge("calibrate", "--data", tmp_path / "data.csv", "-o", tmp_path / "b", *QUICK, *goal)
    assert done.returncode == 0, done.stderr
    assert "for 1 of the 2 classes: no_fight" in done.stderr
    for bad, words in (
        ("a=steps:9", "a clip has only 8 steps"),
        ("a=gflops:0.01", "one step alone takes 0.252 GFLOPs"),
    ):
        done = edge("calibrate", tmp_path / "b", "--data", tmp_path / "data.csv", *QUICK, "--exit-goal", bad, "-q")
        one_line_error(done, 2, words)


def test_ties_go_to_the_emptier_side():
    examples = [Example(f"{n}", Path("x"), (n,)) for n in range(200)]
    one, other = halve(examples, 0.5, seed=0)
    assert len(one) == len(other) == 100


def test_half_precision_chooses_the_same_places_in_any_grid(golden_bundle, tmp_path):
    """Origins equal to the last bit: a table of sevenths has no exact half-precision numbers."""
    path = golden_bundle / "fp32" / "policy.onnx"
    graph = load_graph(path)
    random = np.random.default_rng(0)
    feeds = {
        "feature_map": np.abs(random.normal(size=(64, *OrtSession(path).inputs[0].shape[1:]))).astype(np.float32),
        "policy_state": np.tanh(random.normal(size=(64, 1024))).astype(np.float32),
    }
    made = run_graph(to_half(graph), feeds, tmp_path / "half.onnx")
    expected = OrtSession(path).run(feeds)
    same = made["action"] == expected["action"]
    assert same.mean() > 0.9
    assert np.array_equal(made["origin"][same], expected["origin"][same])
    half = load_graph(tmp_path / "half.onnx")
    makers = producers(half)
    for node in half.graph.node:  # no way through half precision and back
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT and node.input[0] in makers:
            before = makers[node.input[0]]
            assert before.op_type != "Cast" or before.attribute[0].i != onnx.TensorProto.FLOAT16


def test_layers_near_overflow_stay_single(samples):
    graph = graph_of(default_bundle(), "focuser")
    name = next(node for node in graph.graph.node if node.name == layers(graph)[10])
    half = to_half(graph, {name.output[0]: (-4e4, 10.0)})
    weights = {w.name: w.data_type for w in half.graph.initializer}
    kinds = [weights[node.input[1]] for node in half.graph.node if node.op_type == "Conv"]
    assert kinds.count(onnx.TensorProto.FLOAT) == 1
    assert kinds[10] == onnx.TensorProto.FLOAT


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    from adafocus_edge.cli import calibrate
    from adafocus_edge.cli.outputs import HiddenBars

    monkeypatch.setattr(calibrate, "LINE_EVERY_S", 0.0)
    calibrate._Shown(HiddenBars(), quiet=False).show("ranges of the focuser", 3, 12)
    calibrate._Shown(HiddenBars(), quiet=True).show("ranges of the focuser", 3, 12)
    monkeypatch.setattr(calibrate, "LINE_EVERY_S", 60.0)
    calibrate._Shown(HiddenBars(), quiet=False).show("timing", 0, 0)
    assert capsys.readouterr().err == "ranges of the focuser, 3 of 12 (0 min so far)\n"
