"""The exported graphs: the contract's shapes, nothing that TensorRT cannot parse, and PyTorch's numbers."""

import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.errors import ExportError
from adafocus_edge.model.spec import GRAPHS, contract
from adafocus_edge.runtime.glimpse import see_clip
from export.graphs import export_graph
from export.parity import compare, largest_error
from tests.conftest import GOLDEN, ROOT, SMALL, edge, official_spec, one_line_error, write_checkpoint
from tests.support.trt_networks import parsed
from tests.training.test_checkpoint import Runs
from tests.training.test_model import frames_of
from training.checkpoint import ModelOptions, infer_spec, read_checkpoint
from training.graphs import count_gflops, torch_model
from training.model import AdaFocus
from training.settings import setting_warnings, settings_of


def test_graphs_keep_the_contract(small_bundle):
    for name in (*GRAPHS, "step"):
        path = small_bundle / "fp32" / f"{name}.onnx"
        graph = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(graph, full_check=True)
        inputs, outputs = contract(SMALL, name)
        session = OrtSession(path)
        assert (session.inputs, session.outputs) == (inputs, outputs)
        assert not any(weight.external_data for weight in graph.graph.initializer)
        operators = {node.op_type for node in graph.graph.node}
        assert not operators & {"Loop", "Scan", "If", "GRU", "BatchNormalization", "Dropout"}
        assert graph.opset_import[0].version == 18


def test_there_is_no_glance_input_in_a_model_without_glancer(small_bundle):
    assert [t.name for t in OrtSession(small_bundle / "fp32" / "classifier.onnx").inputs] == ["focus", "state"]


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="TensorRT-RTX's wheels are for x86-64 Linux"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorrt_parses_and_builds_every_graph(small_bundle):
    """Strongly typed, dynamic batch, for an Ada GPU; TensorRT-RTX builds without having one."""
    for name in (*GRAPHS, "step"):
        parsed(small_bundle / "fp32" / f"{name}.onnx", SMALL, name)


def test_the_report_covers_every_graph_and_both_schedules(small_bundle):
    rows = read_bundle(small_bundle).manifest.reports["parity"]["rows"]
    assert [(row["what"], row["batch"]) for row in rows] == [
        *((graph, batch) for graph in GRAPHS for batch in (1, 3)),
        ("loop, clip schedule", 4),
        ("loop, stream schedule", 1),
        ("joined step", 1),
    ]
    assert all(row["max_error"] <= 2e-3 * max(1, row["scale"]) for row in rows)
    assert {row["what"]: row["same_actions"] for row in rows if row["same_actions"] is not None} == dict.fromkeys(
        ("policy", "loop, clip schedule", "loop, stream schedule", "joined step"), True
    )


def test_a_graph_that_differs_is_found(small_bundle, small_weights):
    """The comparison must be able to fail: compare the exported graphs with a model whose weights differ a little."""
    from adafocus_edge.backends.registry import load_model

    model = AdaFocus(SMALL)
    model.load_state_dict(small_weights)
    frames = frames_of(GOLDEN / "actnet96", count=SMALL.segments)
    with load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as exported:
        compare(model.eval(), exported, None, frames)
        with torch.no_grad():
            model.classifier.fc.bias[3] += 0.01
        with pytest.raises(ExportError, match="classifier .*logits is off by 0.01"):
            compare(model, exported, None, frames)
        with torch.no_grad():
            model.classifier.fc.bias[3] -= 0.01
            model.policy.actor[0].bias[7] += 1000
        with pytest.raises(ExportError, match="the policy chose other patches"):
            compare(model, exported, None, frames)


def test_what_is_no_number_is_an_error():
    assert largest_error(np.array([1.0, np.nan]), np.array([1.0, 1.0])) == np.inf
    assert largest_error(np.array([1.0, 1.5]), np.array([1.0, 1.0])) == 0.5


def small_export(checkpoint, bundle, *options):
    return edge(
        "export", checkpoint, "-o", bundle, "--patch-size", SMALL.patch_size, "--segments", SMALL.segments, *options
    )


