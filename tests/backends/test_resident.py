"""The loop kept on a device: states, capture, batches of streams, on the CPU by the same code as on a GPU."""

import gc
import threading
import weakref

import numpy as np
import pytest

from adafocus_edge.backends.device import cuda
from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.runner import AHEAD
from adafocus_edge.backends.loaded import open_programs
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.backends.tensors import Buffer
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.model.spec import GRAPHS, Gpu
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from adafocus_edge.runtime.lanes import Lanes
from tests.conftest import GOLDEN
from tests.training.test_model import frames_of

FRAMES = frames_of(GOLDEN / "actnet96")


@pytest.fixture(scope="module")
def plain(small_bundle):
    """The CPU's own sessions, which share no code with the loops."""
    with load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as model:
        yield model


class Counting(HostDevice):
    """Counts the calls of the device."""

    def __init__(self):
        super().__init__()
        self.captures = self.allocations = self.launches = 0

    def capture(self, work):
        self.captures += 1
        return super().capture(work)

    def pinned(self, shape, dtype):
        self.allocations += 1
        return super().pinned(shape, dtype)

    def launch(self, work):
        self.launches += 1
        super().launch(work)


@pytest.fixture(params=["four graphs", "joined step"])
def model(request, small_bundle):
    bundle = read_bundle(small_bundle)
    graphs = GRAPHS if request.param == "four graphs" else (*GRAPHS, "step")

    def path_of(graph):
        return bundle.graph_path("fp32", graph)

    with open_programs(
        bundle.spec, graphs, lambda graph: OrtSession(path_of(graph)), path_of, Counting(),
        backend="host", variant="fp32",
    ) as made:  # fmt: skip
        yield made


def alone(plain, frames):
    """What one stream sees of its frames when it is alone."""
    stream = GlimpseStream(plain)
    return [stream.see(frame[None]) for frame in frames]


def same(found, expected):
    assert np.array_equal(found.origins, expected.origins)
    assert np.abs(found.logits - expected.logits).max() <= 1e-4


def test_both_loops_give_what_the_sessions_give(model, plain):
    expected = alone(plain, FRAMES)
    for found, wanted in zip(see_clip(model, FRAMES), expected, strict=True):
        same(found, wanted)
    stream = GlimpseStream(model)
    for frame, wanted in zip(FRAMES, expected, strict=True):
        same(stream.see([frame]), wanted)
    stream.reset()
    same(stream.see(FRAMES[:1]), expected[0])
    # A second clip begins with states of zero again, and one of another length has a loop of its own.
    for count in (16, 5):
        for found, wanted in zip(see_clip(model, FRAMES[:count]), expected, strict=False):
            same(found, wanted)


def test_frames_that_lie_on_the_device_are_taken_from_there(model, plain):
    device = model.resident.device
    buffers = [device.store(frame[None]) for frame in FRAMES]
    for found, wanted in zip(see_clip(model, buffers), alone(plain, FRAMES), strict=True):
        same(found, wanted)
    stream = GlimpseStream(model)
    for number, wanted in enumerate(alone(plain, FRAMES[:4])):
        same(stream.see([buffers[number] if number % 2 else FRAMES[number]]), wanted)


def test_the_steady_state_neither_allocates_nor_captures(model):
    device = model.resident.device
    loop = model.resident.steps(2)
    clip = model.resident.clip(4)
    loop.submit([FRAMES[0], FRAMES[1]])
    before = device.captures, device.allocations
    assert before[0] == 3  # two sets of tensors that take turns, and the clip
    for step in range(6):
        loop.submit([FRAMES[step], None if step % 3 else FRAMES[step + 1]], fresh=[0] if step == 4 else [])
        loop.collect()
        clip.see(FRAMES[step : step + 4])
    assert (device.captures, device.allocations) == before
    assert model.resident.clip(4) is clip
    assert loop.under_way == 1


