"""The glimpse loop over exported graphs: schedules, batches, early exit, and device tensors on the CPU."""

import numpy as np
import pytest

from adafocus_edge.backends import onnxruntime as ort
from adafocus_edge.backends import probe
from adafocus_edge.backends.device import cuda
from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.probe import Obstacle
from adafocus_edge.backends.registry import load_model
from adafocus_edge.backends.tensors import Buffer
from adafocus_edge.bundle.engines import PIXELS_FILE
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.doctor import examine
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.media.sources import Source
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.logits import softmax
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from tests.conftest import CLIPS, GOLDEN, SMALL
from tests.support.diverged import copy_diverged
from tests.training.test_model import frames_of


@pytest.fixture(scope="module")
def model(small_bundle):
    with load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as loaded:
        yield loaded


class StreamedHost(HostDevice):
    """The CPU in place of a GPU."""

    stream = 0


def bound_model(bundle, monkeypatch, *, captures=True):
    """ONNX Runtime's programs for a GPU with their tensors in the CPU's memory: the same code but for the provider."""
    monkeypatch.setattr(ort, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "CudaDevice", StreamedHost)

    def on_cpu(path, providers, threads):
        return ort.make_session(path, ["CPUExecutionProvider"], threads), captures

    monkeypatch.setattr(ort, "_on_gpu", on_cpu)
    return load_model(bundle, backend="onnxruntime-cuda")


FRAMES = frames_of(GOLDEN / "actnet96")


@pytest.mark.parametrize("count", [1, 3, 4, 8, 13])
def test_schedules_agree(model, count):
    stream = GlimpseStream(model)
    seen = 0
    for step, glimpse in enumerate(see_clip(model, FRAMES[:count])):
        live = stream.see(FRAMES[step : step + 1])
        assert np.array_equal(live.origins, glimpse.origins)
        assert np.abs(live.logits - glimpse.logits).max() <= 1e-4
        seen += 1
    assert seen == count


def test_clips_in_one_batch_do_not_mix(model):
    together = GlimpseStream(model, clips=2)
    alone = GlimpseStream(model), GlimpseStream(model)
    for step in range(4):
        frames = np.stack([FRAMES[step], FRAMES[15 - step]])
        both = together.see(frames)
        for clip in (0, 1):
            one = alone[clip].see(frames[clip : clip + 1])
            assert np.array_equal(both.origins[clip], one.origins[0])
            assert np.abs(both.logits[clip] - one.logits[0]).max() <= 1e-4


def test_reset_begins_a_new_clip(model):
    stream = GlimpseStream(model)
    first = stream.see(FRAMES[:1]).logits
    assert not np.array_equal(stream.see(FRAMES[:1]).logits, first)
    stream.reset()
    assert np.array_equal(stream.see(FRAMES[:1]).logits, first)


def test_device_tensors_give_the_same_results(model, small_bundle, monkeypatch):
    with bound_model(read_bundle(small_bundle), monkeypatch) as bound:
        assert bound.backend == "onnxruntime-cuda"
        assert bound.batch == SMALL.segments
        stream, plain = GlimpseStream(bound), GlimpseStream(model)
        for step, (found, expected) in enumerate(zip(see_clip(bound, FRAMES), see_clip(model, FRAMES), strict=True)):
            assert np.array_equal(found.origins, expected.origins)
            assert np.abs(found.logits - expected.logits).max() <= 1e-4
            live, frame = plain.see(FRAMES[step : step + 1]), FRAMES[step : step + 1]
            assert np.abs(stream.see(frame).logits - live.logits).max() <= 1e-4


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(model, small_bundle):
    with load_model(read_bundle(small_bundle), backend="onnxruntime-cuda") as on_gpu:
        stream = GlimpseStream(on_gpu)
        for step, (found, expected) in enumerate(zip(see_clip(on_gpu, FRAMES), see_clip(model, FRAMES), strict=True)):
            live = stream.see(FRAMES[step : step + 1])
            for seen in (found, live):
                assert np.array_equal(seen.origins, expected.origins)
                assert np.abs(seen.logits - expected.logits).max() <= 2e-3
        made = on_gpu.glancer.run({"frame": FRAMES[:2]})["feature_map"]
        assert made.device.kind == "cuda"


