"""Image files: reading them as RGB, within limits of size and time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adafocus_edge.errors import ShortageError, SourceError

if TYPE_CHECKING:
    from numpy.typing import NDArray


# read_image raises an error of one line instead, from a smaller size on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LARGEST_IMAGE = 80_000_000
"""Maximum number of pixels of a frame (8K video has 33 million)."""
MAX_SCANS = 100
"""Maximum passes of a JPEG over its whole picture: progressive files have about ten. Each takes time, but few bytes."""
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff .ppm".split())


def has_too_many_scans(jpeg: bytes) -> bool:
    """Return whether a JPEG has more than :data:`MAX_SCANS` scans. Compressed data never contains their marker."""
    return jpeg.count(b"\xff\xda") > MAX_SCANS


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read one image as RGB, uint8 [H, W, 3].

    Raises:
        SourceError: it does not exist, is not an image, is damaged, or is too large; names the file.
        ShortageError: this machine is short of memory or open files.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise SourceError(
                    f"{path}: an image of {image.width} x {image.height} pixels is too large: at most {LARGEST_IMAGE} "
                    "pixels"
                )
            if image.format in ("JPEG", "MPO") and has_too_many_scans(path.read_bytes()):
                raise SourceError(f"{path}: a JPEG with more than {MAX_SCANS} scans: save it again")
            if image.mode.startswith("I;16"):  # Pillow would clip values at 255
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.stack([grey] * 3, axis=2)
            if image.mode in ("I", "F"):
                raise SourceError(f"{path}: an image with 32 bits per channel: save it with 8 bits per channel")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SourceError(f"{path}: not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        ShortageError.check(str(path), error)
        raise SourceError(f"{path}: the image is damaged or cut short ({error})") from None
