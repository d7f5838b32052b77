"""What runs TensorRT engines, on a stand-in for its run time that is as strict as the real one."""

import numpy as np
import pytest

from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.loaded import open_programs
from adafocus_edge.backends.tensorrt.library import Library
from adafocus_edge.backends.tensorrt.program import TrtProgram, TrtRuntime
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from adafocus_edge.runtime.lanes import Lanes
from tests.conftest import GOLDEN, SMALL
from tests.support import engine_on_cpu
from tests.training.test_model import frames_of

FRAMES = frames_of(GOLDEN / "actnet96")


class StreamedHost(HostDevice):
    """The CPU in place of a GPU."""

    stream = 7


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def library(request):
    return Library(request.param, "0.0", engine_on_cpu)


@pytest.fixture
def folder(small_bundle, tmp_path):
    for graph in (*GRAPHS, "step"):
        content = (small_bundle / "fp32" / f"{graph}.onnx").read_bytes()
        (tmp_path / f"{graph}.engine").write_bytes(b"engine:" + content)
    return tmp_path


def opened(small_bundle, folder, library, graphs=(*GRAPHS, "step")):
    runtime = TrtRuntime(library, folder / "runtime.cache")
    device = StreamedHost()

    def path_of(graph):
        return folder / f"{graph}.engine"

    model = open_programs(
        read_bundle(small_bundle).spec, graphs, lambda graph: TrtProgram(path_of(graph), runtime, device), path_of,
        device, backend="tensorrt", variant="fp32",
    )  # fmt: skip
    model.resident.on_close(runtime.close)
    return model


@pytest.mark.parametrize("graphs", [GRAPHS, (*GRAPHS, "step")], ids=["four graphs", "joined step"])
def test_engines_give_what_graphs_give(graphs, small_bundle, folder, library):
    from adafocus_edge.backends.registry import load_model

    with (
        load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as plain,
        opened(small_bundle, folder, library, graphs) as model,
    ):
        alone, stream, lanes = GlimpseStream(plain), GlimpseStream(model), Lanes(model, 3)
        lane = [lanes.join() for _ in range(3)][1]
        for frame, seen in zip(FRAMES[:8], see_clip(model, FRAMES[:8]), strict=True):
            wanted = alone.see([frame])
            for found in (seen, stream.see([frame]), lanes.step({lane: frame})[lane]):
                assert np.array_equal(found.origins, wanted.origins)
                assert np.abs(found.logits - wanted.logits).max() <= 1e-4


def test_a_context_is_made_once_for_each_shape(small_bundle, folder, library):
    with opened(small_bundle, folder, library) as model:
        loop = model.resident.steps(2)
        before = engine_on_cpu.IExecutionContext.made
        for step in range(5):
            loop.submit([FRAMES[step], FRAMES[step + 1]])
            loop.collect()
        assert engine_on_cpu.IExecutionContext.made == before
        # What is captured has a context of its own: another loop's tensors must not get into it.
        model.resident.steps(2)
        assert engine_on_cpu.IExecutionContext.made == before + 2
        for _ in range(3):
            model.glancer.run({"frame": FRAMES[:2]})
        assert engine_on_cpu.IExecutionContext.made == before + 3


def test_a_batch_beyond_every_profile_is_told(small_bundle, folder, library):
    with opened(small_bundle, folder, library) as model:
        with pytest.raises(
            BackendError, match=r"step\.engine: takes batches of up to 8, not 9: build it with --streams 9"
        ):
            model.resident.steps(9)
        with pytest.raises(BackendError, match=r"glancer\.engine: takes batches of up to 8, not 16"):
            next(see_clip(model, FRAMES))


def test_streams_beyond_what_engines_take_are_told_before_they_come(small_bundle, folder, library):
    with opened(small_bundle, folder, library) as model:
        with pytest.raises(UsageError, match=r"9 streams: the engines take at most 8: build them with --streams 9"):
            Lanes(model, 9)
        assert Lanes(model, 8).join() == 0


def test_an_address_that_kernels_do_not_take_is_refused(small_bundle, folder, library):
    with opened(small_bundle, folder, library) as model:
        feature_map = model.glancer.run({"frame": FRAMES[:2]})["feature_map"]
        device, program = model.resident.device, model.resident.programs["policy"]
        state, action = device.empty((2, SMALL.policy_state), "f4"), device.empty((3,), "i8")[1:]
        tensors = {"feature_map": feature_map, "policy_state": state, "action": action}
        with pytest.raises(BackendError, match="is not a multiple of 256 bytes"):
            program.bind(tensors, fixed=False)


def test_a_damaged_engine_is_told(small_bundle, folder, library):
    (folder / "policy.engine").write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"policy\.engine: TensorRT.* cannot load it: the plan is damaged"):
        opened(small_bundle, folder, library)


def test_an_engine_that_is_not_what_the_bundle_says_is_refused(small_bundle, folder, library):
    (folder / "policy.engine").write_bytes((folder / "glancer.engine").read_bytes())
    with pytest.raises(BackendError, match=r"policy\.engine: graph signature mismatch: found frame"):
        opened(small_bundle, folder, library)


def test_an_engine_that_fails_is_told(small_bundle, folder, library, monkeypatch):
    with opened(small_bundle, folder, library) as model:
        monkeypatch.setattr(engine_on_cpu.IExecutionContext, "execute_async_v3", lambda *_: False)
        with pytest.raises(BackendError, match=r"glancer\.engine: the engine failed: it gives no reason"):
            model.glancer.run({"frame": FRAMES[:1]})


def test_compiled_kernels_are_kept_for_the_next_start(small_bundle, folder, library):
    for start in (1, 2):
        with opened(small_bundle, folder, library) as model:
            GlimpseStream(model).see([FRAMES[0]])
        there = folder / "runtime.cache"
        if library.name == "tensorrt-rtx":
            assert there.read_bytes() == b"kernels;" * start
        else:
            assert not there.exists()


def test_the_stand_in_offers_nothing_that_the_real_library_does_not():
    real = pytest.importorskip("tensorrt_rtx_bindings")
    for name in ("Runtime", "ICudaEngine", "IRuntimeConfig", "IRuntimeCache", "IExecutionContext"):
        ours = {member for member in vars(getattr(engine_on_cpu, name)) if not member.startswith("_")}
        for member in ours - {"batches", "made", "content"}:
            assert hasattr(getattr(real, name), member), f"{name}.{member}"
    for name in (
        "TensorIOMode",
        "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "Logger",
    ):
        for member in vars(getattr(engine_on_cpu, name)):
            if not member.startswith("_"):
                assert hasattr(getattr(real, name), member), f"{name}.{member}"
    assert issubclass(real.ILogger, object)
    assert real.nptype(real.float32) is np.float32
