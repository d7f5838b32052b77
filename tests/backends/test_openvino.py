"""OpenVINO as a backend: the same results as ONNX Runtime, and clear words where it cannot run."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adafocus_edge import AdaFocus
from adafocus_edge.backends.openvino import OpenVinoSession
from adafocus_edge.backends.registry import find_backend, load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.evaluation.dataset import read_data
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from adafocus_edge.runtime.served import served_model
from adafocus_edge.runtime.settings import RunOptions
from tests.conftest import ROOT, edge

pytest.importorskip("openvino")
FIGHTS = ROOT / "tests" / "fights"
LIMITS = {"fp32": 2e-3, "int8-cpu": 0.15}
"""Maximum difference of logits to ONNX Runtime. 8-bit kernels round the results of layers in other places."""


def clips(bundle):
    for example in read_data(FIGHTS, bundle.classes).examples[:4]:
        yield [pixels for _, pixels in sampled_frames(example.open_clip(), bundle.spec)]


@pytest.mark.parametrize("variant", list(LIMITS))
def test_both_schedules_give_the_results_of_onnx_runtime(variant):
    bundle = read_bundle(default_bundle())
    with load_model(bundle, variant, "cpu", 2) as model, load_model(bundle, variant, "openvino", 2) as other:
        assert (other.backend, other.variant) == ("openvino", variant)
        for frames in clips(bundle):
            wanted, found = (list(see_clip(one, frames)) for one in (model, other))
            stream = GlimpseStream(other)
            stepped = [stream.see([frame]) for frame in frames]
            same_path = np.array_equal([g.origins for g in wanted], [g.origins for g in found])
            assert same_path or variant != "fp32"
            if same_path:
                for one, two, three in zip(wanted, found, stepped, strict=True):
                    np.testing.assert_allclose(two.logits, one.logits, atol=LIMITS[variant])
                    np.testing.assert_allclose(three.logits, two.logits, atol=1e-3)
            assert wanted[-1].logits.argmax() == found[-1].logits.argmax()


def test_a_device_that_needs_fixed_shapes_gets_a_graph_for_every_batch():
    bundle = read_bundle(default_bundle())
    frames = np.random.default_rng(0).integers(0, 256, (3, bundle.spec.frame_size, bundle.spec.frame_size, 3), np.uint8)
    path = bundle.graph_path("fp32", "glancer")
    free, fixed = OpenVinoSession(path), OpenVinoSession(path, fixed=True)
    assert fixed.inputs == free.inputs
    for rows in (1, 3, 2, 1):
        wanted, found = (session.run({"frame": frames[:rows]}) for session in (free, fixed))
        assert found["glance"].shape == (rows, bundle.spec.glance_dim)
        np.testing.assert_allclose(found["glance"], wanted["glance"], atol=1e-4)


def test_results_are_not_written_over_by_the_next_run():
    bundle = read_bundle(default_bundle())
    side = bundle.spec.frame_size
    session = OpenVinoSession(bundle.graph_path("fp32", "glancer"))
    first = session.run({"frame": np.zeros((1, side, side, 3), np.uint8)})["glance"]
    kept = first.copy()
    session.run({"frame": np.full((1, side, side, 3), 200, np.uint8)})
    np.testing.assert_array_equal(first, kept)


def test_several_threads_run_one_session_at_a_time_each_with_its_own_results():
    bundle = read_bundle(default_bundle())
    side = bundle.spec.frame_size
    session = OpenVinoSession(bundle.graph_path("fp32", "glancer"), threads=1)
    frames = [np.full((1, side, side, 3), shade, np.uint8) for shade in range(0, 240, 30)]
    alone = [session.run({"frame": frame})["glance"] for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda frame: session.run({"frame": frame})["glance"], frames)
            for one, two in zip(found, alone, strict=True):
                np.testing.assert_array_equal(one, two)


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(BackendError, match=r"--device NPU: OpenVINO has no such device here; it has .*CPU"):
        load_model(read_bundle(default_bundle()), "fp32", "openvino", device="NPU")


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_other_backends_have_no_devices_to_choose_from(backend):
    with pytest.raises(UsageError, match=r"--device GPU: only for --backend openvino"):
        load_model(read_bundle(default_bundle()), "fp32", backend, device="GPU")


def test_a_graph_that_openvino_cannot_read_is_named(tmp_path):
    (tmp_path / "glancer.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"glancer\.onnx: OpenVINO cannot run it on CPU: "):
        OpenVinoSession(tmp_path / "glancer.onnx")


def test_it_is_chosen_by_name_only():
    assert find_backend("openvino").auto_rank is None
    with AdaFocus(backend="openvino", device="cpu") as model, AdaFocus(backend="cpu") as other:
        clip = FIGHTS / "fight" / "fi013.mp4"
        assert model.backend == "openvino"
        assert model(clip).confidence == pytest.approx(other(clip).confidence, abs=1e-3)


def test_files_side_by_side_give_the_results_of_one_after_the_other():
    clips = sorted(FIGHTS.glob("*fight/*.mp4"))[:4]
    with AdaFocus(backend="openvino", device="CPU") as model:
        alone = {str(clip): model(clip).to_dict()["confidence"] for clip in clips}
        together = [found.to_dict() for found in model.each([str(clip) for clip in clips * 3])]
    assert len(together) == 12
    for found in together:
        assert found["backend"] == "openvino"
        assert found["confidence"] == pytest.approx(alone[found["source"]], abs=1e-6)


def test_a_server_has_its_own_device():
    with pytest.raises(UsageError, match="--device: is for models that run here; with --engine triton://host:8001"):
        served_model(RunOptions(engine="triton://host:8001", device="NPU"), None)


def test_classify_runs_on_it():
    clip = FIGHTS / "fight" / "fi013.mp4"
    result = json.loads(edge("classify", clip, "--backend", "openvino", "--json").stdout)
    assert result["backend"] == "openvino"


SIGNALS = """
import gc, os, signal, sys, threading
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle

bundle = read_bundle(default_bundle())
first, second = (load_model(bundle, "int8-cpu", "openvino", 1) for _ in range(2))
if sys.argv[1] == "in another thread":
    second.close()
    second = None
    closing = threading.Thread(target=first.close)
    closing.start()
    closing.join()
else:
    first.close()
    first = None
    gc.collect()
    second.close()
first = second = None
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("caught"))
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("closed", ["in another thread", "the first one first"])
def test_a_signal_finds_its_stack_after_models_are_closed(closed):
    """OpenVINO's plugin replaced it, and took it away: Ctrl-C then crashed the process."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, closed], check=False, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr
