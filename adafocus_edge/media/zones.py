"""Regions and masks of a source: polygons that limit what the model sees, and what anyone sees."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from adafocus_edge.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Point = tuple[float, float]
Polygon = tuple[Point, ...]
"""Corners as (x, y), fractions of the width and the height of the upright picture, 0 to 1 from its top left corner."""

MIN_POINTS, MAX_POINTS = 3, 64
MAX_POLYGONS = 32
"""Maximum number of regions, and of masks, of a source."""
MIN_AREA = 1e-4
"""Minimum area of a polygon, as a share of the picture."""
NUMBER = r"[+-]?\d*\.?\d+"
POINTS = re.compile(rf"\s*{NUMBER}\s*,\s*{NUMBER}(?:\s+{NUMBER}\s*,\s*{NUMBER})*\s*")
PIXEL = np.dtype("V3")
"""Red, green and blue as one value."""
EXAMPLE = "0.1,0.1 0.5,0.1 0.5,0.4"


@dataclass(frozen=True)
class Zones:
    """The regions and masks of a source.

    A pixel belongs to a polygon if its centre is inside.

    Attributes:
        regions: the model sees everything outside all of them as black; none for the whole picture.
        masks: black in the picture itself: for the model, viewers, and everything that is stored or sent.

    Raises:
        UsageError: a polygon cannot be used; the message says which and why.
    """

    regions: tuple[Polygon, ...] = ()
    masks: tuple[Polygon, ...] = ()
    # For the newest size of the source's picture: a byte per pixel, which goes with the source.
    _selections: dict[str, _Selection] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for kind in ("region", "mask"):
            if (wrong := polygons_problem(kind, getattr(self, f"{kind}s"))) is not None:
                raise UsageError(wrong)

    def __bool__(self) -> bool:
        return bool(self.regions or self.masks)

    def __add__(self, other: Zones) -> Zones:
        return Zones(self.regions + other.regions, self.masks + other.masks)

    def masked(self, to_rgb: Callable[[], Any]) -> Callable[[], Any]:
        """Return a callable like ``to_rgb``, which returns RGB uint8 [H, W, 3], whose pixels under masks are black."""
        if not self.masks:
            return to_rgb
        return lambda: self._blackened(to_rgb(), "masks")

    def watched(self, to_rgb: Callable[[], Any]) -> Callable[[], Any]:
        """Return a callable like ``to_rgb``, whose pixels are those that the model sees; see :meth:`attended`."""
        if not self.regions:
            return to_rgb
        return lambda: self.attended(to_rgb())

    def attended(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return RGB uint8 [H, W, 3] as the model sees it: black outside the regions."""
        return self._blackened(rgb, "regions") if self.regions else rgb

    def _blackened(self, rgb: NDArray[np.uint8], kind: Literal["regions", "masks"]) -> NDArray[np.uint8]:
        """Return a copy whose pixels under masks, or outside the regions, are black."""
        size = rgb.shape[0], rgb.shape[1]
        selection = self._selections.get(kind)
        if selection is None or selection.size != size:
            selection = self._selections[kind] = _selection(getattr(self, kind), size)
        return _black(rgb, selection, inside=kind == "masks")


def polygons_problem(kind: str, polygons: Sequence[Polygon]) -> str | None:
    """Return in one line what is wrong with polygons, or None.

    Args:
        kind: ``region`` or ``mask``, for the message.
        polygons: of one source.
    """
    if len(polygons) > MAX_POLYGONS:
        return f"{kind}s: at most {MAX_POLYGONS}, found {len(polygons)}"
    for number, polygon in enumerate(polygons, 1):
        if (wrong := _problem(polygon)) is not None:
            return f"{kind} {number}: {wrong}"
    return None


def _problem(polygon: Polygon) -> str | None:
    if not MIN_POINTS <= len(polygon) <= MAX_POINTS:
        return f"needs {MIN_POINTS} to {MAX_POINTS} points, found {len(polygon)}"
    outside = next((point for point in polygon if not all(0 <= value <= 1 for value in point)), None)
    if outside is not None:
        return f"point {outside[0]:g},{outside[1]:g} is outside the picture: x and y must be 0 to 1"
    sides = list(_sides(polygon))
    area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in sides) / 2
    # Where sides cross, it is unclear what is inside: a mask could have a hole.
    for (first, one), (second, other) in combinations(enumerate(sides), 2):
        adjacent = second - first in (1, len(sides) - 1)
        if not adjacent and _meet(one, other):
            return f"sides {first + 1} and {second + 1} cross or touch each other"
    if abs(area) < MIN_AREA:
        return f"is too small: its area must be at least {MIN_AREA:g} of the picture"
    return None


