"""The spec of a network that users bring: how pixels become its input, and which output is its features.

It is a TOML file beside the model:

    size = 224                       # pixels, the side of the square input
    layout = "NCHW"                  # or "NHWC"
    resize = "crop"                  # squash, crop (the shortest side, then the centre), center (a square, cut
                                     # before it is resized) or pad (the longest side, then a colour)
    crop_ratio = 0.875               # the square's side as a share of the resized side: the centre is cut
    interpolation = "bicubic"        # nearest, bilinear, bicubic or lanczos
    scale = 0.00392156862745098      # the input is (pixel * scale - mean) / std, of pixels from 0 to 255
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    output = "last_hidden_state"     # a tensor's name
    pooling = "cls"                  # avg, max or none of positions; cls, avg, max, cls+avg or none of tokens

    [reference]                      # a picture, and its vector as the network's home framework computes it
    image = "ref.png"
    vector = "ref.npy"

Further keys: ``channels`` ("RGB" or "BGR"), ``antialias`` (true or false), ``input`` (its name, where there are
several), ``output_layout`` (where the output has another layout than the input), ``prefix_tokens`` (those before the
image's own, which avg and max leave out), ``l2`` (true divides a vector by its length) and ``fill`` (of pad, red, green
and blue of 0 to 255).
``from = "preprocessor_config.json"`` takes what ships with the network, ``from = "keras:ResNet50"`` the rule of a model
of keras.applications, see ``pipelines.backbones.shipped``; keys beside it count more. What a spec leaves out has the
default of ``ModelSpec``, and is told to the user.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from featurestore.spec import Preprocessing
from featurestore.storage.files import read_given
from heads.base import is_number
from pipelines.backbones import MAX_INPUT_SIZE, MIN_INPUT_SIZE, shipped
from pipelines.backbones.base import Normalization
from pipelines.backbones.pooling import POSITIONS, TOKENS, Pooling

MAX_BYTES = 2**16  # of a spec
MAX_PREFIX = 1000  # tokens
LONGEST = 500  # characters of a name
CHANNELS, LAYOUTS = ("RGB", "BGR"), ("NCHW", "NHWC")
# What featurestore.spec.CROPS calls them:
RESIZES = {"squash": "squash", "crop": "shortest", "center": "center", "pad": "pad"}
INTERPOLATIONS = {
    ("nearest", True): "pillow-nearest",
    ("nearest", False): "pillow-nearest",
    ("bilinear", True): "pillow-bilinear",
    ("bilinear", False): "plain-bilinear",
    ("bicubic", True): "pillow-bicubic",
    ("bicubic", False): "plain-bicubic",
    ("lanczos", True): "pillow-lanczos",
}  # by interpolation and antialias: what featurestore.spec.RESIZES calls them


@dataclass(frozen=True)
class Reference:
    """A picture's file, and a file (.npy) with its vector (d,)."""

    image: Path
    vector: Path