def test_a_step_keeps_what_it_copies_from_until_it_is_collected(model):
    """Tensors of another queue are overwritten as soon as nothing refers to them."""
    loop = model.resident.steps(1)
    other = HostDevice()
    frame = other.store(FRAMES[0][None])
    memory = weakref.ref(frame.owner)
    loop.submit([frame])
    del frame
    gc.collect()
    assert memory() is not None
    loop.collect()
    gc.collect()
    assert memory() is None


def test_two_steps_may_be_under_way_and_no_more(model, plain):
    loop = model.resident.steps(1)
    seen = []
    for frame in FRAMES:
        loop.submit([frame])
        if loop.under_way == AHEAD:
            with pytest.raises(BackendError, match="2 steps are under way"):
                loop.submit([frame])
            seen.append(loop.collect())
    seen.append(loop.collect())
    for found, wanted in zip(seen, alone(plain, FRAMES), strict=True):
        same(found, wanted)


def test_a_loop_that_was_broken_off_begins_anew(model, plain, monkeypatch):
    """Ctrl-C between a step and its results, and a device that fails, leave nothing behind."""
    stream = GlimpseStream(model)
    stream.see([FRAMES[3]])
    loop = stream._steps
    loop.submit([FRAMES[5]])  # never collected
    stream.reset()
    expected = alone(plain, FRAMES[:2])
    same(stream.see([FRAMES[0]]), expected[0])
    same(stream.see([FRAMES[1]]), expected[1])
    stream.reset()
    with monkeypatch.context() as broken:
        broken.setattr(type(model.resident.device), "launch", refuse)
        with pytest.raises(BackendError, match="the device failed"):
            stream.see([FRAMES[7]])
    same(stream.see([FRAMES[0]]), expected[0])


def refuse(*_):
    raise BackendError("the device failed")


def test_closing_waits_for_nobody_and_drops_every_loop(model):
    loop, clip = model.resident.steps(1), model.resident.clip(3)
    failed = []

    def other():
        try:
            model.close()
        except BackendError as error:
            failed.append(str(error))

    with model.resident.device.use():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "in use by another thread" in failed[0]
    model.resident.release()
    for call in (lambda: loop.submit([FRAMES[0]]), lambda: clip.see(FRAMES[:3])):
        with pytest.raises(BackendError, match="closed"):
            call()


def test_a_device_that_failed_is_left_all_the_same(small_bundle, monkeypatch):
    """As after an illegal access on a GPU, when every call fails: the error is raised, and everything is closed."""
    bundle, device, closed = read_bundle(small_bundle), HostDevice(), []

    class Told(OrtSession):
        def close(self):
            closed.append(self)
            super().close()

    def path_of(graph):
        return bundle.graph_path("fp32", graph)

    model = open_programs(
        bundle.spec, GRAPHS, lambda graph: Told(path_of(graph)), path_of, device, backend="host", variant="fp32"
    )
    loop = model.resident.steps(1)
    monkeypatch.setattr(device, "use", refuse)
    monkeypatch.setattr(device, "finish", refuse)
    with pytest.raises(BackendError, match="the device failed"), model:
        loop.submit([FRAMES[0]])
    assert len(closed) == len(GRAPHS)
    with pytest.raises(BackendError, match="closed"):
        device.mark()


def test_a_loop_is_one_threads_at_a_time(model):
    device = model.resident.device
    failed = []

    def other():
        try:
            GlimpseStream(model).see([FRAMES[0]])
        except BackendError as error:
            failed.append(str(error))

    with device.use():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert failed == ["this model is in use by another thread: load one model per thread"]
    thread = threading.Thread(target=other)  # one after the other they may
    thread.start()
    thread.join()
    assert len(failed) == 1


