"""What ships with a network, read as values of a spec: see ``SOURCES``.

Only what a file says is taken. Where its meaning depends on code that is elsewhere, or it leaves something open, it is
asked for by name.

Sources: ``pretrained_cfg`` and ``create_transform`` of timm; ``BaseImageProcessor`` of transformers, whose numbers for
interpolation are Pillow's; ``ImageConverter`` of KerasHub; ``ImageModel`` of OpenVINO Model API, which Geti writes for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from featurestore.errors import UsageError
from featurestore.spec import crop_ratio
from featurestore.storage.files import read_given
from pipelines.backbones.applications import APPLICATIONS
from pipelines.backbones.base import near

MAX_BYTES = 2**20
MAX_GRAPH_BYTES = 2**26  # of OpenVINO's XML, without its weights
KERAS = "keras:"  # before the name of a model of keras.applications
KNOWN = "timm's config.json, Hugging Face's preprocessor_config.json, or KerasHub's preprocessor.json"
TIMM_CROPS = {"border": "pad", "center": "crop", "squash": "squash"}  # what a spec calls them
PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Of KerasHub; its "bicubic" and "lanczos3" are Pillow's with antialiasing, and nobody's without.
KERAS_HUB = {
    ("nearest", False): "nearest",
    ("nearest", True): "nearest",
    ("bilinear", False): "bilinear",
    ("bilinear", True): "bilinear",
    ("bicubic", True): "bicubic",
    ("lanczos3", True): "lanczos",
}
KERAS_HUB_KEYS = {
    *("image_size", "scale", "offset", "interpolation", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio"),
    *("bounding_box_format", "data_format", "dtype", "name", "trainable"),
}
MODEL_API = {"standard": "squash", "crop": "center", "fit_to_window_letterbox": "pad"}
MODEL_API_MODES = {"LINEAR": "bilinear", "CUBIC": "bicubic", "NEAREST": "nearest"}


class Open(str):
    """In place of a value: why a file leaves it open, as an error says it."""

    __slots__ = ()


def read(source: str, folder: Path) -> dict[str, Any]:
    """Return the values of a spec that a file or a rule says; ``Open`` for those that have to be said beside it.

    Args:
        source: a file, or "keras:NAME".
        folder: where the file lies.

    Raises:
        UsageError: the file cannot be read, is another one, or says something that no spec can.
    """
    if source.startswith(KERAS):
        return _of_applications(source.removeprefix(KERAS))
    path = folder / source
    if path.suffix == ".xml":
        info = read_given(path, "OpenVINO's .xml", MAX_GRAPH_BYTES, _model_info)
        try:
            return _of_model_api(*info)
        except (KeyError, ValueError) as error:
            raise UsageError(f"{path}: Expected: model_info as OpenVINO Model API writes it. Got: {error}.") from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    return values_of(read_given(path, KNOWN, MAX_BYTES, json.loads), str(path))


def values_of(told: Any, name: str) -> dict[str, Any]:
    """Return the values of a spec that a file of JSON says, as it was read.

    Args:
        told: what the file holds.
        name: what errors call it.

    Raises:
        UsageError: it is another file, or says something that no spec can.
    """
    for is_kind, values in KINDS:
        if isinstance(told, dict) and is_kind(told):
            try:
                return values(told)
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                raise UsageError(f"{name}: Expected: {KNOWN}. Got: one without a usable {error}.") from error
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from error
    raise UsageError(f"Expected: {KNOWN}. Got: {name}, which is none of them.")


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


# -- Keras


def _of_applications(name: str) -> dict[str, Any]:
    """Return what keras.applications does with pixels; how a picture becomes the square, it leaves to its users."""
    known = {one.name.lower(): one for one in APPLICATIONS}
    if name.lower() not in known:
        raise UsageError(f"keras.applications has no {name!r}{near(name, [one.name for one in APPLICATIONS])}.")
    one = known[name.lower()]
    resize = Open("keras.applications leaves it to its users")
    return {
        "size": one.input_size,
        "layout": Open("that of the network's file"),
        "channels": one.normalization.channels.upper(),
        "resize": resize,
        "interpolation": resize,
        "scale": 1.0,
        "mean": list(one.normalization.mean),
        "std": list(one.normalization.std),
    }


def _of_keras_hub(told: Mapping[str, Any]) -> dict[str, Any]:
    config = told["config"]
    config = config["image_converter"]["config"] if "image_converter" in config else config
    if unknown := sorted(config.keys() - KERAS_HUB_KEYS):
        raise UsageError(f"Expected: keys {', '.join(sorted(KERAS_HUB_KEYS))}. Got: {unknown[0]!r}.")
    how = (config["interpolation"], config["antialias"])
    if how not in KERAS_HUB:
        raise UsageError(
            f"Expected: interpolation nearest or bilinear, or bicubic or lanczos3 with antialias. Got: {how}."
        )
    size = config["image_size"]
    resize = "center" if config["crop_to_aspect_ratio"] else "pad" if config["pad_to_aspect_ratio"] else "squash"
    scale, offset = (
        _thrice(default if config[key] is None else config[key]) for key, default in (("scale", 1), ("offset", 0))
    )
    return {
        "size": Open("image_size is not set") if size is None else _square({"height": size[0], "width": size[1]}),
        "layout": Open("that of the network's file"),
        "channels": "RGB",
        "resize": resize,
        "interpolation": KERAS_HUB[how],
        "antialias": how[1] or how[0] == "nearest",
        "scale": 1.0,
        "mean": [-b / a for a, b in zip(scale, offset, strict=True)],
        "std": [1 / a for a in scale],
    }


def _thrice(value: Any) -> list[float]:
    """Return a value per channel."""
    return [float(one) for one in value] if isinstance(value, list) else [float(value)] * 3


# -- OpenVINO's IR


def _model_info(data: bytes) -> tuple[dict[str, str], list[str]]:
    """Return what ``rt_info/model_info`` says, {} if it is not there, and the sides of the first input."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("a document with entities")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(error) from error
    info = root.find("rt_info/model_info")
    shape = root.find("layers/layer[@type='Parameter']/data")
    told = {} if info is None else {one.tag: one.get("value", "") for one in info}
    return told, [] if shape is None else [side.strip() for side in shape.get("shape", "").split(",")]


