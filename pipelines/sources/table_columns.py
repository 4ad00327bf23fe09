"""Which column of a table holds the images, and the names of the classes in its schema."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from pyarrow import types

from featurestore.errors import SourceError
from pipelines.sources.columns import find_statements, is_plain, listed, loose, named_column, tell_columns
from pipelines.sources.listing import Listing

# Names of columns of image bytes, written without blanks, hyphens and underscores: those of Hugging Face, img2dataset
# (LAION), Spark, Kaggle and TensorFlow.
IMAGE_NAMES = frozenset(
    (
        *("bytes", "content", "file", "image", "imagebytes", "imagecontent", "imagedata", "imageencoded", "imagefile"),
        *("img", "imgbytes", "imgdata", "imgfile", "jpeg", "jpg", "photo", "picture", "png", "webp"),
    )
)
PATHS = ("path", "uri")
HUGGING_FACE = b"huggingface"  # the key of its datasets' features in a schema's metadata


def holds_images(kind: pa.DataType) -> bool:
    """Return whether cells of a type can be image bytes: binaries, or structs with a binary ``bytes`` in them."""
    if types.is_struct(kind) and kind.get_all_field_indices("bytes"):
        kind = kind.field("bytes").type
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def image_columns(schema: pa.Schema, asked: str | None, location: str) -> list[str]:
    """Return the columns that may hold image bytes, only the likeliest if one is likelier than the others.

    Hugging Face's structs count, and binaries with a name in ``IMAGE_NAMES``. Any other binary counts only if there is
    one, and no column path or uri, since many tables hold digests or vectors as binaries.

    Raises:
        SourceError: the column that was asked for is not there, or of a type that holds neither images nor paths.
    """
    if asked is not None:
        kind = schema.field(named_column(asked, schema.names, location)).type
        if not holds_images(kind) and not is_plain(kind):
            raise SourceError(f"{location}: Expected: binaries in the column {asked!r}, or paths. Got: {kind}.")
        return [asked] if holds_images(kind) else []
    able = [field.name for field in schema if holds_images(field.type)]
    likely = [name for name in able if types.is_struct(schema.field(name).type) or loose(name) in IMAGE_NAMES]
    if not likely and len(able) == 1 and not any(name in schema.names for name in PATHS):
        return able
    return ["image"] if "image" in likely else likely


def find_table_columns(schema: pa.Schema, image: str, listing: Listing) -> dict[str, str]:
    """Return the name of the column for the image, the label, the split and the group, as far as there is one.

    Raises:
        SourceError: as ``columns.find_columns``.
    """
    rest = [field for field in schema if field.name != image]
    usable = [field.name for field in rest if is_plain(field.type)]
    names = [field.name for field in rest]
    found = {"image": image} | find_statements(names, usable, listing, frozenset(class_names(schema)))
    listing.columns.update(found)
    tell_columns(found, schema.names, listing)
    return found


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes, by column: a Hugging Face ``ClassLabel`` stands for them in whole numbers."""
    try:
        features: Any = json.loads((schema.metadata or {})[HUGGING_FACE])["info"]["features"]
        told = {name: told["names"] for name, told in features.items() if _is_class_label(told)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}
    return {name: list(map(str, names)) for name, names in told.items() if isinstance(names, list)}


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def listed_types(schema: pa.Schema) -> str:
    """Return a table's columns with their types, for a message."""
    return listed([f"{field.name}: {field.type}" for field in schema])