def test_two_models_in_one_process_do_not_meet(small_bundle, plain):
    with (
        load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as one,
        load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as other,
    ):
        lanes = Lanes(one, 1), Lanes(other, 1)
        streams = [lane.join() for lane in lanes]
        for step, wanted in enumerate(alone(plain, FRAMES[:4])):
            for lane, stream in zip(lanes, streams, strict=True):
                same(lane.step({stream: FRAMES[step]})[stream], wanted)


def test_what_is_closed_refuses(small_bundle):
    bundle = read_bundle(small_bundle)

    def path_of(graph):
        return bundle.graph_path("fp32", graph)

    device = HostDevice()
    model = open_programs(
        bundle.spec, GRAPHS, lambda graph: OrtSession(path_of(graph)), path_of, device, backend="host", variant="fp32"
    )
    loop = model.resident.steps(1)
    model.close()
    for call in (lambda: loop.submit([FRAMES[0]]), lambda: model.resident.steps(1), lambda: device.empty((1,), "f4")):
        with pytest.raises(BackendError, match="closed"):
            call()


def test_a_program_that_cannot_be_opened_closes_the_others(small_bundle):
    bundle = read_bundle(small_bundle)
    device, opened, closed = HostDevice(), [], []

    class Told(OrtSession):
        def close(self):
            closed.append(self)
            super().close()

    def opener(graph):
        if graph == "focuser":
            raise BackendError("no")
        opened.append(Told(bundle.graph_path("fp32", graph)))
        return opened[-1]

    with pytest.raises(BackendError, match="no"):
        open_programs(bundle.spec, GRAPHS, opener, lambda g: g, device, backend="host", variant="fp32")
    assert closed == opened[::-1]
    assert len(closed) == 2
    with pytest.raises(BackendError, match="closed"):
        device.mark()


def test_what_may_not_be_captured_is_refused():
    device = HostDevice()
    buffer, array = device.empty((2,), "f4"), device.pinned((2,), "f4")
    array[:] = 7
    for forbidden in (
        lambda: device.empty((1,), "f4"),
        lambda: device.upload(buffer, array),
        lambda: device.wait(None),
        lambda: device.fetch(buffer),
        device.after_uploads,
        device.finish,
    ):
        with pytest.raises(BackendError, match="cannot be captured"):
            device.capture(forbidden)
    device.upload(buffer, array)
    replay = device.capture(lambda: device.zero(buffer[1:]))
    assert device.fetch(buffer).tolist() == [7, 7]  # recorded, not done
    replay()
    assert device.fetch(buffer).tolist() == [7, 0]


def test_memory_that_nobody_wrote_is_poison_and_what_lies_beside_it_is_fenced():
    device = HostDevice()
    one, other = device.empty((2, 3), "f4"), device.empty((5,), "i8")
    assert np.isnan(device.fetch(one)).all()
    assert (device.fetch(other) == -1).all()
    beyond = Buffer(device, one.address, (4, 3), np.dtype("f4"), one.owner)
    assert np.isnan(device.fetch(beyond)).all()  # reading outside of a tensor gives no plausible number
    device.finish()
    device.zero(one)
    device.finish()
    device.zero(beyond)
    with pytest.raises(BackendError, match="memory was written outside of the tensor"):
        device.finish()


