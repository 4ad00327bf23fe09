"""A head on disk: ``head.npz`` holds its arrays, ``head.json`` everything else. No pickle.

``head.json`` is written last and names the sha256 of ``head.npz``: without it there is no head.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import FormatError, HeadError, SpecMismatch, StoreCorrupt, StoreNotFound
from featurestore.files import read_json, replacing, write_json
from heads.head import Head
from heads.registry import FAMILIES

FORMAT_VERSION = 1
ARRAYS, DESCRIPTION = "head.npz", "head.json"


def save(head: Head, folder: Path, meta: dict[str, Any]) -> None:
    """Write a head into a folder, atomically and durably.

    Args:
        head: a fitted head.
        folder: made if need be.
        meta: JSON values kept beside it: ``feature_set`` and ``fingerprint`` of what it was trained on,
            ``metrics``, and whatever else the caller wants back.

    Raises:
        HeadError: the head has numbers that are not finite.
    """
    _check_finite(head.arrays, "this head")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **head.arrays)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / ARRAYS) as temporary:
        temporary.write_bytes(buffer.getvalue())
    description = {
        "format_version": FORMAT_VERSION,
        "family": head.family,
        "params": head.params,
        "classes": head.classes.tolist(),
        "arrays": _layout(head.arrays),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "meta": meta,
    }
    write_json(folder / DESCRIPTION, description)


def load(folder: Path, fingerprint: str | None = None) -> tuple[Head, dict[str, Any]]:
    """Read a head and its meta back.

    Args:
        folder: where ``save`` wrote it.
        fingerprint: of the features to be scored; None checks nothing.

    Raises:
        StoreNotFound: the folder holds no head.
        FormatError: it was written by a newer penult.
        StoreCorrupt: the files are not what was saved.
        HeadError: numbers that are not finite.
        SpecMismatch: it was trained on features of another fingerprint.
    """
    description, npz = folder / DESCRIPTION, folder / ARRAYS
    if not description.is_file():
        raise StoreNotFound(f"There is no head in {folder}; `penult runs` lists what there is.")
    told = read_json(description)
    try:
        version = int(told["format_version"])
        family, params, names, meta = told["family"], told["params"], told["classes"], told["meta"]
        layout, digest = told["arrays"], told["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"Expected: the description of a head in {description}. Got: {error!r}.") from error
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{description}: Expected: head format version up to {FORMAT_VERSION}. Got: {version}. "
            "Install a newer penult."
        )
    if family not in FAMILIES:
        raise StoreCorrupt(f"{description}: Expected: one of {', '.join(FAMILIES)}. Got: {family!r}.")
    if fingerprint is not None and meta.get("fingerprint") != fingerprint:
        raise SpecMismatch(
            f"The head in {folder} belongs to other features. "
            f"Expected: fingerprint {meta.get('fingerprint')}. Got: {fingerprint}."
        )
    arrays = _read_arrays(npz, digest)
    if _layout(arrays) != layout:
        raise StoreCorrupt(f"{npz}: Expected: arrays {layout}. Got: {_layout(arrays)}.")
    _check_finite(arrays, str(npz))
    head = FAMILIES[family].head(family, params, np.array(names, dtype=str), arrays)
    _check_usable(head, folder)
    return head, meta


def _read_arrays(npz: Path, digest: str) -> dict[str, np.ndarray]:
    if not npz.is_file():
        raise StoreCorrupt(f"Expected: {npz}. Got: no such file.")
    data = npz.read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise StoreCorrupt(f"{npz}: Expected: sha256 {digest}. Got: {actual}.")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError) as error:
        raise StoreCorrupt(f"{npz}: Expected: plain numpy arrays. Got: {error}.") from error


def _layout(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in sorted(arrays.items())}


def _check_finite(arrays: dict[str, np.ndarray], where: str) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise HeadError(f"{where}: Expected: finite numbers in {name}. Got: NaN or infinity.")


def _check_usable(head: Head, folder: Path) -> None:
    """Score one row of zeros: arrays, parameters and classes that do not fit together fail here."""
    expected = (1, len(head.classes))
    try:
        got = head.scores(np.zeros((1, len(head.arrays["mean"])), np.float32)).shape
        head.arrays["temperature"].item()
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise StoreCorrupt(f"{folder}: Expected: a head that can predict. Got: {error!r}.") from error
    if got != expected:
        raise StoreCorrupt(f"{folder}: Expected: scores of shape {expected}. Got: {got}.")
