"""Reading image files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adafocus_edge.errors import ShortageError, SourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Told by us, in one line, and from a smaller size on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LARGEST_IMAGE = 80_000_000
"""Pixels of the largest image that is taken for a frame (8K video has 33 million)."""
MAX_SCANS = 100
"""A JPEG's passes over its whole picture: progressive ones have about ten. Each costs time, and hardly any bytes."""
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff .ppm".split())


def has_too_many_scans(jpeg: bytes) -> bool:
    """Whether a JPEG is made to take time. Its compressed data holds no such mark by chance."""
    return jpeg.count(b"\xff\xda") > MAX_SCANS


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read one image as RGB, uint8 [H, W, 3]. Raises ``SourceError`` that names the file."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise SourceError(f"{path}: {image.width} x {image.height} pixels are too many for a frame")
            if image.format in ("JPEG", "MPO") and has_too_many_scans(path.read_bytes()):
                raise SourceError(f"{path}: a JPEG of more than {MAX_SCANS} scans")
            if image.mode.startswith("I;16"):  # Pillow would clip it at 255
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.stack([grey] * 3, axis=2)
            if image.mode in ("I", "F"):
                raise SourceError(f"{path}: an image of 32 bits per pixel and channel: save it with 8")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SourceError(f"{path}: not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        ShortageError.check(str(path), error)
        raise SourceError(f"{path}: the image is damaged or cut short ({error})") from None