@dataclass(frozen=True)
class ModelSpec:
    """The values of a spec; see the module for their meaning.

    ``input`` and ``output`` may be "" where there is only one.
    """

    size: int
    layout: str
    resize: str = "squash"
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    output: str = ""
    pooling: str = "avg"
    channels: str = "RGB"
    antialias: bool = True
    crop_ratio: float = 1.0
    input: str = ""
    output_layout: str = ""
    prefix_tokens: int = 0
    l2: bool = False
    fill: tuple[int, int, int] = (0, 0, 0)

    def check(self) -> None:
        """Raise UsageError for a value that no network can have."""

        def expect(good: bool, key: str, expected: str) -> None:
            if not good:
                raise UsageError(f"Expected: {key} = {expected}. Got: {getattr(self, key)!r}.")

        expect(
            _is_count(self.size, MIN_INPUT_SIZE, MAX_INPUT_SIZE),
            "size",
            f"pixels, {MIN_INPUT_SIZE} to {MAX_INPUT_SIZE}",
        )
        for key, choices in (
            ("layout", LAYOUTS),
            ("output_layout", ("", *LAYOUTS)),
            ("channels", CHANNELS),
            ("resize", tuple(RESIZES)),
            ("interpolation", tuple(dict.fromkeys(name for name, _ in INTERPOLATIONS))),
            ("pooling", tuple(dict.fromkeys(POSITIONS + TOKENS))),
        ):
            expect(getattr(self, key) in choices, key, " or ".join(f'"{choice}"' for choice in choices))
        for key in ("antialias", "l2"):
            expect(isinstance(getattr(self, key), bool), key, "true or false")
        expect((self.interpolation, self.antialias) in INTERPOLATIONS, "antialias", f"true with {self.interpolation}")
        expect(is_number(self.scale) and self.scale > 0, "scale", "a number above 0")
        for key in ("mean", "std"):
            value = getattr(self, key)
            expect(isinstance(value, tuple) and len(value) == 3 and all(map(is_number, value)), key, "three numbers")
        expect(all(value > 0 for value in self.std), "std", "three numbers above 0")
        expect(is_number(self.crop_ratio) and 0.1 <= self.crop_ratio <= 1, "crop_ratio", "a number from 0.1 to 1")
        expect(self.crop_ratio == 1 or self.resize != "center", "crop_ratio", '1 with resize = "center"')
        good = isinstance(self.fill, tuple) and len(self.fill) == 3 and all(_is_count(one, 0, 255) for one in self.fill)
        expect(good, "fill", "red, green and blue, each 0 to 255")
        expect(not any(self.fill) or self.resize == "pad", "fill", '[0, 0, 0] unless resize = "pad"')
        for key in ("input", "output"):
            expect(isinstance(getattr(self, key), str) and len(getattr(self, key)) < LONGEST, key, "a tensor's name")
        expect(_is_count(self.prefix_tokens, 0, MAX_PREFIX), "prefix_tokens", f"how many, 0 to {MAX_PREFIX}")

    def normalization(self) -> Normalization:
        """Return how pixels become the input: ``(pixel * scale - mean) / std`` as ``(pixel - mean') / std'``."""
        mean, std = (tuple(value / self.scale for value in values) for values in (self.mean, self.std))
        return Normalization(mean, std, self.channels.lower())  # type: ignore[arg-type]

    def preprocessing(self) -> Preprocessing:
        """Return how a file's bytes become the input."""
        return Preprocessing(
            self.size,
            str(self.normalization()),
            RESIZES[self.resize],
            INTERPOLATIONS[self.interpolation, self.antialias],
            crop_ratio=float(self.crop_ratio),
            fill="#{:02x}{:02x}{:02x}".format(*self.fill),
        )

    def pooled(self) -> Pooling:
        """Return how the output becomes one vector per image."""
        return Pooling(self.pooling, self.prefix_tokens, self.l2, self.output_layout)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of values as TOML or JSON has them.

        Raises:
            UsageError: a key is unknown or missing, or a value is impossible.
        """
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(told.keys() - known.keys()):
            raise UsageError(f"Expected: keys {', '.join(known)}. Got: {unknown[0]!r}.")
        missing = [name for name, field in known.items() if field.default is MISSING and name not in told]
        if missing:
            raise UsageError(f"Expected: {', '.join(missing)}, which cannot be guessed. Got: a spec without.")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
        made = cls(**values)
        made.check()
        return made


def read(path: Path) -> tuple[ModelSpec, Reference | None]:
    """Read a spec, and its reference if it has one.

    Raises:
        UsageError: the file cannot be read, or see ``ModelSpec.of``; or files of the reference are missing.
    """
    told = read_given(path, "--spec, a TOML file", MAX_BYTES, lambda data: tomllib.loads(data.decode()))
    reference, ships = told.pop("reference", None), told.pop("from", None)
    if ships is not None:
        told = shipped.read(str(ships), path.parent) | told
    try:
        _check_said(told, ships)
        return ModelSpec.of(told), None if reference is None else _reference(reference, path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _check_said(told: Mapping[str, Any], ships: Any) -> None:
    """Raise UsageError for values that what ships with a network leaves open."""
    left = {key: why for key, why in told.items() if isinstance(why, shipped.Open)}
    if left:
        whys = "; ".join(f"{key}: {why}" for key, why in left.items())
        raise UsageError(f"Expected: {', '.join(left)} beside from = {ships!r} ({whys}). Got: a spec without.")


def _reference(told: Any, folder: Path) -> Reference:
    names = ("image", "vector")
    if (
        not isinstance(told, dict)
        or told.keys() != set(names)
        or not all(isinstance(told[name], str) for name in names)
    ):
        raise UsageError(f"Expected: [reference] with image and vector, the names of two files. Got: {told!r}.")
    found = Reference(*(folder / told[name] for name in names))
    for file in (found.image, found.vector):
        if not file.is_file():
            raise UsageError(f"Expected: the reference {file}. Got: no such file.")
    return found


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
