"""Which columns of a manifest hold the path, label, split and group, and a column's cells as text."""

from __future__ import annotations

import re
from typing import Any

from featurestore.errors import SourceError
from pipelines.sources.listing import Listing

ROLES = ("path", "uri", "label", "split", "group")
# Other accepted names, written without blanks, hyphens and underscores. They include those of Hugging Face, Keras,
# Kaggle and TensorFlow.
PATH_NAMES = frozenset(
    (
        *("file", "filename", "filenames", "filepath", "filepaths"),
        *("image", "imagefile", "imagefilename", "imagename", "imagepath"),
        *("img", "imgfile", "imgname", "imgpath"),
    )
)
LABEL_NAMES = frozenset(("category", "categoryname", "class", "classname", "labelname", "labels", "target"))


def find_columns(names: list[str], listing: Listing, types: list[Any] | None = None) -> dict[str, str]:
    """Return the name of the column to read for each role, path first; a manifest may have both a path and a uri.

    A column named exactly path, uri, label, split or group is preferred. Next come the same names in other case or with
    blanks around them, then ``PATH_NAMES`` and ``LABEL_NAMES``.

    Args:
        names: the columns' names, in order.
        listing: receives the chosen columns and the notes about them.
        types: the columns' Arrow types; None for text.

    Raises:
        SourceError: no column holds the path, several may hold one role, or a chosen column is there twice.
    """
    found = {role: name for role in ROLES if (name := _find(role, names, listing.location)) is not None}
    usable = [name for i, name in enumerate(names) if types is None or _is_plain(types[i])]
    if "path" not in found and "uri" not in found:
        if name := _another(PATH_NAMES, usable, "path", listing.location):
            found["path"] = name
        else:
            raise SourceError(
                f"{listing.location} lists no images. Expected: a column path or uri (or file_name, image …). "
                f"Got: {_listed(names)}."
            )
    if "label" not in found and (name := _another(LABEL_NAMES, usable, "label", listing.location)):
        found["label"] = name
    listing.columns.update({role: name for role, name in found.items() if role != "uri"})
    listing.columns.setdefault("path", found.get("uri", ""))
    if guessed := [f"the {role} from {name!r}" for role, name in found.items() if _key(name) != role]:
        listing.notes.append(f"Columns were taken by their names: {' and '.join(guessed)}.")
    if "label" not in found:
        listing.notes.append(f"{listing.location} has no column for the label; its columns are {_listed(names)}.")
    return {role: found[role] for role in ROLES if role in found}


def names_pictures(names: list[str]) -> bool:
    """Return whether one of the columns may hold paths."""
    return any(_key(name) in ("path", "uri") or _loose(name) in PATH_NAMES for name in names)


def _find(role: str, names: list[str], location: str) -> str | None:
    exact = [name for name in names if name == role]
    return _only(exact or [name for name in names if _key(name) == role], role, location)


def _another(others: frozenset[str], names: list[str], role: str, location: str) -> str | None:
    return _only([name for name in names if _loose(name) in others], role, location)


def _only(names: list[str], role: str, location: str) -> str | None:
    if len(set(names)) > 1:
        raise SourceError(
            f"{location}: several columns may hold the {role}: {_listed(names)}. Rename the right one to {role}."
        )
    if len(names) > 1:
        raise SourceError(f"{location} has the column {names[0]} twice: rename one of them.")
    return names[0] if names else None


def _key(name: str) -> str:
    return name.strip().strip("\ufeff").strip().lower()


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]", "", _key(name))


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown} … ({len(names)} columns)" if len(names) > 20 else shown


def _is_plain(kind: Any) -> bool:
    """Return whether a column's cells can be text.

    Lists cannot, nor the structs in which Hugging Face keeps images with their paths.
    """
    from pyarrow import types

    return not types.is_nested(kind)


def texts_of(column: Any) -> list[str | None]:
    """Return the cells of an Arrow array as text: NaN becomes None, and a whole float such as 1.0 becomes "1".

    pandas stores whole numbers with missing values as floats.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_floating(column.type):
        numbers = [None if value is None else float(value) for value in column.to_pylist()]
        return [None if value is None or value != value else _number(value) for value in numbers]
    texts: list[str | None] = column.cast(pa.string()).to_pylist()
    return texts


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