# -- many streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["the device's loops", "the CPU's sessions"])
def test_streams_come_lag_and_go_without_touching_each_other(kind, model, plain):
    """Streams of different frames, with gaps, joins, ends and new clips, each compared with itself alone."""
    lanes = Lanes(model if kind == "the device's loops" else plain, most=6)
    random = np.random.default_rng(3)
    shown = {}  # stream -> frames of its clip so far
    found = {}  # stream -> glimpses of its clip so far
    clips = []  # (frames, glimpses) of clips that are over

    def over(stream):
        clips.append((shown.pop(stream), found.pop(stream)))

    for step in range(24):
        if step in (0, 1, 2, 5, 6, 12, 13) and len(shown) < 6:
            stream = lanes.join()
            shown[stream], found[stream] = [], []
        if step in (4, 9, 15, 16):
            stream = list(shown)[step % len(shown)]
            lanes.leave(stream)
            over(stream)
        frames = {s: FRAMES[random.integers(16)] for s in shown if random.random() < 0.7} or {
            next(iter(shown)): FRAMES[0]
        }
        for stream, glimpse in lanes.step(frames).items():
            shown[stream].append(frames[stream])
            found[stream].append(glimpse)
        assert set(lanes.streams) == set(shown)
        for stream in list(shown):
            if len(shown[stream]) == 5:
                lanes.restart(stream)
                over(stream)
                shown[stream], found[stream] = [], []
    for stream in list(shown):
        over(stream)
    assert sum(len(frames) for frames, _ in clips) > 40
    for frames, glimpses in clips:
        for glimpse, wanted in zip(glimpses, alone(plain, frames), strict=True):
            same(glimpse, wanted)


def test_batches_grow_and_shrink_and_are_captured_once(model):
    device = model.resident.device
    lanes = Lanes(model, most=5)
    streams = [lanes.join() for _ in range(5)]
    sizes = sorted(lanes._loops)
    assert sizes == [1, 2, 4, 5]
    lanes.step(dict.fromkeys(streams, FRAMES[0]))
    captures = device.captures
    for stream in streams[1:]:
        lanes.leave(stream)
        lanes.step({streams[0]: FRAMES[1]})
    again = lanes.join()
    lanes.step({again: FRAMES[2], streams[0]: FRAMES[2]})
    assert device.captures == captures == 2 * len(sizes)


def test_streams_may_be_a_step_ahead(model, plain):
    lanes = Lanes(model, most=2)
    streams = lanes.join(), lanes.join()
    seen = []
    for step, frame in enumerate(FRAMES[:6]):
        lanes.submit({streams[0]: frame, streams[1]: FRAMES[15 - step]})
        if step:
            seen.append(lanes.collect())
    with pytest.raises(BackendError, match="still running"):
        lanes.step({streams[0]: FRAMES[0]})
    lanes.leave(streams[0])  # its last step is under way, and still given
    seen.append(lanes.collect())
    for stream, frames in zip(streams, (FRAMES[:6], FRAMES[:9:-1]), strict=True):
        for glimpse, wanted in zip(seen, alone(plain, frames), strict=True):
            same(glimpse[stream], wanted)


def test_a_stream_that_cannot_be_let_in_leaves_the_others_alone(model, plain, monkeypatch):
    lanes = Lanes(model, most=4)
    streams = lanes.join(), lanes.join()
    monkeypatch.setattr(model.resident, "steps", refuse)
    with pytest.raises(BackendError, match="the device failed"):
        lanes.join()
    assert lanes.streams == streams
    for frame, wanted in zip(FRAMES[:3], alone(plain, FRAMES[:3]), strict=True):
        same(lanes.step({streams[1]: frame})[streams[1]], wanted)


def test_streams_beyond_the_most_and_unknown_ones_are_refused(model, plain):
    lanes = Lanes(plain, most=1)
    stream = lanes.join()
    with pytest.raises(UsageError, match="1 streams have joined"):
        lanes.join()
    with pytest.raises(ValueError, match="no such stream: 7"):
        lanes.submit({7: FRAMES[0]})
    with pytest.raises(ValueError, match="no such stream: 7"):
        lanes.restart(7)
    with pytest.raises(ValueError, match="needs a frame"):
        lanes.submit({})
    with pytest.raises(UsageError, match="at least 1"):
        Lanes(plain, most=0)
    lanes.leave(stream)
    assert lanes.streams == ()
    assert lanes.step({lanes.join(): FRAMES[0]})


# -- CUDA -------------------------------------------------------------------------------------------------------------


