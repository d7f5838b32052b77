"""What only a GPU can show: every backend and variant gives what the CPU gives. `scripts/gpu-check` runs these.

Each backend is tested by itself: one that cannot run on this machine skips its own tests, and no others.
"""

import numpy as np
import pytest

from adafocus_edge.backends.device.cuda import this_gpu
from adafocus_edge.backends.registry import load_model, obstacle
from adafocus_edge.backends.tensorrt.build import BuildRequest, build
from adafocus_edge.backends.tensorrt.library import find_library
from adafocus_edge.bundle.engines import BuildOptions
from adafocus_edge.bundle.store import copy_bundle, default_bundle
from adafocus_edge.errors import BackendError
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from adafocus_edge.runtime.lanes import Lanes
from export.fuse import fuse
from tests.backends.test_resident import FRAMES
from tests.conftest import BACKEND_SKIP, CLIPS, edge

pytestmark = pytest.mark.gpu
LIMIT = {"fp32": 2e-3, "fp16": 2e-2}
STREAMS = 4


def why_not(backend):
    """Say why a backend cannot run on this machine, or return None: what fails after that is a failure."""
    found = obstacle(backend)
    if found is not None or backend != "tensorrt":
        return found and found.why
    try:
        return find_library().gpu_obstacle(this_gpu())
    except BackendError as error:
        return str(error)


@pytest.fixture(scope="module", params=["onnxruntime-cuda", "tensorrt"])
def backend(request):
    if (why := why_not(request.param)) is not None:
        pytest.skip(BACKEND_SKIP + why)
    return request.param


@pytest.fixture(scope="module")
def bundle(backend, tmp_path_factory):
    """The default model in a folder of the backend's own, with engines of both precisions where it needs them."""
    found = copy_bundle(default_bundle(), tmp_path_factory.mktemp("gpu") / "bundle")
    if backend == "tensorrt":
        for variant in LIMIT:
            build(found, BuildRequest(variant=variant, options=BuildOptions(STREAMS)), lambda: fuse, lambda *_: None)
    return found


@pytest.mark.parametrize("variant", list(LIMIT))
def test_a_gpu_gives_what_the_cpu_gives(backend, variant, bundle):
    with (
        load_model(bundle, "fp32", "onnxruntime-cpu") as plain,
        load_model(bundle, variant, backend) as on_gpu,
        load_model(bundle, variant, backend) as other,  # two models in one process
    ):
        alone, stream, lanes = GlimpseStream(plain), GlimpseStream(on_gpu), Lanes(other, STREAMS)
        streams = [lanes.join() for _ in range(STREAMS)]
        frames = ModelFrame.of(FRAMES[:8], bundle.spec)
        for frame, seen in zip(frames, see_clip(on_gpu, frames), strict=True):
            wanted = alone.see([frame])
            for found in (seen, stream.see([frame]), lanes.step({streams[2]: frame})[streams[2]]):
                assert np.abs(found.logits - wanted.logits).max() <= LIMIT[variant]
                assert found.logits.argmax() == wanted.logits.argmax()
                if variant == "fp32":
                    assert np.array_equal(found.origins, wanted.origins)


def test_files_are_decoded_on_the_gpu(backend, bundle):
    clip = CLIPS / "R6llTwEh07w.mp4"
    shown = [
        edge("classify", clip, "--bundle", bundle.path, "--backend", backend, "--decoder", decoder, "--json")
        for decoder in ("cpu", "gpu")
    ]
    for done in shown:
        assert done.returncode == 0, done.stderr
    by_cpu, by_gpu = (done.stdout for done in shown)
    assert by_cpu.split('"label"')[1][:12] == by_gpu.split('"label"')[1][:12]
