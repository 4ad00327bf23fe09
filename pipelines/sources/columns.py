"""Which columns of a manifest hold the path, label, split and group, and a column's cells as text."""

from __future__ import annotations

import re
from typing import Any

from featurestore.errors import SourceError
from pipelines.sources.listing import Listing

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

    Columns that ``listing.hints`` name come first. A column named exactly path, uri, label, split or group is preferred
    to others. Next come the same names in other case or with blanks around them, then ``PATH_NAMES`` and
    ``LABEL_NAMES``.

    Args:
        names: the columns' names, in order.
        listing: receives the chosen columns and the notes about them.
        types: the columns' Arrow types; None for text.

    Raises:
        SourceError: no column holds the path, several may hold one role, a chosen column is there twice, or there is
            none of a name in ``listing.hints``.
    """
    usable = [name for i, name in enumerate(names) if types is None or is_plain(types[i])]
    if asked := listing.hints.image_column:
        found = {"path": named_column(asked, names, listing.location)}
    elif not (found := _roles(("path", "uri"), names, listing.location)):
        if (name := _another(PATH_NAMES, usable, "path", listing.location)) is None:
            bytes_too = "" if types is None else ", or one of image bytes"
            raise SourceError(
                f"{listing.location} lists no images. Expected: a column path or uri (or file_name, image …)"
                f"{bytes_too}. Got: {listed(names)}."
            )
        found = {"path": name}
    found |= find_statements(names, usable, listing)
    listing.columns.update({role: name for role, name in found.items() if role != "uri"})
    listing.columns.setdefault("path", found.get("uri", ""))
    tell_columns(found, names, listing)
    return found


def find_statements(
    names: list[str], usable: list[str], listing: Listing, classes: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Return the name of the column for the label, the split and the group, as far as there is one.

    Args:
        names: the columns' names, in order.
        usable: those whose cells can be text.
        listing: whose hints may name the label's column.
        classes: those that hold classes, whatever they are called.

    Raises:
        SourceError: as ``find_columns``.
    """
    found = _roles(("label", "split", "group"), names, listing.location)
    if asked := listing.hints.label_column:
        return {**found, "label": named_column(asked, usable, listing.location)}
    if "label" in found:
        return found
    known = _another(LABEL_NAMES, usable, "label", listing.location)
    label = known or _only([name for name in usable if name in classes], "label", listing.location)
    return found if label is None else {"label": label, **found}


def tell_columns(found: dict[str, str], names: list[str], listing: Listing) -> None:
    """Note which columns were guessed, and that there is none for the label."""
    asked = listing.hints.image_column, listing.hints.label_column
    guessed = [f"the {role} from {name!r}" for role, name in found.items() if _key(name) != role and name not in asked]
    if guessed:
        listing.notes.append(f"Columns were taken by their names: {' and '.join(guessed)}.")
    if "label" not in found:
        listing.notes.append(f"{listing.location} has no column for the label; its columns are {listed(names)}.")


def named_column(asked: str, names: list[str], location: str) -> str:
    """Return a column that was asked for.

    Raises:
        SourceError: there is none of this name, or two.
    """
    if asked not in names:
        raise SourceError(f"{location} has no column {asked!r} that can be read. Its columns are {listed(names)}.")
    return _only([name for name in names if name == asked], asked, location) or asked


def names_pictures(names: list[str]) -> bool:
    """Return whether one of the columns may hold paths."""
    return any(_key(name) in ("path", "uri") or loose(name) in PATH_NAMES for name in names)


def _roles(roles: tuple[str, ...], names: list[str], location: str) -> dict[str, str]:
    return {role: name for role in roles if (name := _find(role, names, location)) is not None}


def _find(role: str, names: list[str], location: str) -> str | None:
    exact = [name for name in names if name == role]
    return _only(exact or [name for name in names if _key(name) == role], role, location)


def _another(others: frozenset[str], names: list[str], role: str, location: str) -> str | None:
    return _only([name for name in names if loose(name) in others], role, location)


def _only(names: list[str], role: str, location: str) -> str | None:
    if len(set(names)) > 1:
        raise SourceError(
            f"{location}: several columns may hold the {role}: {listed(names)}. Rename the right one to {role}"
            f"{', or name it with --label-column' if role == 'label' else ''}."
        )
    if len(names) > 1:
        raise SourceError(f"{location} has the column {names[0]} twice: rename one of them.")
    return names[0] if names else None


def _key(name: str) -> str:
    return name.strip().strip("\ufeff").strip().lower()


def loose(name: str) -> str:
    """Return a name in lower case, without blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", _key(name))


def listed(names: list[str]) -> str:
    """Return names for a message, the first twenty of them."""
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown} … ({len(names)} columns)" if len(names) > 20 else shown


def is_plain(kind: Any) -> bool:
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
