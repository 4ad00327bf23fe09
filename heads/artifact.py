"""The storage of a head on disk: ``head.npz`` holds its arrays, ``head.json`` everything else. No pickle.

``head.json`` is written last and has the sha256 of ``head.npz``. A folder without it holds no head.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore import layout
from featurestore.errors import FormatError, HeadError, SpecMismatch, StoreCorrupt, StoreNotFound
from featurestore.storage.files import is_file, is_plain_name, make_folder, read_sealed, write_sealed
from featurestore.storage.npz import OVERHEAD, read_npz, write_npz
from heads.base import Head
from heads.registry import FAMILIES

FORMAT_VERSION = 1
ARRAYS, DESCRIPTION = layout.HEAD_ARRAYS, layout.HEAD
MAX_BYTES = 4 * 2**30  # of a head's arrays
DTYPE = re.compile("(?:float|int|uint)(8|16|32|64)")
MAX_NAMES_BYTES = 2**28  # of the class names as an array, in which each takes as much as the longest


def save(head: Head, folder: PurePath, meta: dict[str, Any]) -> None:
    """Write a head into a folder, atomically and durably.

    Args:
        head: a fitted head.
        folder: made if needed.
        meta: JSON values stored with it: ``feature_set`` and ``fingerprint`` of the features it was trained on,
            ``metrics``, and any other values of the caller; ``load`` returns them.

    Raises:
        HeadError: the head has numbers that are not finite, or is too large to be read back.
    """
    _check_finite(head.arrays, "this head")
    size = sum(array.nbytes for array in head.arrays.values())
    if size > MAX_BYTES or head.classes.nbytes > MAX_NAMES_BYTES:
        raise HeadError(
            f"This head is too large to keep: Expected: {MAX_BYTES:,} bytes of numbers, {MAX_NAMES_BYTES:,} of its "
            f"classes. Got: {size:,} and {head.classes.nbytes:,}; train another family, or on fewer images."
        )
    make_folder(folder)
    digest = write_npz(folder / ARRAYS, head.arrays)
    description = {
        "format_version": FORMAT_VERSION,
        "family": head.family,
        "params": head.params,
        "classes": head.classes.tolist(),
        "arrays": _layout(head.arrays),
        "sha256": digest,
        "meta": meta,
    }
    write_sealed(folder / DESCRIPTION, description)


def load(folder: PurePath, fingerprint: str | None = None) -> tuple[Head, dict[str, Any]]:
    """Read a head and its meta.

    The files are not trusted: no code in them runs, and reading takes no more memory than a head of ``MAX_BYTES``.

    Args:
        folder: where ``save`` wrote it.
        fingerprint: of the features to be scored; None skips the check.

    Raises:
        StoreNotFound: the folder holds no head.
        FormatError: the head was written by a newer penult.
        StoreCorrupt: the files differ from what was saved.
        HeadError: the head has numbers that are not finite.
        SpecMismatch: the head was trained on features of another fingerprint.
    """
    description, npz = folder / DESCRIPTION, folder / ARRAYS
    if not is_file(description):
        raise StoreNotFound(f"There is no head in {folder}; `penult runs` lists what there is.")
    told = read_sealed(description)
    _check_told(told, description)
    family, params, names, layout, meta = (told[k] for k in ("family", "params", "classes", "arrays", "meta"))
    if fingerprint is not None and meta.get("fingerprint") != fingerprint:
        raise SpecMismatch(
            f"The head in {folder} belongs to other features. "
            f"Expected: fingerprint {meta.get('fingerprint')}. Got: {fingerprint}."
        )
    limit = int(sum(map(_size, layout.values()))) + OVERHEAD * (len(layout) + 1)
    arrays = read_npz(npz, limit, told["sha256"])
    if _layout(arrays) != layout:
        raise StoreCorrupt(f"{npz}: Expected: arrays {layout}. Got: {_layout(arrays)}.")
    _check_finite(arrays, str(npz))
    head = FAMILIES[family].head(family, params, np.array(names, dtype=str), arrays)
    _check_usable(head, folder)
    return head, meta


def _check_told(told: Mapping[str, Any], description: PurePath) -> None:
    """Raise FormatError or StoreCorrupt unless a head's description has all its entries, each valid."""
    version = told.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise FormatError(
            f"{description}: Expected: head format version up to {FORMAT_VERSION}. Got: {version}. "
            "Install a newer penult."
        )
    family, params, names, layout, meta = (told.get(k) for k in ("family", "params", "classes", "arrays", "meta"))
    checks = {
        "format_version": type(version) is int and version > 0,
        "family": isinstance(family, str) and family in FAMILIES,
        "params": isinstance(params, dict),
        "classes": isinstance(names, list) and all(isinstance(name, str) for name in names) and _are_classes(names),
        "arrays": isinstance(layout, dict) and sum(map(_size, layout.values())) <= MAX_BYTES,
        "sha256": isinstance(told.get("sha256"), str),
        "meta": isinstance(meta, dict) and is_plain_name(meta.get("feature_set", "none")),
    }
    for name, good in checks.items():
        if not good:
            got = reprlib.repr(told.get(name))
            raise StoreCorrupt(f"Expected: the description of a head in {description}, with its {name}. Got: {got}.")


def _are_classes(names: list[str]) -> bool:
    """Return whether the names are two or more, sorted and unique, and their array takes up to ``MAX_NAMES_BYTES``."""
    return len(names) > 1 and names == sorted(set(names)) and 4 * len(names) * max(map(len, names)) <= MAX_NAMES_BYTES


def _size(described: Any) -> float:
    """Return the bytes of an array from its description by ``_layout``; infinity for an invalid description."""
    dtype, shape = (described.get("dtype"), described.get("shape")) if isinstance(described, dict) else (None, None)
    if not (isinstance(dtype, str) and (bits := DTYPE.fullmatch(dtype)) and isinstance(shape, list)):
        return math.inf
    if not all(type(length) is int and length >= 0 for length in shape):
        return math.inf
    return math.prod(shape) * int(bits[1]) // 8


def _layout(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in sorted(arrays.items())}


def _check_finite(arrays: dict[str, np.ndarray], where: str) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise HeadError(f"{where}: Expected: finite numbers in {name}. Got: NaN or infinity.")


def _check_usable(head: Head, folder: PurePath) -> None:
    """Raise StoreCorrupt unless the head can score a row of zeros: its arrays, parameters and classes must match."""
    expected = (1, len(head.classes))
    try:
        with np.errstate(all="ignore"):
            got = head.probabilities(np.zeros((1, len(head.arrays["mean"])), np.float32))
        finite = np.isfinite(got).all() and head.arrays["temperature"].item() > 0
    except Exception as error:  # values of any type reach arithmetic here, which may raise anything
        raise StoreCorrupt(f"{folder}: Expected: a head that can predict. Got: {error!r}.") from error
    if got.shape != expected:
        raise StoreCorrupt(f"{folder}: Expected: scores of shape {expected}. Got: {got.shape}.")
    if not finite:
        raise StoreCorrupt(f"{folder}: Expected: a head that can predict. Got: probabilities that are no numbers.")
