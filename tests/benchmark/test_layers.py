"""The table of layers: what it counts is what the manifest counts."""

from __future__ import annotations

import pytest

from adafocus_edge.bundle.store import default_bundle, read_bundle
from benchmarks.layers import PIXELS, PRODUCT, clip_costs, faster, measured_peaks, row_of


def test_every_layer_of_a_clip_is_counted() -> None:
    bundle = read_bundle(default_bundle())
    costs = clip_costs(bundle, 1)
    assert set(costs) == {"fp32", "int8-cpu"}
    expected = bundle.totals("fp32")[1] * bundle.spec.segments
    for variant, found in costs.items():
        # A blocked layout of AVX-512 rounds channels up.
        assert expected * 0.99 < sum(one.gmacs for one in found) < expected * 1.15, variant
        kinds = {(one.graph, one.kind): one for one in found}
        assert sum(one.nodes for one in found if one.graph == "focuser" and " x " in one.kind) == 52
        assert kinds["focuser", PIXELS].gmacs == 0 < kinds["focuser", PIXELS].ms
        assert kinds["classifier", PRODUCT].type == ("int8" if variant == "int8-cpu" else "fp32")
    peaks = measured_peaks(1)
    rows = [row_of(one, costs["fp32"], peaks) for one in faster(costs["fp32"], costs["fp32"])]
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=0.01)
