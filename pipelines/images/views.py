"""Random views of an image: rotation, shifts, shear, zoom and flips; each view is drawn from a seed of its own.

The parameters mean the same as in Keras's ``ImageDataGenerator``. Pillow moves the pixels in one affine step, with
bilinear interpolation.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from PIL import Image

from pipelines.images.augmentation import Augmentation

_PADDING: dict[str, Literal["edge", "symmetric", "constant"]] = {
    "nearest": "edge",
    "reflect": "symmetric",
    "black": "constant",
}


def random_view(pixels: np.ndarray, augmentation: Augmentation, key: bytes, view: int) -> np.ndarray:
    """Return one random view of an image; the same arguments give the same view.

    Args:
        pixels: uint8 (s, s, 3).
        augmentation: how far the view may differ from the image.
        key: the content's sha256; with ``view`` and the seed it decides all draws.
        view: the number of the view; in fine-tuning, the number of the epoch.

    Returns:
        uint8 (s, s, 3).

    Example:
        >>> pixels = np.zeros((32, 32, 3), np.uint8)
        >>> random_view(pixels, Augmentation(rotation=20), b"key", view=0).shape
        (32, 32, 3)
    """
    digest = hashlib.blake2b(key + b"%d %d" % (augmentation.seed, view), digest_size=16).digest()
    draw = np.random.default_rng(int.from_bytes(digest, "little"))
    side = pixels.shape[0]
    matrix = _matrix(draw, augmentation, side)
    pad = _margin(matrix, side)
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode=_PADDING[augmentation.fill]) if pad else pixels
    to_padded = np.array([[1, 0, pad], [0, 1, pad], [0, 0, 1]]) @ matrix
    image = Image.fromarray(padded)
    coefficients = tuple(float(x) for x in to_padded[:2].reshape(-1))
    return np.asarray(image.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))


def _matrix(draw: np.random.Generator, a: Augmentation, side: int) -> np.ndarray:
    """Return the (3, 3) matrix from a view's pixels to the image's; even parameters without effect are drawn."""
    angle, shear = np.deg2rad(draw.uniform(-1, 1, 2) * (a.rotation, a.shear))
    shift_x, shift_y = draw.uniform(-1, 1, 2) * a.shift * side
    zoom_x, zoom_y = 1 + draw.uniform(-1, 1, 2) * a.zoom
    flip_x, flip_y = draw.random(2) < 0.5
    rotate = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    sheared = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    scale = np.diag([zoom_x, zoom_y, 1.0])
    flips = np.diag(
        [
            -1.0 if flip_x and a.flip in ("horizontal", "both") else 1.0,
            -1.0 if flip_y and a.flip in ("vertical", "both") else 1.0,
            1.0,
        ]
    )
    centre = side / 2  # Pillow counts from the corners of pixels
    there = np.array([[1, 0, centre], [0, 1, centre], [0, 0, 1]])
    back = np.array([[1, 0, -centre], [0, 1, -centre], [0, 0, 1]])
    shift = np.array([[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]])
    return shift @ there @ rotate @ sheared @ scale @ flips @ back


def _margin(matrix: np.ndarray, side: int) -> int:
    """Return how many pixels of border the view needs around the image."""
    corners = matrix @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]], float)
    beyond = max(-corners[:2].min(), corners[:2].max() - side, 0)
    return int(np.ceil(beyond)) + 1 if beyond > 1e-6 else 0
