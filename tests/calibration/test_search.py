"""The search for layers to keep: it runs fewer clips than a search that judges every step on all of them, and chooses
the same."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adafocus_edge.model.spec import GRAPHS
from calibration.compare import Comparison, Run
from calibration.samples import Clips
from calibration.variants import CONVOLUTIONS, Choices, Kept, Maker, _badness, _Candidate, _worst

CLIPS, CLASSES, STEPS = 12, 4, 2


class Tabled(Comparison):
    """A comparison whose model's logits are drawn at random, with an error that grows with the graphs' errors."""

    def __init__(self, maker: "TableMaker", error: float, key: str) -> None:
        random = np.random.default_rng([maker.seed, *key.encode()])
        order = random.permutation(CLIPS).tolist()
        super().__init__(None, maker.clips, maker.reference, order=order)  # type: ignore[arg-type]
        self._drawn = maker.reference.logits + error * random.normal(size=maker.reference.logits.shape)
        self._maker = maker

    def advance(self) -> None:
        place = self._left.pop(0)
        self._outputs[place] = self._drawn[place].astype(np.float32), [(0.0, 0.0)] * STEPS
        self.right[place] = bool(self._drawn[place][-1].argmax() == self._clips.labels[place])
        self._maker.clips_run += 1


class TableMaker(Maker):
    """A maker without graphs: a path's name is the graph's and the number of layers kept."""

    def __init__(self, seed: int, variant: str, *, labelled: bool) -> None:
        self.seed, self.variant, self.clips_run = seed, variant, 0
        random = np.random.default_rng(seed)
        logits = random.normal(size=(CLIPS, STEPS, CLASSES)).astype(np.float32)
        labels = logits[:, -1].argmax(axis=1)
        if labelled:  # the float model is not always right
            labels[::4] = random.integers(0, CLASSES, len(labels[::4]))
        self.clips = Clips((np.zeros(0, np.uint8),) * CLIPS, labels, ("",) * CLIPS)
        self.reference = Run(logits, np.zeros((CLIPS, STEPS, 2)))
        self.choices = Choices(None, float(random.choice([1.0, 10.0, 30.0])), False, None)
        self.errors = {graph: float(random.choice([0, 0.02, 0.3, 1.0, 2.0])) for graph in GRAPHS}
        self.layers = {graph: int(random.integers(3, 40)) for graph in CONVOLUTIONS}
        self.progress = lambda *_: None
        self._combinations: Any = SimpleNamespace(drop=lambda _: None)
        self.quantized = lambda variant, graph, method, names=(): Path(f"{graph}-{len(names)}")  # type: ignore[method-assign]
        self._halved = lambda graph: graph  # type: ignore[method-assign,assign]
        self._write = lambda graph: Path(f"{graph}-half")  # type: ignore[method-assign,assign]
        self._ranked = lambda variant, graph, method: [  # type: ignore[method-assign]
            Kept(graph, f"{place}", "") for place in range(self.layers[graph])
        ]

    def _compared(self, paths, what, variant):
        error = 0.0
        for graph, path in paths.items():
            kept = path.name.removeprefix(f"{graph}-")
            share = 0.99 if kept == "half" else int(kept) / (self.layers.get(graph, 1) + 1)
            error += self.errors[graph] * (1 - share)
        return Tabled(self, error, " ".join(sorted(path.name for path in paths.values())))

    def candidate(self) -> _Candidate:
        paths = {graph: Path(f"{graph}-0") for graph in GRAPHS}
        alone = {graph: self.judged({graph: path}, "", self.variant) for graph, path in paths.items()}
        return _Candidate(self.variant, "minmax", paths, self.judged(paths, "", self.variant), alone, ())


def restored_eagerly(maker: TableMaker, before: _Candidate) -> _Candidate:
    """Search as ``Maker._restored`` does, with every step judged on all clips."""
    variant, method, limit = before.variant, before.method, maker.choices.max_drop
    why = f"{before.judged.top1_drop:.2f} points were lost, at most {limit:g} are allowed"
    now, costs, together = dict(before.paths), dict(before.alone), before.judged
    ranked: dict[str, list[Kept]] = {}
    counts = dict.fromkeys(before.paths, 0)
    left = {graph for graph in before.paths if before.alone[graph].logit_error_max > 0}
    while together.top1_drop > limit and left:
        graph = max(left, key=lambda name: _badness(costs[name]))
        now.pop(graph)
        if graph in CONVOLUTIONS and graph not in ranked:
            ranked[graph] = maker._ranked(variant, graph, method)
        counts[graph] = max(1, 2 * counts[graph])
        if counts[graph] < len(ranked.get(graph, ())):
            now[graph] = maker.quantized(variant, graph, method, [one.layer for one in ranked[graph][: counts[graph]]])
        else:
            if variant != "int8-cpu":
                now[graph] = maker._write(maker._halved(graph))
            left.remove(graph)
        costs[graph] = maker.judged({graph: now[graph]} if graph in now else {}, "", variant)
        together = maker.judged(now, "", variant)
    if _badness(together) >= _badness(before.judged):
        return before
    kept: list[Kept] = []
    for graph in (graph for graph in before.paths if counts[graph]):
        some = [replace(layer, why=why) for layer in ranked.get(graph, [])[: counts[graph]]]
        kept.extend(some if graph in left else [Kept(graph, "all", why)])
    return replace(before, paths=now, judged=together, kept=tuple(kept))


@pytest.mark.parametrize("variant", ["int8-cpu", "int8-trt"])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_search_chooses_what_the_full_one_does_with_fewer_clips(variant, labelled):
    lengths = {"eager": 0, "lazy": 0}
    for seed in range(150):
        results = {}
        for name in lengths:
            maker = TableMaker(seed, variant, labelled=labelled)
            before = maker.candidate()
            maker.clips_run = 0
            results[name] = maker._restored(before) if name == "lazy" else restored_eagerly(maker, before)
            lengths[name] += maker.clips_run
        assert results["lazy"] == results["eager"], seed
    assert lengths["lazy"] < 0.65 * lengths["eager"]


def test_a_loss_is_certain_as_soon_as_no_other_clip_could_make_up_for_it():
    maker = TableMaker(0, "int8-cpu", labelled=False)
    wrong = Tabled(maker, 0.0, "")
    wrong._drawn = -maker.reference.logits
    assert wrong.loses_more(1.0)
    assert maker.clips_run == 1
    assert wrong.loses_more(20.0)
    assert maker.clips_run == 3
    assert (wrong.drop_if(right=True), wrong.drop_if(right=False)) == (25.0, 100.0)
    assert wrong.difference().top1_drop == 100.0
    assert maker.clips_run == CLIPS
    same = Tabled(maker, 0.0, "")
    assert not same.loses_more(1.0)
    assert same.done
    assert same.difference().logit_error_max == 0


def test_the_graph_with_the_largest_loss_is_found_with_as_few_clips_as_decide_it():
    maker = TableMaker(0, "int8-cpu", labelled=False)
    worst, exact, known = Tabled(maker, 0.0, ""), Tabled(maker, 0.0, ""), Tabled(maker, 0.01, "").difference()
    worst._drawn = -maker.reference.logits
    maker.clips_run = 0
    assert _worst({"focuser": worst, "policy": known}) == "focuser"
    assert maker.clips_run == 1
    assert _worst({"policy": exact, "focuser": worst}) == "focuser"
    assert not exact.done
    assert _worst({"glancer": exact}) == "glancer"  # the only one: nothing is run for it
    assert _worst({"glancer": exact, "policy": known}) == "policy"  # equal labels: the errors of logits decide
    assert exact.done