def test_rows_are_bound_where_kernels_can_read_them(model, small_bundle, monkeypatch):
    """A row of `origin` is 8 bytes: rows after the first lie where a GPU's kernels fault ("misaligned address")."""
    with bound_model(read_bundle(small_bundle), monkeypatch) as bound:
        device = bound.resident.device
        origins = np.float32([[0, 0], [1, 0.5], [0.25, 0.75]])
        rows = device.store(origins)[1:]
        assert rows.address % 256 == 8
        found = bound.focuser.run({"frame": FRAMES[:2], "origin": rows})["focus"]
        expected = model.focuser.run({"frame": FRAMES[:2], "origin": origins[1:]})["focus"]
        assert np.abs(np.asarray(found) - expected).max() <= 1e-4
        program = bound.resident.programs["focuser"]
        tensors = {"frame": device.store(FRAMES[:2]), "origin": rows, "focus": found}
        with pytest.raises(BackendError, match="origin: address .* is not a multiple of 256 bytes: copy the rows"):
            program.bind(tensors, fixed=False)


def test_each_shape_has_a_session_of_its_own(small_bundle, monkeypatch):
    """ONNX Runtime's convolutions keep one plan: a second shape in a session would take the first one's away."""
    opened = []
    make_session = ort.make_session

    def counted(path, *arguments, **more):
        opened.append(path.stem)
        return make_session(path, *arguments, **more)

    monkeypatch.setattr(ort, "make_session", counted)
    with bound_model(read_bundle(small_bundle), monkeypatch) as bound:
        assert sorted(opened) == sorted([*GRAPHS, "pixels", "step"])
        list(see_clip(bound, FRAMES[:4]))
        assert opened.count("glancer") == opened.count("policy") == 1  # the session that reported the shapes is used
        list(see_clip(bound, FRAMES[:6]))
        assert (opened.count("glancer"), opened.count("policy")) == (2, 1)  # the policy steps with one row always
        GlimpseStream(bound, 6).see(FRAMES[:6])
        GlimpseStream(bound, 6).see(FRAMES[:6])
        assert opened.count("step") == 1
        GlimpseStream(bound, 2).see(FRAMES[:2])
        assert opened.count("step") == 2
        bound.glancer.run({"frame": FRAMES[:4]})
        assert opened.count("glancer") == 2


@pytest.mark.parametrize(("release", "captured"), [("1.30.2", False), ("1.31.1", True), ("2.0.0", True)])
def test_cuda_graphs_are_captured_where_replays_are_safe(release, captured, monkeypatch):
    asked = []

    def on_gpu(path, providers, threads):
        asked.append(providers[0][1])
        return ort.make_session(path, ["CPUExecutionProvider"], threads), True

    monkeypatch.setattr(ort, "_on_gpu", on_gpu)
    monkeypatch.setattr(ort.ort, "__version__", release)
    ort.OrtProgram(PIXELS_FILE, StreamedHost(), conv_search="exhaustive")
    assert asked[0].get("enable_cuda_graph") == ("1" if captured else None)
    assert asked[0]["cudnn_conv_algo_search"] == "EXHAUSTIVE"


def test_doctor_names_a_release_whose_cuda_graphs_are_not_used(monkeypatch):
    monkeypatch.setattr(ort, "cuda_obstacle", lambda: None)
    for release, fix in (("1.31.1", ""), ("1.27.0", "pip install 'onnxruntime-gpu>=1.31'")):
        monkeypatch.setattr(ort.ort, "__version__", release)
        found = next(finding for finding in examine() if finding.part == "onnxruntime-cuda")
        assert (found.status, found.fix) == ("ok", fix)


