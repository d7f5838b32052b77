"""Creates the clips: small cards with hand signs drift through real surveillance video; the yellow one is the class.

The place of the yellow card is visible at low resolution, its sign only in a close-up. Cards of other colours show
other signs, so that a patch on a wrong card misleads. Training and validation clips share neither sources of
backgrounds nor signing persons. Such tasks have long been the test of glimpse models (Mnih et al. 2014,
arXiv 1406.6247; Katharopoulos and Fleuret 2019, 1905.03711).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

SIGNS = Path(__file__).with_name("signs")
TILE = 64
"""Side of a photograph on its sheet, in pixels."""
YELLOW = (245, 210, 25)
OTHER_COLOURS = ((230, 230, 235), (70, 180, 230), (95, 195, 100), (220, 115, 205), (125, 120, 230), (240, 120, 60))
BORDER = 0.12
"""Width of a card's coloured border, as a share of its side."""
MAX_TILT = 12
"""Max tilt of a card, in degrees."""
VALIDATION_SHARE = 1 / 3
"""Share of the sources of backgrounds and of the persons held back for validation."""
PARTS = ("train", "val")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """The clips to create.

    Attributes:
        digits: signs, one class each.
        train: number of clips to train on.
        val: number of clips to validate on.
        size: side of the square frames, pixels.
        card: side of a card, pixels.
        distractors: cards of other colours in each clip.
        frames: frames per clip.
        fps: frames per second of the clips.
        shown: share of a clip during which a card is visible.
        speed: share of the frame's side that a card crosses in a clip, on average.
        near: side of the close-ups, pixels of the frame.
        near_frames: frames of a close-up.
        seed: random seed.
    """

    digits: tuple[int, ...] = tuple(range(10))
    train: int = 1200
    val: int = 400
    size: int = 384
    card: int = 44
    distractors: int = 3
    frames: int = 16
    fps: int = 8
    shown: float = 0.5
    speed: float = 0.6
    near: int = 96
    near_frames: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Background:
    """A real video.

    Attributes:
        path: path of the file.
        source: scene of the video; all clips of a scene belong to one part.
    """

    path: Path
    source: str


@dataclass
class Card:
    """A card in a clip.

    Attributes:
        pixels: float32 [side, side, 3], RGB.
        alpha: float32 [side, side, 1], 1 where the card covers the background.
        places: top left corner in each frame, int [frames, 2], (y, x).
        first: first frame that shows the card.
        last: frame after the last one that shows it.
    """

    pixels: NDArray[np.float32]
    alpha: NDArray[np.float32]
    places: NDArray[np.int64]
    first: int
    last: int


@dataclass(frozen=True)
class Clip:
    """One clip to create.

    Attributes:
        part: ``train`` or ``val``.
        number: index in that part.
        label: digit on the yellow card.
        background: video behind the cards.
    """

    part: str
    number: int
    label: int
    background: Background

    @property
    def name(self) -> str:
        """Return the clip's name."""
        return f"{self.part}_{self.number:05d}"


@dataclass
class Sheet:
    """The photographs of one digit, in the order of persons.

    Attributes:
        tiles: uint8 [N, 64, 64, 3], RGB.
    """

    tiles: Image = field(repr=False)

    def of_part(self, part: str) -> Image:
        """Return the photographs of a part's persons."""
        cut = round(len(self.tiles) * (1 - VALIDATION_SHARE))
        return self.tiles[:cut] if part == "train" else self.tiles[cut:]


@lru_cache(maxsize=16)
def read_sheet(digit: int) -> Sheet:
    """Read the photographs of a digit."""
    sheet = cv2.cvtColor(cv2.imread(str(SIGNS / f"{digit}.jpg")), cv2.COLOR_BGR2RGB)
    rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
    tiles = sheet.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    filled = tiles.reshape(len(tiles), -1).mean(axis=1) > 8
    return Sheet(tiles[: int(filled.nonzero()[0].max()) + 1])


def read_backgrounds(path: Path) -> list[Background]:
    """Read a CSV with the columns ``video`` and ``source``; videos are beside it, or in ``videos/`` there."""
    place = path.parent / "videos" if (path.parent / "videos").is_dir() else path.parent
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [Background(place / row["video"], row["source"]) for row in csv.DictReader(file)]


