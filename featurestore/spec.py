"""FeatureSpec: everything that changes the numbers of an embedding by more than float noise.

A new field of a spec or of its preprocessing has a default that means what was always done. It is left out of the
fingerprint at that default, so that the fingerprints of older sets stay.

Two features may be compared, joined or served together only if their specs have the same fingerprint.
Engine, batch size, threads and runner are left out on purpose: they do not change the numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_type_hints

from featurestore.errors import FormatError, StoreCorrupt

FORMAT_VERSION = 1
LONGEST = 10_000  # most characters of one value
VIEWS_SUFFIX = "-views"
# How a rectangle becomes a square, and how pixels are resized: the rules are in pipelines/images/squares.py.
CROPS = ("squash", "center", "pad", "shortest")
RESIZES = (
    "pillow-bilinear",
    "pillow-nearest",
    "pillow-bicubic",
    "pillow-lanczos",
    "plain-bilinear",
    "plain-bicubic",
)
BLACK = "#000000"
DTYPES = ("float16", "float32")  # of stored vectors
# These fields had defaults when the first fingerprints were made, and are part of every fingerprint.
ALWAYS_TOLD = frozenset(("crop", "resize", "decode", "precision", "dtype", "format_version"))


@dataclass(frozen=True)
class Preprocessing:
    """How a file's bytes become the backbone's input.

    Example:
        >>> seen = Preprocessing(224, "torch", crop="shortest", resize="pillow-bicubic", crop_ratio=0.9)
        >>> seen.resized_side  # is resized to this; then the central square of 224 pixels is cut
        248
    """

    input_size: int  # pixels, the side of the square the backbone sees
    normalization: str  # a name from the backbone table, e.g. "lite", "caffe", "tf"
    crop: str = "squash"  # one of CROPS
    resize: str = "pillow-bilinear"  # one of RESIZES
    decode: str = "rgb8-v1"  # the rules of pipelines/images/decoder.py
    crop_ratio: float = 1.0  # not of crop "center": input_size per pixel of ``resized_side``
    fill: str = BLACK  # of crop "pad": the colour that is added, "#rrggbb"

    @property
    def resized_side(self) -> int:
        """Pixels of the side that is resized to a given length before the square is cut, as timm counts them.

        The shortest side of crop "shortest", the longest of "pad", both of "squash".
        """
        return math.floor(self.input_size / self.crop_ratio)


@dataclass(frozen=True)
class FeatureSpec:
    """The identity of a feature set; ``fingerprint()`` is the only key besides the image's sha256.

    Example:
        >>> spec = FeatureSpec("ResNet50", "0" * 64, Preprocessing(224, "caffe"), "conv5_block3_out", "avg", 2048)
        >>> spec.set_name == f"ResNet50-{spec.fingerprint()[:8]}"
        True
    """

    backbone: str
    weights_sha256: str
    preprocessing: Preprocessing
    layer: str
    pooling: str  # "avg", "max" or "none"
    width: int  # d of the vectors
    precision: str = "f32"  # of the forward pass: "f32" or "bf16"
    dtype: str = "float16"  # of the stored vectors, one of DTYPES
    format_version: int = FORMAT_VERSION  # of specs, not of stores
    augmentation: str | None = None  # how the set's views were drawn, as JSON; None: the images themselves

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, no field at its default but those of ``ALWAYS_TOLD``."""
        values = _told(self) | {"preprocessing": _told(self.preprocessing)}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """Read the JSON that ``to_json`` returns.

        Raises:
            FormatError: the spec has a newer format version.
            StoreCorrupt: the text is not a spec.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values["format_version"] > FORMAT_VERSION:
                raise FormatError(
                    f"This feature set has format version {values['format_version']}, this penult "
                    f"reads up to {FORMAT_VERSION}: install a newer penult."
                )
            values["preprocessing"] = _checked(get_type_hints(cls)["preprocessing"](**values["preprocessing"]))
            return _checked(cls(**values))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreCorrupt(f"Expected: a feature spec as JSON. Got: {text[:80]!r} ({error}).") from error

    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def set_name(self) -> str:
        """The feature set's name in the store: the backbone's name and the first digits of the fingerprint."""
        return f"{self.backbone}-{self.fingerprint()[:8]}{VIEWS_SUFFIX if self.augmentation else ''}"

    @property
    def first_view(self) -> int:
        """Number of an image's first view in a set with this spec; view 0 is the image itself."""
        return 1 if self.augmentation else 0

    def difference(self, other: FeatureSpec) -> str:
        """Return the fields in which two specs differ, for error messages."""
        return ", ".join(
            f"{field.name}: {getattr(self, field.name)!r} against {getattr(other, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )


def crop_ratio(input_size: int, resized_side: int) -> float:
    """Return the crop ratio whose ``Preprocessing.resized_side`` is exactly this many pixels.

    The quotient itself may be one too few: ``floor(33 / (33 / 54))`` is 53.
    """
    ratio = input_size / resized_side
    return ratio if math.floor(input_size / ratio) == resized_side else math.nextafter(ratio, 0)


Part = TypeVar("Part", Preprocessing, FeatureSpec)


def _told(part: Preprocessing | FeatureSpec) -> dict[str, Any]:
    """Return the fields that are part of the fingerprint."""
    told = {field.name: (getattr(part, field.name), field.default) for field in fields(part)}
    return {name: value for name, (value, default) in told.items() if value != default or name in ALWAYS_TOLD}


def _checked(part: Part) -> Part:
    """Return a part of a spec; raise ValueError if a value has another type than its field, or is far too long."""
    for name, hint in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
            raise ValueError(f"{name} is not a value of its type")
        if isinstance(value, str) and len(value) >= LONGEST:
            raise ValueError(f"{name} is too long")
    return part
