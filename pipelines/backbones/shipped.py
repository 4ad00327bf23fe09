"""What ships with a network, read as values of a spec: timm's ``config.json``, Hugging Face's preprocessor config.

Only what such a file says is taken. Where its meaning depends on code that is elsewhere, it is asked for by name.

Sources: ``pretrained_cfg`` and ``create_transform`` of timm; ``BaseImageProcessor`` of transformers; their numbers for
interpolation are Pillow's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from featurestore.spec import crop_ratio
from featurestore.storage.files import read_given

MAX_BYTES = 2**20
KNOWN = "timm's config.json, or Hugging Face's preprocessor_config.json"
TIMM_CROPS = {"border": "pad", "center": "crop", "squash": "squash"}  # what a spec calls them
PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(path: Path) -> dict[str, Any]:
    """Return the values of a spec that a file says.

    Raises:
        UsageError: the file cannot be read, is another one, or says something that no spec can.
    """
    return values_of(read_given(path, KNOWN, MAX_BYTES, json.loads), str(path))


def values_of(told: Any, name: str) -> dict[str, Any]:
    """Return the values of a spec that a file of JSON says, as it was read.

    Args:
        told: what the file holds.
        name: what errors call it.

    Raises:
        UsageError: see ``read``.
    """
    for is_kind, values in KINDS:
        if isinstance(told, dict) and is_kind(told):
            try:
                return values(told)
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise UsageError(f"{name}: Expected: {KNOWN}. Got: one without a usable {error}.") from error
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from error
    raise UsageError(f"Expected: {KNOWN}. Got: {name}, which is neither.")


def _of_timm(told: Mapping[str, Any]) -> dict[str, Any]:
    told = told.get("pretrained_cfg", told)
    channels, height, width = told["input_size"]
    if channels != 3 or height != width:
        raise UsageError(f"Expected: a square of three channels. Got: input_size {told['input_size']}.")
    mode = told.get("crop_mode") or "center"
    if mode not in TIMM_CROPS:
        raise UsageError(f"Expected: crop_mode {', '.join(TIMM_CROPS)}. Got: {mode!r}.")
    return {
        "size": height,
        "layout": "NCHW",
        "channels": "RGB",
        "resize": TIMM_CROPS[mode],
        "crop_ratio": float(told["crop_pct"]),
        "interpolation": told["interpolation"],
        "antialias": True,
        "scale": 1 / 255,
        "mean": list(told["mean"]),
        "std": list(told["std"]),
        **({"fill": [round(255 * mean) for mean in told["mean"]]} if mode == "border" else {}),
    }


def _of_transformers(told: Mapping[str, Any]) -> dict[str, Any]:
    size, crop = told.get("size"), told.get("crop_size")
    values: dict[str, Any] = {"layout": "NCHW", "channels": "RGB", "antialias": True}
    if told.get("do_resize", True):
        values["interpolation"] = PILLOW[told["resample"]]
        if not isinstance(size, dict):
            raise UsageError(
                f"Expected: size as shortest_edge, or height and width. Got: {size!r}, whose meaning depends on code: "
                "write size, resize and crop_ratio into the spec instead."
            )
        share = told.get("crop_pct")
        values |= _sizes(size, crop if told.get("do_center_crop") else None) if share is None else _shared(size, share)
    values["scale"] = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
    if told.get("do_normalize", True):
        values |= {"mean": list(told["image_mean"]), "std": list(told["image_std"])}
    return values


def _sizes(size: Mapping[str, int], crop: Mapping[str, int] | int | None) -> dict[str, Any]:
    """Return size, resize and crop_ratio of a resize and the crop after it."""
    side = crop if isinstance(crop, int) or crop is None else _square(crop)
    if "shortest_edge" in size:
        if side is None:
            raise UsageError("Expected: a crop after the resize of the shortest edge. Got: none, so no square.")
        return {"size": side, "resize": "crop", "crop_ratio": crop_ratio(side, size["shortest_edge"])}
    whole = _square(size)
    side = whole if side is None else side
    if side > whole:
        raise UsageError(f"Expected: a crop that is no larger than the square. Got: {whole}, then {side}.")
    return {"size": side, "resize": "squash", "crop_ratio": crop_ratio(side, whole)}


def _shared(size: Mapping[str, int], share: float) -> dict[str, Any]:
    """Return size, resize and crop_ratio by ConvNeXT's rule: from 384 pixels on, nothing is cut."""
    side = size["shortest_edge"]
    if side >= 384:
        return {"size": side, "resize": "squash", "crop_ratio": 1.0}
    return {"size": side, "resize": "crop", "crop_ratio": crop_ratio(side, int(side / share))}


def _square(size: Mapping[str, int]) -> int:
    if size["height"] != size["width"]:
        raise UsageError(f"Expected: a square. Got: {dict(size)}.")
    return size["height"]


KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], dict[str, Any]]], ...] = (
    (lambda told: "image_mean" in told or "image_processor_type" in told, _of_transformers),
    (lambda told: "pretrained_cfg" in told or "crop_pct" in told, _of_timm),
)
