"""Compare the patches that a focuser is calibrated on: the policy's, those at the centre, and random ones.

    python -m benchmarks.calibration BUNDLE --calibrate-on CLIPS.csv --report-on OTHER.csv

Each row quantizes only the focuser (int8-cpu), with ranges from the same number of recorded steps of the same clips,
drawn again for each seed, and runs the loop, with the policy's patches, on the other clips.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.evaluation.dataset import read_data
from adafocus_edge.evaluation.evaluate import with_patches
from benchmarks.machine import save
from calibration.compare import Difference, run
from calibration.int8 import needs_reduced_range
from calibration.ranges import METHODS
from calibration.remembering import remembering
from calibration.samples import choose_clips, read_clips, record
from calibration.variants import Choices, Maker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calibrate-on", type=Path, required=True)
    parser.add_argument("--report-on", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="calibration")
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    spec, reduced = bundle.spec, needs_reduced_range()
    failed: list[tuple[str, str]] = []
    reported = choose_clips(read_data(options.report_on, bundle.classes), options.clips, 0)
    judging = read_clips(reported, spec, failed, lambda _: None)
    rows: list[dict[str, Any]] = []
    with load_model(bundle, "fp32", "onnxruntime-cpu") as opened, tempfile.TemporaryDirectory() as work:
        model = remembering(opened)
        reference = run(model, judging)
        places, counts = np.unique(reference.patches.reshape(-1, 2), axis=0, return_counts=True)
        for patches in ("policy", "centre", "random"):
            found: dict[str, list[Difference]] = {method: [] for method in METHODS}
            for seed in range(options.seeds):
                chosen = choose_clips(read_data(options.calibrate_on, bundle.classes), options.clips, seed)
                clips = read_clips(chosen, spec, failed, lambda _: None)
                samples = record(with_patches(model, patches, seed), clips, options.samples, seed)
                maker = Maker(
                    model, lambda graph: bundle.graph_path("fp32", graph), samples, judging, reference,
                    Choices(None, 1.0, reduced, None), Path(work), lambda *_: None,
                )  # fmt: skip
                for method in METHODS:
                    path = maker.quantized("int8-cpu", "focuser", method)
                    found[method].append(maker.judged({"focuser": path}, method, "int8-cpu"))
            for method, judged in found.items():
                errors = [entry.logit_error_mean for entry in judged]
                row = {
                    "patches": patches,
                    "method": method,
                    "logit_error_mean": float(np.mean(errors)),
                    "over_seeds": [float(np.min(errors)), float(np.max(errors))],
                    "label_agreement": float(np.mean([entry.label_agreement for entry in judged])),
                }
                rows.append(row)
                print(row)
    facts = {
        "clips": len(judging),
        "places_the_policy_took": len(places),
        "largest_share": float(counts.max() / counts.sum()),
    }
    save(
        options.name,
        {"bundle": options.bundle.name, "seeds": options.seeds, "samples": options.samples, **facts, "rows": rows},
    )


if __name__ == "__main__":
    main()
