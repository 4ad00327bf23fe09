"""Conversion of samples of any depth, as Pillow loads them, to 8-bit RGB by the rules "rgb8-v1".

An image is converted in bands of rows, so that intermediate arrays take little memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from PIL import Image, ImageFile

from featurestore.errors import ImageError
from pipelines.images.containers import Container

BAND_PIXELS = 2**22  # converted at a time

Band = tuple[int, int]  # the first row, and the one after the last
Convert = Callable[[Band], Image.Image]
_SWAPPED = {";16L": ";16B", ";16B": ";16L", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
_DEEP = ("RGB", "RGBX", "RGBA", "CMYK")  # raw modes of which Pillow can unpack the high or the low bytes


def to_rgb(image: ImageFile.ImageFile, container: Container, reopen: Callable[[], ImageFile.ImageFile]) -> Image.Image:
    """Load an image and convert it to 8-bit RGB.

    Args:
        image: opened, not loaded.
        container: what its file says about its samples.
        reopen: opens it once more, for the low bytes of 16-bit colours where they are needed.

    Raises:
        ImageError: the samples are NaN or infinite.
        Exception: whatever Pillow raises as it loads.
    """
    low = _low_bytes(image, container, reopen)
    twelve = rawmode(image) == "I;12"
    signed = image.mode == "L" and _sample_format(image) == 2
    image.load()
    if image.mode == "RGB" and not image.has_transparency_data and low is None:
        return image
    rows = max(1, BAND_PIXELS // image.width)
    bands = [(top, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    if image.mode in ("I", "F") or signed:
        convert = _scaled(image, bands, container.inverted)
    elif low is not None or image.mode.startswith("I;16"):
        convert = _narrowed(image, low, bands, container._replace(bits=12) if twelve else container, sure=twelve)
    else:
        convert = partial(_band_to_rgb, image)
    if len(bands) == 1:
        return convert(bands[0])
    whole = Image.new("RGB", image.size)
    for band in bands:
        whole.paste(convert(band), (0, band[0]))
    return whole


def _rows(image: Image.Image, band: Band) -> Image.Image:
    return image if band == (0, image.height) else image.crop((0, band[0], image.width, band[1]))


def _band_to_rgb(image: Image.Image, band: Band) -> Image.Image:
    return _over_white(_rows(image, band))


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


# --- 16 bits


def rawmode(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name for the layout of the samples in the file; "" if it has none or the image is loaded."""
    args = image.tile[0].args if image.tile else ""
    found = args[0] if isinstance(args, tuple) and args else args
    return found if isinstance(found, str) else ""


def _low_bytes(
    image: ImageFile.ImageFile, container: Container, reopen: Callable[[], ImageFile.ImageFile]
) -> Image.Image | None:
    """Return the low bytes of 16-bit colours, of which Pillow loads the high ones; None if they are not needed."""
    name, swapped = rawmode(image)[:-4], _SWAPPED.get(rawmode(image)[-4:])
    if swapped is None or name not in _DEEP or not (container.bits < 16 or "transparency" in image.info):
        return None
    other = reopen()
    other.tile = [
        tile._replace(args=(name + swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else name + swapped)
        for tile in other.tile
    ]
    return other


def _narrowed(
    image: ImageFile.ImageFile, low: Image.Image | None, bands: list[Band], container: Container, sure: bool
) -> Convert:
    """Return the conversion of 16-bit samples to the high 8 of the bits that are used.

    The transparent colour is compared in all 16 bits.
    """

    def values(band: Band) -> np.ndarray:
        high = np.asarray(_rows(image, band))
        return high if low is None else high.astype(np.uint16) << 8 | np.asarray(_rows(low, band))

    clear = image.info.pop("transparency", None)
    shift = 8
    if sure or _is_unscaled(map(values, bands), container.bits, image.format == "PNG"):
        shift = container.bits - 8

    def convert(band: Band) -> Image.Image:
        deep = values(band)
        levels = (deep >> shift).astype(np.uint8)
        if container.inverted:
            levels = 255 - levels
        if clear is not None:
            levels[deep == clear if deep.ndim == 2 else (deep == clear).all(axis=2)] = 255
        return _over_white(Image.fromarray(levels, "L" if deep.ndim == 2 else image.mode))

    return convert


def _is_unscaled(parts: Iterable[np.ndarray], bits: int, png: bool) -> bool:
    """Return whether samples of 16 bits use only the lower ``bits``, as their file says.

    PNG demands that samples are scaled up to 16 bits; sBIT only says from how many. So samples of a PNG must also show
    that they were not scaled: at least one has a bit set that scaling leaves unset in values this small.
    """
    if not 8 <= bits < 16:
        return False
    used = 0
    for part in parts:
        used |= int(np.bitwise_or.reduce(part, axis=None))
    return used < 2**bits and not (png and used & (2 ** (16 - bits) - 2) == 0)


# --- 32 bits, signed and floating-point numbers


def _sample_format(image: Image.Image) -> int:
    return int(getattr(image, "tag_v2", {}).get(339, (1,))[0])


def _scaled(image: Image.Image, bands: list[Band], inverted: bool) -> Convert:
    """Return the conversion of 32-bit or signed integers or floats to 0..255, by ``decoder``'s rule."""
    unsigned = hasattr(image, "tag_v2") and _sample_format(image) == 1

    def values(band: Band) -> np.ndarray:
        array = np.asarray(_rows(image, band))
        # Pillow's mode I is signed, its mode L unsigned.
        return (
            array.view(np.uint32)
            if unsigned and image.mode == "I"
            else array.view(np.int8)
            if image.mode == "L"
            else array
        )

    limits = [(float(part.min()), float(part.max())) for part in map(values, bands)]
    low, high = np.min(limits, axis=0)[0], np.max(limits, axis=0)[1]  # NaN if any value is
    if not np.isfinite([low, high]).all():
        raise ImageError("unsupported", "The image holds NaN or infinity: replace them by numbers.")
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0.0, top

    def convert(band: Band) -> Image.Image:
        levels = np.rint((values(band).astype(np.float64) - low) * (255 / ((high - low) or 1.0)))
        return Image.fromarray((255 - levels if inverted else levels).astype(np.uint8)).convert("RGB")

    return convert
