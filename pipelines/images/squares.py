"""Squares: how a decoded picture of any shape becomes what the backbone sees.

The crop, one of ``featurestore.spec.CROPS``:

* "squash" resizes both sides to ``floor(input_size / crop_ratio)``: timm's crop_mode squash.
* "center" takes the largest central square.
* "pad" keeps the rectangle in shape, its longest side resized to that length, and adds a colour: black as Keras's
  pad_to_aspect_ratio does, or timm's crop_mode border. Of an odd margin the larger half is behind.
* "shortest" resizes the shortest side to that length and the other to ``int(shortest * long / short)``. So do timm's
  evaluation (its crop_pct is the ratio), torchvision's Resize, and the image processors of Hugging Face.

Of all but "center", the square of input_size is then cut whose first row and column are ``round((side - input_size) /
2)``, halves to even, as torchvision's CenterCrop does. Hugging Face's processors round halves down, one pixel off for
margins such as 3 and 7. A picture that would have more than MAX_RESIZED pixels is resized only where the square is cut.
That is the same to float32's precision of places, and bounds the memory for a picture of 1 × 60,000 pixels.

The resize, one of ``featurestore.spec.RESIZES``:

* "pillow-bilinear", "pillow-bicubic" (a = -0.5) and "pillow-lanczos" are antialiased: Pillow's ``resize``.
* "pillow-nearest" takes the pixel in which a new pixel's centre lies, torch's "nearest-exact". OpenCV's INTER_NEAREST
  and torch's "nearest" take the one of its corner instead.
* "plain-bilinear" and "plain-bicubic" (a = -0.75) blend the 2 or 4 nearest pixels of each axis however far the picture
  is reduced, half a pixel being the first centre and the edge repeated beyond it, rounded to nearest. So do OpenCV's
  INTER_LINEAR and INTER_CUBIC and torch's interpolate without antialiasing. Pillow's ``transform`` does not: it rounds
  down, half a level too dark on average, and its bicubic has a = -1.

A turn from the EXIF comes first. Only the squares of "pillow-bilinear" from which nothing is cut, which are older, are
turned after the resize: that is within a level of the same, as Pillow rounds between the two axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from PIL import Image

from featurestore.errors import UsageError
from featurestore.spec import BLACK, CROPS, RESIZES, Preprocessing

DECODE = "rgb8-v1"  # the rules of decoder.py
MAX_RESIZED = 2**24  # pixels of a whole picture that is resized before its centre is cut
MIN_CROP_RATIO = 0.1
BAND_ROWS = 16  # that are blended at a time, as their neighbours fit into a core's cache

_COLOUR = re.compile("#[0-9a-f]{6}")
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
    if not (1 if seen.crop == "center" else MIN_CROP_RATIO) <= seen.crop_ratio <= 1:
        raise UsageError(
            f'Expected: crop_ratio from {MIN_CROP_RATIO} to 1, and 1 with crop "center". Got: {seen.crop_ratio}.'
        )
    if not _COLOUR.fullmatch(seen.fill) or (seen.fill != BLACK and seen.crop != "pad"):
        raise UsageError(f'Expected: fill #rrggbb, and {BLACK} without crop "pad". Got: {seen.fill!r}.')


def decoded_side(seen: Preprocessing) -> int | None:
    """Return pixels; a JPEG may be decoded smaller if both sides stay at least twice that, and only whole if None.

    Without antialiasing, most pixels of a large picture play no part: those of a reduced picture are quite others.
    """
    if seen.resize == "pillow-nearest" or seen.resize in _BLENDED:
        return None
    return seen.resized_side


def square(
    image: Image.Image, turn: Image.Transpose | None, original: tuple[int, int], seen: Preprocessing
) -> Image.Image:
    """Return the square of ``input_size`` pixels that the backbone sees.

    Args:
        image: RGB, not yet turned.
        turn: that the EXIF asks for.
        original: width and height of the picture, turned; the image is smaller if it was decoded so.
        seen: its crop, crop_ratio, fill, resize and input_size count.
    """
    late = seen.resize == "pillow-bilinear" and seen.crop != "shortest" and seen.crop_ratio == 1
    if turn is not None and not late:
        image = image.transpose(turn)
    made = _square(image, original, seen)
    return made.transpose(turn) if turn is not None and late else made


def _square(image: Image.Image, original: tuple[int, int], seen: Preprocessing) -> Image.Image:
    if seen.crop == "center":
        (width, height), short = image.size, min(image.size)
        left, top = (width - short) / 2, (height - short) / 2
        return _resized(image, (seen.input_size,) * 2, seen.resize, (left, top, left + short, top + short))
    side, size = seen.input_size, _WHOLE[seen.crop](image.size, original, seen)
    left, top = (max(0, round((length - side) / 2)) for length in size)
    right, bottom = left + min(size[0], side), top + min(size[1], side)
    if size[0] * size[1] <= MAX_RESIZED and seen.resize not in _BLENDED:
        cut = _resized(image, size, seen.resize, (0, 0, *image.size)).crop((left, top, right, bottom))
    else:
        across, down = image.width, image.height
        box = (left * across / size[0], top * down / size[1], right * across / size[0], bottom * down / size[1])
        cut = _resized(image, (right - left, bottom - top), seen.resize, box)
    if cut.size == (side, side):
        return cut
    padded = Image.new("RGB", (side, side), seen.fill)
    padded.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return padded


def _squashed(given: tuple[int, int], original: tuple[int, int], seen: Preprocessing) -> tuple[int, int]:
    return seen.resized_side, seen.resized_side


def _shortest(given: tuple[int, int], original: tuple[int, int], seen: Preprocessing) -> tuple[int, int]:
    (width, height), short = original, seen.resized_side
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _longest(given: tuple[int, int], original: tuple[int, int], seen: Preprocessing) -> tuple[int, int]:
    if seen.crop_ratio == 1:  # as it always was; timm's quotient falls to the other side of some halves
        scale = seen.input_size / max(given)
        return max(1, round(given[0] * scale)), max(1, round(given[1] * scale))
    step = max(original) / seen.resized_side
    return max(1, round(original[0] / step)), max(1, round(original[1] / step))


# By crop: width and height of the resized picture; of a picture as it was decoded, its original size, and what is asked
_WHOLE: dict[str, Callable[[tuple[int, int], tuple[int, int], Preprocessing], tuple[int, int]]] = {
    "squash": _squashed,
    "shortest": _shortest,
    "pad": _longest,
}


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