def _of_model_api(info: Mapping[str, str], shape: list[str]) -> dict[str, Any]:
    """Return what OpenVINO Model API would do; what a graph does itself, since it is embedded, is not done again."""
    if not info:
        raise UsageError("Expected: rt_info with model_info, as OpenVINO Model API and Geti write. Got: an IR without.")
    for key, only in (("intensity_mode", "none"), ("input_dtype", "u8")):
        if info.get(key, only) != only:
            raise UsageError(f"Expected: {key} {only}. Got: {info[key]!r}.")
    resize, mode = info.get("resize_type", "standard"), info.get("interpolation_mode", "LINEAR")
    if resize not in MODEL_API or mode not in MODEL_API_MODES:
        raise UsageError(
            f"Expected: resize_type {', '.join(MODEL_API)} and interpolation_mode {', '.join(MODEL_API_MODES)}. "
            f"Got: {resize!r} and {mode!r}."
        )
    embedded, reversed_ = (
        _is_true(info.get("embedded_processing", "")),
        _is_true(info.get("reverse_input_channels", "")),
    )
    mean, std = (_values(info.get(key, ""), default) for key, default in (("mean_values", 0), ("scale_values", 1)))
    turned = ", turned, as reverse_input_channels is set" if reversed_ and not embedded else ""
    return {
        **_input(info, shape, embedded),
        "channels": Open(f"that of the pictures that were handed to Model API{turned}"),
        "resize": MODEL_API[resize],
        "interpolation": MODEL_API_MODES[mode],
        "antialias": mode == "NEAREST",
        "scale": 1.0,
        "mean": [0.0] * 3 if embedded else mean,
        "std": [1.0] * 3 if embedded else std,
        **({"fill": [int(info.get("pad_value", 0))] * 3} if MODEL_API[resize] == "pad" else {}),
    }


def _input(info: Mapping[str, str], shape: list[str], embedded: bool) -> dict[str, Any]:
    """Return size and layout: of the graph's input, or what it was before a resize was embedded in the graph."""
    places = [place for place, side in enumerate(shape) if place and side == "3"]
    if len(shape) != 4 or len(places) != 1 or places[0] == 2:
        return dict.fromkeys(("size", "layout"), Open("the shape of the input does not tell"))
    sides = [info.get(key, "") for key in ("orig_height", "orig_width")] if embedded else shape[1:]
    sides = [side for side in sides if side != "3"]
    static = all(side.isdigit() for side in sides)
    size = _square({"height": int(sides[0]), "width": int(sides[1])}) if static else Open("the input may have any")
    return {"size": size, "layout": "NCHW" if places[0] == 1 else "NHWC"}


def _is_true(text: str) -> bool:
    if text not in ("True", "true", "YES", "1", "False", "false", "NO", "0", ""):
        raise ValueError(f"{text!r} for true or false")
    return text in ("True", "true", "YES", "1")


def _values(text: str, default: float) -> list[float]:
    """Return three numbers that stand behind one another, or one that counts for all channels."""
    found = [float(one) for one in text.replace(",", " ").split()] or [float(default)]
    if len(found) not in (1, 3):
        raise ValueError(f"{len(found)} numbers for three channels")
    return found * 3 if len(found) == 1 else found


KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], dict[str, Any]]], ...] = (
    (lambda told: "image_mean" in told or "image_processor_type" in told, _of_transformers),
    (lambda told: "pretrained_cfg" in told or "crop_pct" in told, _of_timm),
    (lambda told: "class_name" in told and isinstance(told.get("config"), dict), _of_keras_hub),
)
