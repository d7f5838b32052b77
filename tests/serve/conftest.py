"""What the tests of the page and its API share: the default model, a run behind a server, a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.live.event_store import EventStore
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions, Server
from tests.support.browser import Browser, opened_browser
from tests.support.configured import TEXT, Set, configured
from tests.support.kept import Kept, fill
from tests.support.served import FIGHT, ODD_NAME, WIDE, Reported, Served, get, new_run, running, until


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    found = read_bundle(default_bundle())
    with load_model(found, "auto", "onnxruntime-cpu", 2) as model:
        yield Classifier(model, found.classes, top_k=2, schedule="stream")


@pytest.fixture(scope="module")
def served(classifier: Classifier) -> Iterator[Served]:
    """A server without a token, of a run with two endless sources."""
    told = Reported()
    run = new_run(classifier, Source("entrance", str(FIGHT)), Source(ODD_NAME, str(WIDE)))
    with running(run), Server(run, ServeOptions(port=0, picture_fps=20.0), told) as server:
        until(lambda: get(server, "/api/results").json["results"])
        yield Served(run, server, told)
    assert told == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with a camera that needs no permission; see :func:`tests.support.browser.page_of`."""
    with opened_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def kept(classifier: Classifier, tmp_path: Path) -> Iterator[Kept]:
    """A server of an archive with :data:`tests.support.kept.COUNT` events."""
    with ExitStack() as stack:
        store = EventStore(tmp_path / "events")
        stack.callback(store.close)
        store.set_classes(("fight", "fall", "no_fight"))
        run = stack.enter_context(running(new_run(classifier)))
        made = Kept(stack.enter_context(Server(run, ServeOptions(port=0), archive=store)), store)
        fill(made)
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A configuration file with two sources and a rule."""
    made = tmp_path / "stream.toml"
    made.write_text(TEXT)
    return made


@pytest.fixture
def given(classifier: Classifier, path: Path) -> Iterator[Set]:
    """A server whose page changes that file."""
    with configured(classifier, path) as made:
        yield made
