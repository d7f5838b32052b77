"""The default model as `export` left it: FP32 and FP16, without what `calibrate` added."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.bundle.store import copy_bundle, default_bundle, update_bundle
from adafocus_edge.bundle.variants import CALIBRATED
from adafocus_edge.evaluation.evidence import CALIBRATION, CONVERTED


def copy_plain_model(path: Path) -> Bundle:
    """Copy the default model, without calibrated variants, exit thresholds and the report of both."""
    copy_bundle(default_bundle(), path)
    made = set(CALIBRATED) - {CONVERTED}
    bundle = update_bundle(
        path,
        lambda manifest: replace(
            manifest,
            variants={name: graphs for name, graphs in manifest.variants.items() if name not in made},
            thresholds={},
            reports={name: one for name, one in manifest.reports.items() if name != CALIBRATION},
        ),
    )
    for name in made:
        shutil.rmtree(path / name, ignore_errors=True)
    return bundle
