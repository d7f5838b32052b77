"""Models, clips and recorded inputs to calibrate with."""

import pytest

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.evaluation.dataset import read_data
from calibration.samples import read_clips, record
from tests.calibration.helpers import FIGHTS


@pytest.fixture(scope="module")
def small(small_bundle):
    return read_bundle(small_bundle)


@pytest.fixture(scope="module")
def fights():
    """Four real clips as the default model sees them."""
    bundle = read_bundle(default_bundle())
    examples = read_data(FIGHTS, bundle.classes).examples[::3]
    return read_clips(examples, bundle.spec, [], lambda _: None)


@pytest.fixture(scope="module")
def model():
    with load_model(read_bundle(default_bundle()), "fp32", "onnxruntime-cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def samples(model, fights):
    return record(model, fights, 12, seed=3)
