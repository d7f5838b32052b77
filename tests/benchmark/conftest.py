"""A bundle to measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.bundle.store import read_bundle, update_bundle
from adafocus_edge.model.exits import ExitThresholds
from tests.support.plain_model import copy_plain_model


def bundle_with_exits(path: Path) -> Bundle:
    """The default model, plain but for two orders of one threshold set."""
    copy_plain_model(path)
    steps = read_bundle(path).spec.segments
    # type: ignore[arg-type]
    sets = tuple(ExitThresholds(order, "probability", (0.8,) * steps, "test") for order in ("clip", "coarse-to-fine"))
    return update_bundle(path, lambda manifest: replace(manifest, thresholds={"safe": sets}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_with_exits(tmp_path_factory.mktemp("benchmark") / "fights")
