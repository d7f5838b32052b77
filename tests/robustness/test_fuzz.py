"""A small share of the hostile inputs of ``benchmarks/fuzz.py``: each gives a result or one error that tells a user."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import Victim
from tests.support.fuzzing import TARGETS

INPUTS = {"video": 25, "frames": 20, "manifest": 25, "graph": 15, "checkpoint": 20, "lists": 60, "requests": 40}
"""How many of each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", TARGETS)
def test_what_nobody_should_send_gives_a_result_or_one_error(target: str, folder: Path) -> None:
    victim = Victim(folder)
    escaped = []
    kinds = set()
    try:
        for seed in range(INPUTS[target]):
            if not victim.alive:
                victim = Victim(folder)
            outcome, _ = victim.feed(target, seed)
            kinds.add(outcome.kind)
            if outcome.kind == "escaped":
                escaped.append((seed, outcome.text))
    finally:
        victim.close()
    assert escaped == []
    assert kinds >= ({"result"} if target == "requests" else {"refused"})
