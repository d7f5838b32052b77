"""Regions and masks: which polygons are accepted, and which pixels belong to them."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from adafocus_edge.errors import UsageError
from adafocus_edge.media import zones
from adafocus_edge.media.zones import Zones, parse_polygon, read_polygon

SQUARE = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))
HOOK = ((0.1, 0.1), (0.9, 0.2), (0.85, 0.9), (0.6, 0.85), (0.7, 0.4), (0.15, 0.3))
"""A polygon that is not convex."""


def noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(7).integers(1, 256, (height, width, 3), np.uint8)


def is_inside(x: float, y: float, polygon: Any) -> bool:
    """Whether a point is inside, by the angles at which it sees the corners."""
    total = 0.0
    for (x1, y1), (x2, y2) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        turn = math.atan2(y2 - y, x2 - x) - math.atan2(y1 - y, x1 - x)
        total += (turn + math.pi) % (2 * math.pi) - math.pi
    return abs(total) > math.pi


@pytest.mark.parametrize("polygon", [SQUARE, HOOK, HOOK[::-1], ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))])
def test_a_pixel_belongs_to_a_polygon_if_its_centre_is_inside(polygon: Any) -> None:
    rgb = noise()
    height, width = rgb.shape[:2]
    wanted = np.array(
        [[is_inside((x + 0.5) / width, (y + 0.5) / height, polygon) for x in range(width)] for y in range(height)]
    )
    assert 0 < wanted.sum() < wanted.size
    masked = Zones(masks=(polygon,)).masked(lambda: rgb)()
    attended = Zones(regions=(polygon,)).attended(rgb)
    assert np.array_equal(masked, np.where(wanted[..., None], 0, rgb))
    assert np.array_equal(attended, np.where(wanted[..., None], rgb, 0))


def test_a_polygon_too_thin_for_any_centre_has_the_pixels_that_it_touches() -> None:
    """A mask must hide something; a region that showed nothing would give an answer of black pictures."""
    rgb = noise()
    across, down = ((0.5, 0.1), (0.5002, 0.1), (0.5002, 0.9), (0.5, 0.9)), ((0, 1), (1, 1), (1, 0.9998), (0, 0.9998))
    columns = ~Zones(masks=(across,)).masked(lambda: rgb)().any(axis=2)
    assert columns[4:44, 32].all()
    assert columns.sum() == 40
    assert np.array_equal(Zones(regions=(down,)).attended(rgb)[-1], rgb[-1])
    assert not Zones(regions=(down,)).attended(rgb)[:-1].any()
    square = noise(480, 480)
    diagonal = ((0, 0.0001), (0, 0.0005), (0.9995, 1), (0.9999, 1))
    hidden = ~Zones(masks=(diagonal,)).masked(lambda: square)().any(axis=2)
    assert 480 <= hidden.sum() <= 960
    assert np.abs(np.subtract(*np.nonzero(hidden))).max() <= 1


def test_several_polygons_add_up_and_the_picture_itself_stays_as_it_is() -> None:
    rgb, left, right = noise(), ((0, 0), (0.6, 0), (0.6, 1), (0, 1)), ((0.4, 0), (1, 0), (1, 1), (0.4, 1))
    before = rgb.copy()
    rgb.flags.writeable = False
    assert not Zones(masks=(left, right)).masked(lambda: rgb)().any()
    assert np.array_equal(Zones(regions=(left, right)).attended(rgb), before)
    assert np.array_equal(rgb, before)
    assert Zones().attended(rgb) is rgb
    assert not Zones()
    assert Zones(masks=(left,)) + Zones((right,)) == Zones((right,), (left,))


def test_the_same_polygon_fits_any_size_of_the_picture() -> None:
    for height, width in ((1, 1), (3, 200), (1080, 1920)):
        made = Zones(masks=(SQUARE,)).masked(lambda size=(height, width): np.full((*size, 3), 9, np.uint8))()
        assert (made == 0).mean() == pytest.approx(0.25 if height > 1 else 1.0, abs=0.1)


@pytest.mark.parametrize(
    ("polygon", "words"),
    [
        (((0, 0), (1, 1)), "mask 1: needs 3 to 64 points, found 2"),
        (tuple((0.5 + math.cos(k / 9) / 3, 0.5 + math.sin(k / 9) / 3) for k in range(65)), "found 65"),
        (((0, 0), (1.2, 0), (1, 1)), "mask 1: point 1.2,0 is outside the picture: x and y must be 0 to 1"),
        (((0, 0), (1, 1), (1, 0), (0, 1)), "mask 1: sides 1 and 3 cross or touch each other"),
        (((0.5, 0), (0.8, 1), (0, 0.4), (1, 0.4), (0.2, 1)), "cross or touch"),  # a star: its middle would be a hole
        (((0, 0), (0.5, 0.5), (1, 0), (1, 1), (0.5, 0.5), (0, 1)), "cross or touch"),
        (((0, 0), (0.005, 0), (0.005, 0.005)), "mask 1: is too small"),
        (((0, 0), (0.5, 0.5), (1, 1)), "mask 1: is too small"),
    ],
)
def test_polygons_that_cannot_be_meant_are_refused(polygon: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace(".", r"\.")):
        Zones(masks=(polygon,))


def test_polygons_are_read_from_text_and_lists() -> None:
    wanted = ((0.1, 0.0), (0.5, 1.0), (0.75, 0.25))
    assert parse_polygon(" 0.1,0 .5,1  0.75 , .25 ") == wanted
    assert read_polygon([[0.1, 0], [0.5, 1], [0.75, 0.25]]) == wanted
    for text in ("", "0.1", "0.1,0.2 0.3", "a,b c,d e,f", "1e3,2 3,4 5,6", "0.1;0.2"):
        with pytest.raises(UsageError, match="must be X,Y X,Y X,Y"):
            parse_polygon(text)
    for value in (None, 3, "0,0", [1, 2], [[0, 0, 0]], [["0", "1"]], [[True, False]], [[math.nan, 0]], {"a": 1}):
        with pytest.raises(UsageError, match="must be a list of points"):
            read_polygon(value)
    with pytest.raises(UsageError, match="at most 32, found 33"):
        Zones(regions=(SQUARE,) * 33)


def test_what_is_remembered_of_a_picture_takes_a_byte_per_pixel_and_goes_with_the_source() -> None:
    height, width = 2160, 3840
    rgb = np.ones((height, width, 3), np.uint8)
    whole = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        source = Zones(regions=(whole,), masks=(whole,))
        for rows in (1080, height):  # only the newest size is remembered
            picture = rgb[:rows]
            assert not source.masked(lambda picture=picture: picture)().any()
            assert source.attended(picture).all()
        kept = tracemalloc.get_traced_memory()[0] - before
        assert kept < 2 * height * width * 1.02
        del source
        assert tracemalloc.get_traced_memory()[0] - before < 1e6
    finally:
        tracemalloc.stop()


def test_polygons_are_drawn_once_however_many_sources_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = zones._inside
    monkeypatch.setattr(zones, "_inside", lambda *of: drawn.append(of) or draw(*of))
    moved = [tuple((x, y + number / 1000) for x, y in SQUARE) for number in range(100)]
    sources = [Zones(regions=(polygon,), masks=(HOOK,)) for polygon in moved]
    rgb = noise()
    first = [source.attended(source.masked(lambda: rgb)()) for source in sources]
    assert len(drawn) == 200
    again = [source.attended(source.masked(lambda: rgb)()) for source in sources]
    assert len(drawn) == 200
    assert np.array_equal(first, again)


def test_pictures_that_lie_in_memory_in_another_order_are_blackened_in_the_same_places() -> None:
    rgb = noise()
    turned = np.ascontiguousarray(rgb.transpose(2, 1, 0)).transpose(2, 1, 0)  # the same, by columns
    made = Zones(regions=(HOOK,), masks=(SQUARE,))
    for picture in (turned, rgb[::-1][::-1], rgb[:, ::-1][:, ::-1]):
        assert np.array_equal(made.attended(picture), made.attended(rgb))
        assert np.array_equal(made.masked(lambda picture=picture: picture)(), made.masked(lambda: rgb)())
    assert made == Zones(regions=(HOOK,), masks=(SQUARE,))  # whatever has been made of it