def test_a_half_precision_variant_is_exported_without_data(small_checkpoint, small_bundle, tmp_path):
    done = small_export(small_checkpoint, tmp_path / "bundle", "--half", "--fused", "--json")
    assert done.returncode == 0, done.stderr
    bundle = read_bundle(tmp_path / "bundle")
    assert list(bundle.manifest.variants) == ["fp32", "fp16"]
    single, half = (bundle.manifest.variants[name] for name in ("fp32", "fp16"))
    assert set(single) == set(half) == {*GRAPHS, "step"}
    report = bundle.manifest.reports["fp16"]
    assert json.loads(done.stdout)["fp16"] == report
    for graph in half:
        assert half[graph].precision == "fp16"
        assert half[graph].size_bytes < 0.6 * single[graph].size_bytes
        stored = {weight.data_type for weight in onnx.load(bundle.graph_path("fp16", graph)).graph.initializer}
        assert onnx.TensorProto.FLOAT16 in stored
    # The reported figures are those of the same clip, run through both variants here.
    frames = frames_of(ROOT / "export" / "frames")[: SMALL.segments]
    logits = []
    for variant in ("fp32", "fp16"):
        with load_model(bundle, variant, "onnxruntime-cpu") as model:
            logits.append(np.concatenate([glimpse.logits for glimpse in see_clip(model, frames)]))
    assert 0 < np.abs(logits[0] - logits[1]).max() < 2e-2
    assert report["largest_error"] == pytest.approx(np.abs(logits[0] - logits[1]).max(), rel=0.5)
    assert report["label_agreement"] == 100
    assert report["same_patches"] is True
    assert "fp16 changes logits by up to" in done.stderr
    assert "fp16" not in read_bundle(small_bundle).manifest.variants  # only where it is asked for


def test_half_precision_needs_neither_a_quantizer_nor_pytorch():
    code = "import sys; import calibration.fp16; print([n for n in sys.modules if n in sys.argv[1:]])"
    unwanted = ("onnxruntime.quantization", "onnxruntime.transformers", "torch")
    done = subprocess.run([sys.executable, "-c", code, *unwanted], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_a_model_that_overflows_half_precision_is_refused(small_weights, tmp_path):
    weights = {name: value.clone() for name, value in small_weights.items()}
    loud = next(name for name in weights if name.startswith("focuser.") and name.endswith("bn1.weight"))
    weights[loud] *= 1e7
    done = small_export(write_checkpoint(weights, tmp_path / "loud.pth.tar"), tmp_path / "bundle", "--half")
    one_line_error(done, 1, "overflow half precision", "calibrate --variants fp16")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("patch_size", "focuser_gflops"), [(96, 0.751), (128, 1.335), (160, 2.085), (192, 3.003)])
def test_gflops_are_the_published_ones(patch_size, focuser_gflops):
    model = AdaFocus(official_spec(patch_size=patch_size))
    assert count_gflops(model, "glancer") == pytest.approx(0.2995, abs=1e-4)
    assert count_gflops(model, "focuser") == pytest.approx(focuser_gflops, rel=1e-3)


def test_mean_consensus_exports(tmp_path):
    spec = official_spec(
        focuser="mobilenet_v2", focus_dim=1280, consensus="fc", classes=5, classifier_state=6, policy_state=32
    )
    model = AdaFocus(spec).eval()
    export_graph(model, "classifier", tmp_path / "classifier.onnx")
    session = OrtSession(tmp_path / "classifier.onnx")
    _, sessions = torch_model(model, record=True)
    rng = np.random.default_rng(0)
    state = np.zeros((3, 6), np.float32)
    for _ in range(3):
        feeds = {"glance": rng.random((3, 1280), np.float32), "focus": rng.random((3, 1280), np.float32)}
        found = session.run({**feeds, "state": state})
        expected = sessions["classifier"].run({**feeds, "state": state})
        assert np.abs(found["logits"] - expected["logits"]).max() < 1e-5
        state = found["state_out"]
    assert state[:, -1].tolist() == [3, 3, 3]
    assert np.exp(found["logits"]).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_the_manifest_tells_where_it_comes_from(small_bundle, small_checkpoint):
    from adafocus_edge.bundle.store import sha256_of

    provenance = read_bundle(small_bundle).manifest.provenance
    assert provenance.checkpoint == small_checkpoint.name
    assert provenance.checkpoint_sha256 == sha256_of(small_checkpoint)
    assert provenance.tools["torch"] == torch.__version__.partition("+")[0]
    assert provenance.tools["onnxruntime"] == onnxruntime.__version__
    assert str(ROOT) not in (small_bundle / "bundle.json").read_text()