def test_device_tensors_stay_where_they_are(small_bundle, monkeypatch):
    with bound_model(read_bundle(small_bundle), monkeypatch) as bound:
        made = bound.glancer.run({"frame": FRAMES[:5]})["feature_map"]
        assert isinstance(made, Buffer)
        part = made[1:4][1:]
        assert part.shape == (2, 1280, 3, 3)
        assert part.owner is made.owner
        assert part.address - made.address == 2 * 1280 * 9 * 4
        assert np.array_equal(np.asarray(part), np.asarray(made)[2:4])
        with pytest.raises(ValueError, match="sliced with step 1"):
            made[::2]
        state = np.zeros((2, SMALL.policy_state), np.float32)
        chosen = bound.policy.run({"feature_map": part, "policy_state": state})
        assert np.asarray(chosen["origin"]).shape == (2, 2)


def test_early_exit_stops_at_the_first_sure_step(model):
    source = Source("clip", str(CLIPS / "v_SoccerJuggling_g23_c01.avi"))
    full, _ = Classifier(model, [str(n) for n in range(7)]).classify(source)
    confidences = [step.guess.confidence for step in full.steps]
    assert len(confidences) == SMALL.segments
    assert not full.exited_early
    bar = sorted(confidences)[len(confidences) // 2]
    first = next(step for step, confidence in enumerate(confidences) if confidence >= bar - 1e-6)
    early, _ = Classifier(model, [str(n) for n in range(7)], exits=ExitThresholds.at(bar - 1e-6, 8)).classify(source)
    assert len(early.steps) == first + 1
    assert early.exited_early == (first + 1 < SMALL.segments)
    assert early.top[0] == early.steps[-1].guess
    never, _ = Classifier(model, [str(n) for n in range(7)], exits=ExitThresholds.at(1.0, 8)).classify(source)
    assert [step.patch for step in never.steps] == [step.patch for step in full.steps]
    assert not never.exited_early


@pytest.mark.parametrize(
    ("values", "largest", "sizes"),
    [
        ((0.9,) * 8, 4, [2, 2, 2, 2]),
        ((0.9,) * 7, 4, [2, 2, 2, 1]),
        ((0.9,) * 4, 1, [1, 1, 1, 1]),
        ((None, None, None, 0.9, 0.9, None, None, None), 4, [4, 2, 2]),
        ((None,) * 6 + (0.9, None), 4, [4, 3, 1]),
        ((None,) * 8, 16, [8]),
        ((0.9,), 4, [1]),
    ],
)
def test_frames_are_seen_together_up_to_where_a_clip_may_stop(values, largest, sizes):
    assert list(ExitThresholds("clip", "probability", values).pieces(largest)) == sizes


class Watched:
    """A clip that counts the frames that are read from it."""

    def __init__(self, clip):
        self._clip = clip
        self.read = []

    def __getattr__(self, name):
        return getattr(self._clip, name)

    def select(self, indices, convert):
        for index, made in self._clip.select(indices, convert):
            self.read.append(index)
            yield index, made


@pytest.mark.parametrize("place", ["host", "device"])
def test_early_exit_gives_the_same_steps_on_both_schedules_and_reads_little_more(small_bundle, monkeypatch, place):
    bundle = read_bundle(small_bundle)
    opened = bound_model(bundle, monkeypatch) if place == "device" else load_model(bundle, backend="onnxruntime-cpu")
    names = [str(n) for n in range(7)]
    with opened as loaded:
        source = Source("clip", str(CLIPS / "v_SoccerJuggling_g23_c01.avi"))
        full, _ = Classifier(loaded, names).classify(source)
        for bar in sorted({step.guess.confidence for step in full.steps}):
            found = []
            for schedule in ("clip", "stream", "clip"):
                clip = Watched(source.open_clip())
                made = Classifier(loaded, names, schedule=schedule, exits=ExitThresholds.at(bar - 1e-5, 8))
                found.append(made.classify_clip(clip, "clip"))
                assert len(clip.read) <= len(found[-1].steps) + (1 if schedule == "clip" else 0)
            for early in found:
                assert [step.patch for step in early.steps] == [step.patch for step in full.steps[: len(early.steps)]]
                assert len(early.steps) == len(found[0].steps)
                for step, whole in zip(early.steps, full.steps, strict=False):
                    np.testing.assert_allclose(step.logits, whole.logits, atol=1e-4)
                assert early.model_ms == pytest.approx(sum(early.step_ms))


def test_a_backend_that_cannot_run_says_why(small_bundle, monkeypatch):
    bundle = read_bundle(small_bundle)
    monkeypatch.setattr(ort, "cuda_obstacle", lambda: Obstacle("no NVIDIA driver was found"))
    with pytest.raises(BackendError, match="onnxruntime-cuda cannot run here: no NVIDIA driver .* --backend"):
        load_model(bundle, backend="onnxruntime-cuda")
    with pytest.raises(UsageError, match="known: auto, onnxruntime-cpu"):
        load_model(bundle, backend="abacus")
    with load_model(bundle, backend="auto") as loaded:
        assert loaded.backend == "onnxruntime-cpu"

    if probe.gpu_obstacle() is not None:  # a GPU in words, and then no TensorRT either
        with monkeypatch.context() as with_gpu:
            with_gpu.setattr(ort, "cuda_obstacle", lambda: None)
            with pytest.raises(BackendError, match="onnxruntime-tensorrt cannot run here: it needs TensorRT 10"):
                load_model(bundle, backend="onnxruntime-tensorrt")

    def refuse(*_):
        raise BackendError("the driver is too old")

    monkeypatch.setattr(ort, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(probe, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(cuda, "CudaDevice", refuse)
    with load_model(bundle, backend="auto") as loaded:
        assert loaded.backend == "onnxruntime-cpu"
    with pytest.raises(BackendError, match="too old"):
        load_model(bundle, backend="onnxruntime-cuda")


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(small_bundle, tmp_path):
    import dataclasses

    bundle = read_bundle(small_bundle)
    wrong = dataclasses.replace(bundle, path=tmp_path)
    (tmp_path / "fp32").mkdir()
    for graph in GRAPHS:
        (tmp_path / "fp32" / f"{graph}.onnx").write_bytes((small_bundle / "fp32" / "policy.onnx").read_bytes())
    with pytest.raises(BackendError, match=r"glancer\.onnx: graph signature mismatch: found feature_map"):
        load_model(wrong, backend="onnxruntime-cpu")
    (tmp_path / "fp32" / "glancer.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"glancer\.onnx: ONNX Runtime .* cannot load it"):
        load_model(wrong, backend="onnxruntime-cpu")


def test_threads_do_not_change_results(small_bundle):
    one = OrtSession(small_bundle / "fp32" / "focuser.onnx", threads=1)
    two = OrtSession(small_bundle / "fp32" / "focuser.onnx", threads=2)
    feeds = {"frame": FRAMES[:2], "origin": np.array([[0, 0.5], [1, 1]], np.float32)}
    assert np.abs(one.run(feeds)["focus"] - two.run(feeds)["focus"]).max() <= 1e-3


def test_a_graph_that_fails_while_it_runs_is_told(small_bundle, monkeypatch):
    wrong = {"frame": np.zeros((1, 10, 10, 3), np.uint8)}
    with pytest.raises(BackendError, match="failed while it ran"):
        OrtSession(small_bundle / "fp32" / "glancer.onnx").run(wrong)
    bound = bound_model(read_bundle(small_bundle), monkeypatch)
    with bound, pytest.raises(BackendError, match="failed while it ran"):
        bound.glancer.run(wrong)


@pytest.mark.parametrize("options", [{}, {"schedule": "stream"}, {"exits": ExitThresholds.at(0.9, SMALL.segments)}])
def test_outputs_that_are_not_numbers_are_no_class(small_bundle, tmp_path, options):
    source = Source("clip", str(CLIPS / "v_SoccerJuggling_g23_c01.avi"))
    bundle = read_bundle(copy_diverged(small_bundle, tmp_path / "bundle"))
    with load_model(bundle, backend="onnxruntime-cpu") as model:
        classifier = Classifier(model, bundle.classes, **options)
        with pytest.raises(BackendError, match="the model's outputs are not finite numbers: use --variant fp32"):
            classifier.classify(source)


def test_softmax_survives_large_logits():
    probabilities = softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32))
    assert probabilities.tolist() == [[0.5, 0.5, 0.0]]