def test_every_call_of_the_gpus_device_suits_nvidias_bindings(monkeypatch):
    """Without a GPU each call fails in the driver; a wrong argument would fail before, in the bindings."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    memory = np.zeros(1 << 16, np.uint8)
    addresses = iter(range(memory.ctypes.data, memory.ctypes.data + memory.size, 256))
    made = {
        "cudaStreamCreateWithFlags": runtime.cudaStream_t(),
        "cudaEventCreateWithFlags": runtime.cudaEvent_t(),
        "cudaStreamEndCapture": runtime.cudaGraph_t(),
        "cudaGraphInstantiate": runtime.cudaGraphExec_t(),
    }
    called = []

    class Answering:
        """The real bindings, whose answers are taken for successes."""

        def __getattr__(self, name):
            real = getattr(runtime, name)
            if not callable(real) or isinstance(real, type):
                return real

            def call(*arguments):
                status, *values = real(*arguments)
                called.append((name, int(status)))
                if name in ("cudaMalloc", "cudaHostAlloc"):
                    values = [next(addresses)]
                elif name in made:
                    values = [made[name]]
                return (runtime.cudaError_t.cudaSuccess, *values)

            return call

    monkeypatch.setattr(cuda, "runtime", Answering)
    device = cuda.CudaDevice()
    buffer, array = device.empty((2, 3), np.float32), device.pinned((2, 3), np.float32)
    with device.use():
        device.upload(buffer, array)
        device.after_uploads()
        device.download(array, buffer)
        device.copy(buffer[:1], buffer[1:])
        device.zero(buffer)
        used = device.empty((7,), np.float32)  # what only captured work uses lives as long as the graph
        graph, alive = device.capture(lambda tensor=used: device.zero(tensor)), weakref.ref(used.owner)
        del used
        graph()
        assert alive() is not None
        del graph
        assert alive() is None
        assert "cudaGraphExecDestroy" in [name for name, _ in called]
        device.wait(device.mark())
        assert device.fetch(buffer).shape == (2, 3)
        assert device.store(np.zeros((4, 5), np.int64)).shape == (4, 5)
    addresses_before = buffer.address, array.ctypes.data
    view = array[1:]
    del buffer, array
    held = device.empty((3, 2), np.float32)
    other = device.pinned((2, 3), np.float32)
    assert held.address == addresses_before[0]  # memory is used again,
    assert other.ctypes.data != addresses_before[1]  # but not as long as a part of it is in use
    del view
    assert device.pinned((2, 3), np.float32).ctypes.data == addresses_before[1]
    device.close()
    device.close()
    for call in (
        device.finish,
        lambda: device.fetch(held),
        lambda: device.empty((1,), "f4"),
        lambda: device.zero(held),
    ):
        with pytest.raises(BackendError, match="closed"):
            call()
    with pytest.raises(BackendError, match="closed"), device.use():
        pass
    names = [name for name, _ in called]
    assert names.count("cudaFree") == 3
    assert names.count("cudaFreeHost") == 2
    assert names.count("cudaStreamDestroy") == 2
    assert names.count("cudaGraphExecDestroy") == 1
    assert names.count("cudaEventDestroy") == 2


def test_what_cuda_refuses_is_told_in_words(monkeypatch):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(BackendError, match="CUDA failed while computing: out of memory"):
        cuda.checked(runtime, (runtime.cudaError_t.cudaErrorMemoryAllocation,), "computing")
    assert Gpu("NVIDIA GeForce RTX 4090", "8.9").slug == "nvidia-geforce-rtx-4090"


@pytest.mark.gpu
def test_ten_thousand_steps_leak_nothing(small_bundle):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    with load_model(read_bundle(small_bundle), backend="onnxruntime-cuda") as model:
        loop = model.resident.steps(1)

        def steps(count):
            for number in range(count):
                loop.submit([FRAMES[number % 16]])
                loop.collect()
            return runtime.cudaMemGetInfo()[1]

        free = steps(100)
        assert abs(steps(10_000) - free) < 8 << 20