def test_a_patch_size_that_no_weights_tell_is_warned_of_and_recorded(small_checkpoint, tmp_path):
    """Parity is green at any size: the graphs are the same model as in PyTorch, and not the one that was trained."""
    done = edge("export", small_checkpoint, "-o", tmp_path / "b", "--patch-size", 129, "--segments", 8, "--json")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.partition(":")[2].split(":")[0].strip() for line in warnings] == ["--patch-size 129", "--segments 8"]
    assert "96, 128, 160, 192" in warnings[0]
    assert [f"warning: {text}" for text in json.loads(done.stdout)["warnings"]] == warnings
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    settings = manifest["provenance"]["settings"]
    assert settings["patch_size"] == {"value": 129, "origin": "option", "trained": None}
    assert settings["segments"] == {"value": 8, "origin": "option", "trained": None}
    assert settings["glance_size"]["origin"] == "weights"
    assert settings["fit"] == {"value": "crop", "origin": "default", "trained": None}
    shown = edge("inspect", tmp_path / "b").stdout
    assert "patch_size 129 (asked for)" in shown
    assert json.loads(edge("inspect", tmp_path / "b", "--json").stdout)["provenance"]["settings"] == settings


def test_an_option_that_contradicts_the_checkpoint_is_warned_of(small_weights, tmp_path):
    config = {"patch_size": 128, "num_segments": 8, "input_size": 224, "glance_size": 96, "fit": "crop"}
    path = write_checkpoint(small_weights, tmp_path / "own.pth.tar", config=config | {"motion_gap_s": 0.0})

    def settings(**options):
        checkpoint, asked = read_checkpoint(path), ModelOptions(**options)
        spec = infer_spec(checkpoint, asked)
        found = settings_of(checkpoint, asked, spec)
        return found, setting_warnings(found, spec)

    found, warnings = settings()
    assert {setting.origin for setting in found.values()} == {"checkpoint"}
    assert warnings == []
    assert settings(patch_size=128, num_segments=8) == (found, [])
    for options, words in (
        ({"patch_size": 96}, "--patch-size 96: the checkpoint was trained with patch_size=128"),
        ({"num_segments": 16}, "--segments 16: the checkpoint was trained with num_segments=8"),
        ({"glance_size": 80}, "--glance-size 80: the checkpoint was trained with glance_size=96"),
        ({"input_size": 256}, "--input-size 256: the checkpoint was trained with input_size=224"),
    ):
        found, warnings = settings(**options)
        assert len(warnings) == 1
        assert words in warnings[0]
    done = edge("export", path, "-o", tmp_path / "b", "--patch-size", 96)
    assert "warning: --patch-size 96: the checkpoint was trained with patch_size=128" in done.stderr
    assert "patch_size 96 (asked for; trained with 128)" in edge("inspect", tmp_path / "b").stdout


def test_class_names_in_another_order_are_refused(small_weights, tmp_path):
    names = list("abcdefg")
    path = write_checkpoint(small_weights, tmp_path / "own.pth.tar", class_names=names)
    (tmp_path / "classes.txt").write_text("\n".join(names[::-1]))
    done = edge("export", path, "-o", tmp_path / "b", "--patch-size", 96, "--classes", tmp_path / "classes.txt")
    one_line_error(done, 2, "classes.txt", "in another order", "class 0 was 'a', and is now 'g'")
    assert not (tmp_path / "b").exists()


def test_a_class_bias_is_added_to_the_logits_and_recorded(small_checkpoint, small_bundle, tmp_path):
    plain = read_bundle(small_bundle)
    name = plain.classes[1]
    named = (
        "export",
        small_checkpoint,
        "--patch-size",
        SMALL.patch_size,
        "--classes",
        small_bundle / "classes.txt",
        "-q",
    )
    done = edge(*named, "-o", tmp_path / "b", "--class-bias", f"{name}=1.5")
    assert done.returncode == 0, done.stderr
    biased = read_bundle(tmp_path / "b")
    assert biased.manifest.provenance.settings["class_bias"].value == f"{name}=+1.5"
    logits = []
    for bundle in (plain, biased):
        frames = frames_of(ROOT / "export" / "frames")[: SMALL.segments]
        with load_model(bundle, "fp32", "onnxruntime-cpu", 1) as model:
            logits.append(np.concatenate([glimpse.logits for glimpse in see_clip(model, frames)]))
    added = logits[1] - logits[0]
    assert np.allclose(added[..., 1], 1.5, atol=1e-4)
    assert np.allclose(np.delete(added, 1, axis=-1), 0, atol=1e-4)
    twice = edge(*named, "-o", tmp_path / "c", "--class-bias", f"{name}=1", "--class-bias", f"{name}=2")
    one_line_error(twice, 2, f"--class-bias {name}: given twice")
    for text, words in (("nobody=1", "no such class"), (f"{name}=x", "must be CLASS=LOGITS"), ("1", "must be CLASS=")):
        refused = edge(*named, "-o", tmp_path / "c", "--class-bias", text)
        one_line_error(refused, 2, words)
    assert not (tmp_path / "c").exists()