def split_sources(backgrounds: Sequence[Background], random: np.random.Generator) -> dict[str, list[Background]]:
    """Split backgrounds by source, so that no source is in both parts."""
    sources = sorted({background.source for background in backgrounds})
    held = set(random.permutation(sources)[: max(1, round(len(sources) * VALIDATION_SHARE))].tolist())
    return {
        part: [background for background in backgrounds if (background.source in held) == (part == "val")]
        for part in PARTS
    }


@lru_cache(maxsize=256)
def read_frames(path: Path, size: int) -> Image:
    """Read every second frame of a video, at most 40, squashed to a square; uint8 [N, S, S, 3]."""
    with av.open(str(path)) as container:
        read = [frame.to_ndarray(format="rgb24") for n, frame in enumerate(container.decode(video=0)) if n % 2 == 0]
    return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in read[:40]])


def behind(frames: Image, count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return ``count`` consecutive frames from a random start, back and forth, randomly mirrored and brightened."""
    forth = np.arange(len(frames))
    round_trip = np.concatenate([forth, forth[-2:0:-1]])
    start = int(random.integers(len(round_trip)))
    chosen = frames[round_trip[(start + np.arange(count)) % len(round_trip)]].astype(np.float32)
    if random.random() < 0.5:
        chosen = chosen[:, :, ::-1]
    return np.clip(chosen * random.uniform(0.8, 1.15), 0, 255)


def draw_card(photo: Image, colour: tuple[int, int, int], side: int, random: np.random.Generator) -> tuple:
    """Draw a photograph with a coloured border, tilted; return pixels and alpha of a :class:`Card`."""
    fine = 4 * side  # drawn larger and shrunk: smooth edges
    border = round(fine * BORDER)
    canvas = np.full((fine, fine, 3), colour, np.float32) * np.float32(random.uniform(0.85, 1.05))
    inner = fine - 2 * border
    canvas[border:-border, border:-border] = cv2.resize(
        photo.astype(np.float32), (inner, inner), interpolation=cv2.INTER_LINEAR
    ) * np.float32(random.uniform(0.75, 1.1))
    mask = np.ones((fine, fine), np.float32)
    tilt = cv2.getRotationMatrix2D((fine / 2, fine / 2), random.uniform(-MAX_TILT, MAX_TILT), 0.88)
    canvas, mask = (cv2.warpAffine(layer, tilt, (fine, fine)) for layer in (canvas, mask))
    small = [cv2.resize(layer, (side, side), interpolation=cv2.INTER_AREA) for layer in (canvas, mask)]
    return np.clip(small[0], 0, 255), small[1][..., None]


def drift(frames: int, room: int, speed: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the path of a corner, [frames, 2]: straight through a square of ``room`` pixels, with reflections."""
    direction = random.uniform(0, 2 * np.pi)
    step = speed * random.uniform(0.5, 1.5) * room / frames * np.array([np.sin(direction), np.cos(direction)])
    unfolded = random.uniform(0, room, 2) + np.arange(frames)[:, None] * step
    folded = np.abs((unfolded + room) % (2 * room) - room)
    return np.round(folded).astype(np.int64)


def place_cards(task: Task, clip: Clip, random: np.random.Generator) -> list[Card]:
    """Return a clip's cards, the yellow one first, on paths that keep them apart."""
    digits = [clip.label, *random.choice(task.digits, task.distractors).tolist()]
    colours = [YELLOW, *(OTHER_COLOURS[n] for n in random.permutation(len(OTHER_COLOURS))[: task.distractors])]
    cards: list[Card] = []
    for digit, colour in zip(digits, colours, strict=True):
        photos = read_sheet(digit).of_part(clip.part)
        pixels, alpha = draw_card(photos[int(random.integers(len(photos)))], colour, task.card, random)
        length = max(1, round(task.frames * task.shown))
        first = int(random.integers(task.frames - length + 1))
        for _ in range(300):
            places = drift(task.frames, task.size - task.card, task.speed, random)
            if all(np.abs(places - other.places).max(axis=1).min() >= task.card for other in cards):
                break
        cards.append(Card(pixels, alpha, places, first, first + length))
    return cards


def compose(task: Task, clip: Clip) -> tuple[Image, Card]:
    """Return a clip's frames, uint8 [frames, S, S, 3], and its yellow card, determined by seed and number."""
    random = np.random.default_rng((task.seed, PARTS.index(clip.part), clip.number))
    frames = behind(read_frames(clip.background.path, task.size), task.frames, random)
    cards = place_cards(task, clip, random)
    for card in reversed(cards):  # the yellow one on top
        for number in range(card.first, card.last):
            y, x = card.places[number]
            window = frames[number, y : y + task.card, x : x + task.card]
            window += card.alpha * (card.pixels - window)
    frames += random.normal(0, 3, (1, task.size, task.size, 3)).astype(np.float32)
    return np.clip(frames, 0, 255).astype(np.uint8), cards[0]


def close_up(task: Task, frames: Image, card: Card, random: np.random.Generator) -> Image:
    """Crop the surroundings of the yellow card in some of its frames; uint8 [near_frames, near, near, 3]."""
    chosen = np.sort(random.choice(np.arange(card.first, card.last), task.near_frames, replace=True))
    cut = []
    for number in chosen:
        slack = task.near - task.card
        corner = card.places[number] - random.integers(0, slack + 1, 2)
        y, x = np.clip(corner, 0, task.size - task.near)
        cut.append(frames[number, y : y + task.near, x : x + task.near])
    return np.stack(cut)


def write_video(path: Path, frames: Image, fps: int, quality: int = 17) -> None:
    """Encode frames as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(quality), "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())


def make_clip(task: Task, out: Path, clip: Clip) -> list[tuple[str, int, float, float]]:
    """Write a clip and its close-up; return the places of the yellow card's centre: (clip, frame, x, y)."""
    frames, card = compose(task, clip)
    random = np.random.default_rng((task.seed, 2 + PARTS.index(clip.part), clip.number))
    write_video(out / "videos" / f"{clip.name}.mp4", frames, task.fps)
    write_video(out / "near" / f"{clip.name}.mp4", close_up(task, frames, card, random), task.fps)
    half = task.card / 2
    return [
        (clip.name, n, float(card.places[n, 1] + half), float(card.places[n, 0] + half))
        for n in range(card.first, card.last)
    ]


def plan(task: Task, backgrounds: Sequence[Background]) -> list[Clip]:
    """Return the clips to create: classes in turn, backgrounds at random."""
    random = np.random.default_rng(task.seed)
    of_part = split_sources(backgrounds, random)
    clips = []
    for part in PARTS:
        for number in range(getattr(task, part)):
            chosen = of_part[part][int(random.integers(len(of_part[part])))]
            clips.append(Clip(part, number, task.digits[number % len(task.digits)], chosen))
    return clips


def make(task: Task, backgrounds: Path, out: Path, workers: int = 1) -> None:
    """Write ``train.csv``, ``val.csv``, ``near_train.csv``, ``near_val.csv`` (video, class, source) and ``truth.csv``.

    The same task gives the same clips for any number of workers; existing clips of the same task are kept.
    """
    mark, content = out / "task.txt", repr((asdict(task), str(backgrounds.resolve())))
    if mark.is_file() and mark.read_text() == content:
        return
    for folder in ("videos", "near"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    clips = plan(task, read_backgrounds(backgrounds))
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("forkserver")) as pool:
            truths = list(pool.map(partial(make_clip, task, out), clips, chunksize=8))
    else:
        truths = [make_clip(task, out, clip) for clip in clips]
    for part in PARTS:
        for name, folder in ((part, "videos"), (f"near_{part}", "near")):
            rows = [
                (f"{folder}/{clip.name}.mp4", f"digit{clip.label}", clip.background.source)
                for clip in clips
                if clip.part == part
            ]
            _write_csv(out / f"{name}.csv", ("video", "class", "source"), rows)
    _write_csv(out / "truth.csv", ("clip", "frame", "x", "y"), [place for truth in truths for place in truth])
    mark.write_text(content)


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