def _sides(polygon: Polygon) -> Iterator[tuple[Point, Point]]:
    return zip(polygon, (*polygon[1:], polygon[0]), strict=True)


def _meet(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Return whether two line segments have a point in common."""

    def turn(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    def within(a: Point, b: Point, c: Point) -> bool:
        return min(a[0], b[0]) <= c[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= c[1] <= max(a[1], b[1])

    (a, b), (c, d) = one, other
    turns = turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b)
    if turns[0] * turns[1] < 0 and turns[2] * turns[3] < 0:
        return True
    ends = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(side == 0 and within(*end) for side, end in zip(turns, ends, strict=True))


def read_polygon(value: Any) -> Polygon:
    """Return a polygon given as a list of [x, y]. Raises ``UsageError`` for anything else."""
    try:
        points = [(float(x), float(y)) for x, y in value]
        if any(isinstance(number, (bool, str)) for point in value for number in point):
            raise TypeError
    except (TypeError, ValueError):
        points = [(math.nan, math.nan)]
    if not all(math.isfinite(number) for point in points for number in point):
        raise UsageError("a polygon must be a list of points, such as [[0.1, 0.1], [0.5, 0.1], [0.5, 0.4]]")
    return tuple(points)


def parse_polygon(text: str) -> Polygon:
    """Parse ``X,Y X,Y X,Y ...``. Raises ``UsageError``."""
    if not POINTS.fullmatch(text):
        raise UsageError(f"must be X,Y X,Y X,Y ..., each from 0 to 1, such as {EXAMPLE}")
    numbers = [float(number) for number in re.findall(NUMBER, text)]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


class _Selection(NamedTuple):
    """Which pixels of a picture polygons cover.

    Attributes:
        size: (H, W) of the picture.
        rows: with any such pixel.
        inside: of these rows, whether each pixel is inside of any polygon, [rows, W].
    """

    size: tuple[int, int]
    rows: slice
    inside: NDArray[np.bool_]


def _selection(polygons: tuple[Polygon, ...], size: tuple[int, int]) -> _Selection:
    inside = np.zeros(size, bool)
    for polygon in polygons:
        inside |= _inside(polygon, *size)
    covered = np.flatnonzero(inside.any(axis=1))
    rows = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)
    return _Selection(size, rows, inside[rows].copy())


def _inside(polygon: Polygon, height: int, width: int) -> NDArray[np.bool_]:
    """Return which pixels of a picture have their centre inside a polygon, [H, W].

    A polygon so thin that it contains no centre has the pixels that its sides pass: it never selects nothing.
    """
    xs, ys = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    inside = np.zeros((height, width), bool)
    for (x1, y1), (x2, y2) in _sides(polygon):
        crossed = (ys >= y1) != (ys >= y2)
        if crossed.any():
            at = x1 + (ys[crossed] - y1) / (y2 - y1) * (x2 - x1)
            inside[crossed] ^= xs[None, :] < at[:, None]
    if not inside.any():
        for (x1, y1), (x2, y2) in _sides(polygon):
            along = np.linspace(0, 1, math.ceil(2 * max(abs(x2 - x1) * width, abs(y2 - y1) * height)) + 2)
            rows, columns = (y1 + (y2 - y1) * along) * height, (x1 + (x2 - x1) * along) * width
            inside[np.minimum(rows.astype(int), height - 1), np.minimum(columns.astype(int), width - 1)] = True
    return inside


def _black(rgb: NDArray[np.uint8], selection: _Selection, *, inside: bool) -> NDArray[np.uint8]:
    """Return a copy whose selected pixels are black, or all others."""
    made = np.array(rgb, order="C")
    rows, selected = selection.rows, selection.inside
    if not inside:
        made[: rows.start] = made[rows.stop :] = 0
    # A choice among pixels of three bytes is many times faster than one by pixel and channel.
    made.view(PIXEL)[rows, :, 0][selected if inside else ~selected] = np.zeros((), PIXEL)
    return made