def test_class_names_must_fit(small_checkpoint, tmp_path):
    classes = tmp_path / "classInd.txt"
    classes.write_text("one\ntwo\n")
    done = edge("export", small_checkpoint, "-o", tmp_path / "b", "--patch-size", 160, "--classes", classes)
    one_line_error(done, 1, "classInd.txt", "names 2 classes", "7")
    classes.write_text("".join(f"{number} Kind{number}\n" for number in range(1, 8)))
    done = edge("export", small_checkpoint, "-o", tmp_path / "n", "--patch-size", 160, "--classes", classes)
    assert done.returncode == 0, done.stderr
    assert read_bundle(tmp_path / "n").classes == tuple(f"Kind{number}" for number in range(1, 8))
    shutil.rmtree(tmp_path / "n")
    classes.write_text("".join(f"{number} Kind{number}\n" for number in (0, 2, 1, 3, 4, 5, 6)))
    done = edge("export", small_checkpoint, "-o", tmp_path / "b", "--patch-size", 160, "--classes", classes)
    one_line_error(done, 1, "classInd.txt", "line 2 is number 2: sort the lines by their numbers")
    classes.write_text("one\n\nthree\n4\n5\n6\n7\n")
    done = edge("export", small_checkpoint, "-o", tmp_path / "b", "--patch-size", 160, "--classes", classes)
    one_line_error(done, 1, "classInd.txt", "line 2 is empty")
    assert list(tmp_path.iterdir()) == [classes]


def test_errors_leave_nothing_behind(small_checkpoint, small_weights, tmp_path):
    target = tmp_path / "new" / "b"
    one_line_error(edge("export", tmp_path / "none.pth", "-o", target, "--patch-size", 96), 1, "no such checkpoint")
    one_line_error(edge("export", small_checkpoint, "-o", target), 2, "--patch-size")
    one_line_error(
        edge("export", small_checkpoint, "-o", target, "--patch-size", 96, "--input-size", 99999), 2, "at most 2048"
    )
    evil = tmp_path / "evil.pth.tar"
    torch.save({"glancer": Runs(os.system, f"touch {tmp_path}/was-run")}, evil)
    one_line_error(edge("export", evil, "-o", target, "--patch-size", 96), 1, "evil.pth.tar: refused", "posix.system")
    evil.unlink()
    other = dict(small_weights) | {"focuser.net.conv1.weight": torch.zeros(64, 3, 3, 3)}
    torch.save(other, tmp_path / "other.pth")
    one_line_error(
        edge("export", tmp_path / "other.pth", "-o", target, "--patch-size", 96), 1, "focuser.net.conv1.weight", "shape"
    )
    (tmp_path / "other.pth").unlink()
    named = write_checkpoint(small_weights, tmp_path / "named.pth", class_names=["a", "", "c", "d", "e", "f", "g"])
    one_line_error(edge("export", named, "-o", target, "--patch-size", 96), 1, "named.pth", "class 1 is named ''")
    named.unlink()
    stage1 = write_checkpoint(
        {name: value for name, value in small_weights.items() if ".policy." not in name}, tmp_path / "s1.pth.tar"
    )
    one_line_error(edge("export", stage1, "-o", target, "--patch-size", 96), 1, "stage-1", "stages 2 and 3")
    one_line_error(
        edge("export", small_checkpoint, "-o", target, "--patch-size", 96, "--frames", tmp_path / "no.mp4"),
        1, "no.mp4", "no such file",
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s1.pth.tar"]


def test_what_is_there_is_kept_unless_told(small_checkpoint, small_bundle, tmp_path):
    before = (small_bundle / "bundle.json").read_bytes()
    arguments = ("export", small_checkpoint, "--patch-size", 160, "-o")
    one_line_error(edge(*arguments, small_bundle), 2, "exists already", "--force")
    assert (small_bundle / "bundle.json").read_bytes() == before
    (tmp_path / "photos").mkdir()
    one_line_error(edge(*arguments, tmp_path / "photos", "--force"), 2, "is not a bundle")
    assert (tmp_path / "photos").is_dir()
