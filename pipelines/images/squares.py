"""Squares: how a decoded picture of any shape becomes what the backbone sees.

The crop, one of ``featurestore.spec.CROPS``:

* "squash" takes the whole rectangle, "center" its largest central square.
* "pad" keeps the whole rectangle in shape and adds black, as Keras's pad_to_aspect_ratio does.
* "shortest" resizes the whole rectangle, its shortest side to ``floor(input_size / crop_ratio)`` and the other to
  ``int(shortest * long / short)``, then cuts the square whose first row and column are ``round((side - input_size) /
  2)``, halves to even. So do timm's evaluation (its crop_pct is the ratio), torchvision's Resize and CenterCrop, and
  the fast image processors of Hugging Face. The slow ones round halves down, one pixel off for margins such as 3 and 7.
  A picture that would have more than MAX_RESIZED pixels is resized only where the square is cut. That is the same to
  float32's precision of places, and bounds the memory for a picture of 1 × 60,000 pixels.

The resize, one of ``featurestore.spec.RESIZES``:

* "pillow-bilinear", "pillow-bicubic" (a = -0.5) and "pillow-lanczos" are antialiased: Pillow's ``resize``.
* "pillow-nearest" takes the pixel in which a new pixel's centre lies, torch's "nearest-exact". OpenCV's INTER_NEAREST
  and torch's "nearest" take the one of its corner instead.
* "plain-bilinear" and "plain-bicubic" (a = -0.75) blend the 2 or 4 nearest pixels of each axis however far the picture
  is reduced, half a pixel being the first centre and the edge repeated beyond it, rounded to nearest. So do OpenCV's
  INTER_LINEAR and INTER_CUBIC and torch's interpolate without antialiasing. Pillow's ``transform`` does not: it rounds
  down, half a level too dark on average, and its bicubic has a = -1.

A turn from the EXIF comes first. Only the squares of "pillow-bilinear" other than "shortest", which are older, are
turned after the resize: that is within a level of the same, as Pillow rounds between the two axes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from featurestore.errors import UsageError
from featurestore.spec import CROPS, RESIZES, Preprocessing

DECODE = "rgb8-v1"  # the rules of decoder.py
MAX_RESIZED = 2**24  # pixels of a whole picture that is resized before its centre is cut
MIN_CROP_RATIO = 0.1
BAND_ROWS = 16  # that are blended at a time, as their neighbours fit into a core's cache

_PILLOW = {
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
}
_BLENDED = {"plain-bilinear": 2, "plain-bicubic": 4}  # pixels per axis

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def check(seen: Preprocessing) -> None:
    """Raise UsageError if there is no such preprocessing."""
    for name, value, known in (
        ("crop", seen.crop, CROPS),
        ("resize", seen.resize, RESIZES),
        ("decode", seen.decode, (DECODE,)),
    ):
        if value not in known:
            raise UsageError(f"Expected: {name} {', '.join(known)}. Got: {value!r}.")
    if not (MIN_CROP_RATIO if seen.crop == "shortest" else 1) <= seen.crop_ratio <= 1:
        raise UsageError(
            f'Expected: crop_ratio 1, or with crop "shortest" from {MIN_CROP_RATIO} to 1. Got: {seen.crop_ratio}.'
        )


def decoded_side(seen: Preprocessing) -> int | None:
    """Return pixels; a JPEG may be decoded smaller if both sides stay at least twice that, and only whole if None.

    Without antialiasing, most pixels of a large picture play no part: those of a reduced picture are quite others.
    """
    if seen.resize == "pillow-nearest" or seen.resize in _BLENDED:
        return None
    return seen.shortest_side if seen.crop == "shortest" else seen.input_size


def square(
    image: Image.Image, turn: Image.Transpose | None, original: tuple[int, int], seen: Preprocessing
) -> Image.Image:
    """Return the square of ``input_size`` pixels that the backbone sees.

    Args:
        image: RGB, not yet turned.
        turn: that the EXIF asks for.
        original: width and height of the picture, turned; the image is smaller if it was decoded so.
        seen: its crop, crop_ratio, resize and input_size count.
    """
    late = seen.resize == "pillow-bilinear" and seen.crop != "shortest"
    if turn is not None and not late:
        image = image.transpose(turn)
    made = _square(image, original, seen)
    return made.transpose(turn) if turn is not None and late else made


def _square(image: Image.Image, original: tuple[int, int], seen: Preprocessing) -> Image.Image:
    side, (width, height) = seen.input_size, image.size
    whole = (0.0, 0.0, float(width), float(height))
    if seen.crop == "shortest":
        return _shortest(image, original, seen)
    if seen.crop == "pad":
        scale = side / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        padded = Image.new("RGB", (side, side))
        padded.paste(_resized(image, inner, seen.resize, whole), ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return padded
    if seen.crop == "center":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        whole = (left, top, left + short, top + short)
    return _resized(image, (side, side), seen.resize, whole)


def _shortest(image: Image.Image, original: tuple[int, int], seen: Preprocessing) -> Image.Image:
    side, short = seen.input_size, seen.shortest_side
    width, height = original
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, top = round((width - side) / 2), round((height - side) / 2)
    if width * height <= MAX_RESIZED and seen.resize not in _BLENDED:
        resized = _resized(image, (width, height), seen.resize, (0, 0, *image.size))
        return resized.crop((left, top, left + side, top + side))
    across, down = image.width, image.height
    box = (left * across / width, top * down / height, (left + side) * across / width, (top + side) * down / height)
    return _resized(image, (side, side), seen.resize, box)


def _resized(image: Image.Image, size: tuple[int, int], resize: str, box: Box) -> Image.Image:
    """Resize what is in the box to a size; neighbours outside the box count too."""
    if resize not in _BLENDED:
        return image.resize(size, _PILLOW[resize], box)
    count, pixels = _BLENDED[resize], np.asarray(image).reshape(-1, 3)
    columns, across = _neighbours(box[0], box[2], size[0], image.width, count)
    rows, down = _neighbours(box[1], box[3], size[1], image.height, count)
    made = np.empty((size[1], size[0], 3), np.uint8)
    for start in range(0, size[1], BAND_ROWS):
        band = slice(start, start + BAND_ROWS)
        near = pixels.take(rows[band].reshape(-1, 1) * image.width + columns.reshape(-1), axis=0)
        lines = _blend(near.reshape(-1, count, near.shape[1] * 3), down[band])
        made[band] = np.rint(_blend(lines.reshape(-1, size[0], count, 3), across)).clip(0, 255)
    return Image.fromarray(made)


def _blend(near: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum what lies along the last axis but one, each by its weight (…, count): float32."""
    return sum(near[..., i, :] * weights[:, i, None] for i in range(weights.shape[1]))


def _neighbours(start: float, end: float, size: int, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of an axis that each new pixel blends, int (size, count), and their weights, float32."""
    centres = start + (np.arange(size) + 0.5) * ((end - start) / size) - 0.5
    first = np.floor(centres)
    steps = np.arange(count) - (count // 2 - 1)
    away = np.abs(centres[:, None] - first[:, None] - steps)
    if count == 2:
        weights = 1 - away
    else:  # Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.75
        a = -0.75
        inner, outer = ((a + 2) * away - (a + 3)) * away**2 + 1, (((away - 5) * away + 8) * away - 4) * a
        weights = np.where(away <= 1, inner, outer)
    return (first[:, None] + steps).clip(0, length - 1).astype(np.intp), weights.astype(np.float32)
