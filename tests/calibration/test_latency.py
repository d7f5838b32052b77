"""A limit on the time of a clip: further sensitive layers stay float as long as there is time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.calibrate_settings import CalibrateArguments
from calibration import variants
from calibration.calibrate import _warnings
from calibration.compare import Times, run
from calibration.graphs import load_graph, multiplications
from calibration.int8 import quantized_layers
from calibration.options import settled
from calibration.remembering import RememberingSession, forgetful, remembering
from tests.calibration.helpers import FIGHTS


@pytest.fixture(scope="module")
def make(model, fights, samples, tmp_path_factory):
    """Make ``int8-cpu`` with a limit on the time of a clip, all variants with the same ranking of layers."""
    bundle = read_bundle(default_bundle())
    choices = variants.Choices("minmax", 100.0, False, 2)
    maker = variants.Maker(
        remembering(model), lambda graph: bundle.graph_path("fp32", graph), samples, fights, run(model, fights),
        choices, tmp_path_factory.mktemp("work"), lambda *_: None,
    )  # fmt: skip

    def made(limit):
        maker.choices = replace(choices, max_ms=limit)
        return maker, maker.make("int8-cpu")

    return made


CONVOLUTIONS = 52
"""Of either graph, three of them in the stem."""


def in_float(paths):
    """Return how many layers of both graphs of convolutions are float; a graph without a path is float."""
    return 2 * CONVOLUTIONS - sum(len(quantized_layers(onnx.load_model(path))) for path in paths)


def files_of(made):
    return [made.folder / f"{graph}.onnx" for graph in variants.CONVOLUTIONS]


def test_the_more_time_there_is_the_more_layers_stay_float_the_most_worthy_first(make, monkeypatch):
    """The clock counts float layers: a millisecond each."""
    opened, timed = [], []

    def open_and_remember(combinations, paths, variant, original=variants.Combinations.model):
        opened.append([paths[graph] for graph in variants.CONVOLUTIONS if graph in paths])
        return original(combinations, paths, variant)

    def count_layers(models, _):
        for model in models.values():
            assert not isinstance(model.glancer, RememberingSession)  # what is remembered takes no time
            assert not isinstance(model.focuser, RememberingSession)
        timed.append(in_float(opened[-1]))
        return dict.fromkeys(models, Times(float(timed[-1]), 1.0))

    monkeypatch.setattr(variants.Combinations, "model", open_and_remember)
    monkeypatch.setattr(variants, "timed", count_layers)
    errors = []
    for limit, expected in ((3, 6), (27, 27)):
        maker, made = make(limit)
        assert in_float(files_of(made)) == expected
        facts = made.quantization
        errors.append(facts.on_calibration_clips.logit_error_mean)
        spent = [one for one in facts.kept if one.why.startswith("fits the time limit")]
        assert len(spent) == expected - 6  # the stems are float in any case
        if limit == 27:
            assert spent[0].why == "fits the time limit: 27.0 of 27 ms per clip"
            plain = {graph: Path() for graph in variants.CONVOLUTIONS}  # nothing is kept, and no file is read
            quantized = variants._Candidate(
                "int8-cpu", "minmax", plain, facts.methods["minmax"], facts.graphs_alone, ()
            )
            order = maker._by_error_per_multiplication(quantized)
            assert [(one.graph, one.layer) for one in spent] == [(one.graph, one.layer) for one in order[:21]]
    assert errors[0] > errors[1]
    assert len(timed) < 9  # by halving


def test_where_there_is_time_for_all_layers_all_are_float(make):
    _, made = make(1e9)
    assert made.precision["glancer"] == made.precision["focuser"] == "fp32"
    assert [one.graph for one in made.quantization.kept if one.layer == "all"] == ["glancer", "focuser"]


def test_a_model_is_timed_without_its_memory(model):
    timed = forgetful(remembering(model))
    assert timed.glancer is model.glancer
    assert timed.focuser is model.focuser
    assert forgetful(model).glancer is model.glancer


def test_multiplications_are_those_of_the_shapes():
    """MobileNetV2 has 300 million of them at 224 x 224 (Sandler et al. 2018, table 4)."""
    bundle = read_bundle(default_bundle())
    found = multiplications(load_graph(bundle.graph_path("fp32", "focuser")))
    assert len(found) == 52
    share = (bundle.spec.patch_size / 224) ** 2
    assert sum(found.values()) == pytest.approx(300e6 * share, rel=0.01)
    assert np.argmin(list(found.values())) > 3  # a depthwise convolution of few places


def test_the_limit_is_for_int8_cpu_and_told_where_it_is_missed():
    arguments = CalibrateArguments(data=FIGHTS, variants="fp16", max_latency_ms=20.0)
    with pytest.raises(UsageError, match="--max-latency-ms is for int8-cpu: add it to --variants"):
        settled(arguments, 8)
    assert settled(replace(arguments, variants="fp16,int8-cpu"), 8).max_latency_ms == 20.0
    with pytest.raises(UsageError, match="--max-latency-ms 0: must be at least 0.001"):
        CalibrateArguments(data=FIGHTS, max_latency_ms=0.0)
    row = {"settings": {"max_latency_ms": 20.0}, "ms_per_clip": 21.6, "exits": {}}
    assert _warnings({"int8-cpu": row}) == [
        "int8-cpu: 21.6 ms per clip, more than --max-latency-ms 20: use early exits"
    ]
    assert _warnings({"int8-cpu": {**row, "ms_per_clip": 20.6}}) == []
