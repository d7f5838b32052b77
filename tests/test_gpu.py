"""What only a GPU can show: every backend and variant gives what the CPU gives. `scripts/gpu-check` runs these."""

import numpy as np
import pytest

from adafocus_edge.backends.load import load_model
from adafocus_edge.build import BuildRequest, build
from adafocus_edge.bundle import copy_bundle, default_bundle
from adafocus_edge.engines import BuildOptions
from adafocus_edge.glimpse import GlimpseStream, see_clip
from adafocus_edge.lanes import Lanes
from export.fuse import fuse
from tests.conftest import CLIPS, edge
from tests.test_resident import FRAMES

pytestmark = pytest.mark.gpu
LIMIT = {"fp32": 2e-3, "fp16": 2e-2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The default model with engines of both precisions, by the TensorRT that is installed."""
    from tests.test_build import add_variant

    path = tmp_path_factory.mktemp("gpu") / "bundle"
    copy_bundle(default_bundle(), path)
    bundle = add_variant(path, "fp16")
    for variant in LIMIT:
        build(bundle, BuildRequest(variant=variant, options=BuildOptions(4)), lambda: fuse, lambda *_: None)
    return bundle


@pytest.mark.parametrize("variant", list(LIMIT))
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
def test_a_gpu_gives_what_the_cpu_gives(backend, variant, bundle):
    with (
        load_model(bundle, "fp32", "onnxruntime-cpu") as plain,
        load_model(bundle, variant, backend) as on_gpu,
        load_model(bundle, variant, backend) as other,  # two models in one process
    ):
        alone, stream, lanes = GlimpseStream(plain), GlimpseStream(on_gpu), Lanes(other, 4)
        streams = [lanes.join() for _ in range(4)]
        for frame, seen in zip(FRAMES[:8], see_clip(on_gpu, FRAMES[:8]), strict=True):
            wanted = alone.see([frame])
            for found in (seen, stream.see([frame]), lanes.step({streams[2]: frame})[streams[2]]):
                assert np.abs(found.logits - wanted.logits).max() <= LIMIT[variant]
                assert found.logits.argmax() == wanted.logits.argmax()
                if variant == "fp32":
                    assert np.array_equal(found.origins, wanted.origins)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
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
