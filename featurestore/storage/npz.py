"""Arrays in an npz file, written durably and read without trusting them.

``numpy.load`` believes what a file says of itself: a few bytes can declare, or unpack to, more than any memory holds.
Here members are stored as they are, so that a file is as large as what comes out of it, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from featurestore.errors import StoreCorrupt
from featurestore.storage.files import is_plain_name, reading, replacing, sha256_of

KINDS = "biufU"  # of dtypes: plain numbers and text
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
OVERHEAD = 1024  # bytes


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays, atomically and durably; return the file's SHA-256 in hex."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return sha256_of(temporary)


def read_npz(path: Path, limit: int, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read arrays that ``write_npz`` has written; they are read-only.

    Args:
        path: of the file.
        limit: of its size in bytes; ``OVERHEAD`` for each array and once for the file is enough beside the numbers.
        sha256: of the file, in hex; None checks nothing.

    Raises:
        StoreCorrupt: no such file, more than ``limit``, another digest, or anything but plain arrays.
        StoreError: it may not be read.
    """
    with reading(path) as opened:
        if (size := os.fstat(opened.fileno()).st_size) > limit:
            raise StoreCorrupt(f"{path}: Expected: at most {limit:,} bytes. Got: {size:,}.")
        if sha256 is not None and (found := hashlib.file_digest(opened, "sha256").hexdigest()) != sha256:
            raise StoreCorrupt(f"{path}: Expected: sha256 {sha256}. Got: {found}.")
        try:
            return _unzipped(opened, size)
        except Exception as error:  # a hostile file makes zipfile and numpy raise anything
            raise StoreCorrupt(f"{path}: Expected: plain numpy arrays. Got: {error}.") from error


def _unzipped(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names) or not all(map(is_plain_name, names)):
            raise ValueError("two arrays of one name, or one that is no plain name")
        if sum(member.file_size for member in members) > size:
            raise ValueError("arrays that are larger than the file")
        return {name: _read(archive, member) for name, member in zip(names, members, strict=True)}


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError("a compressed array")
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        data = file.read()
    if dtype.kind not in KINDS or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data):,} bytes that are no {dtype} of shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an array: NEP 1, "A simple file format for NumPy arrays"."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"an array of version {version}")
    return HEADERS[version](file)
