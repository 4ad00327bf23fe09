"""Arrays in an npz file, written durably and read without trusting them.

``numpy.load`` trusts the sizes that a file declares: a few bytes can declare, or unpack to, more than any memory holds.
Here members are stored uncompressed, so that the arrays are no larger than the file, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import PurePath
from typing import IO

import numpy as np

from featurestore.errors import StoreCorrupt
from featurestore.storage.files import is_plain_name, reading, replacing, sha256_of

KINDS = "biufU"  # allowed kinds of dtype: plain numbers and text
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
OVERHEAD = 1024  # bytes per array, and once per file


def write_npz(path: PurePath, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays, atomically and durably; return the file's SHA-256 in hex."""
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return sha256_of(temporary)


def read_npz(path: PurePath, limit: int, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read the arrays that ``write_npz`` wrote; they are read-only.

    Args:
        path: of the file.
        limit: largest size in bytes; the bytes of all arrays plus ``OVERHEAD`` per array and once per file is enough.
        sha256: of the file, in hex; None skips this check.

    Raises:
        StoreCorrupt: the file is missing, larger than ``limit``, has another digest, or holds more than plain arrays.
        StoreError: this user may not read the file.
    """
    with reading(path) as opened:
        if (size := opened.seek(0, io.SEEK_END)) > limit:
            raise StoreCorrupt(f"{path}: Expected: at most {limit:,} bytes. Got: {size:,}.")
        opened.seek(0)
        if sha256 is not None and (found := hashlib.file_digest(opened, "sha256").hexdigest()) != sha256:
            raise StoreCorrupt(f"{path}: Expected: sha256 {sha256}. Got: {found}.")
        try:
            return _unzipped(opened, size)
        except Exception as error:  # a hostile file makes zipfile and numpy raise anything
            raise StoreCorrupt(f"{path}: Expected: plain numpy arrays. Got: {error}.") from error


def _unzipped(file: io.BufferedIOBase, size: int) -> dict[str, np.ndarray]:
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
    """Read shape, Fortran order and dtype of an array: NEP 1, "A simple file format for NumPy arrays"."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"an array of version {version}")
    return HEADERS[version](file)
