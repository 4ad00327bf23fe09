"""Small files of a store, whatever storage holds them: JSON with a seal, digests, and plain questions.

They are written whole or not at all, kept through a power cut, and read without trusting them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Any

from featurestore.errors import StoreCorrupt, StoreError, UsageError
from featurestore.storage.base import Stat, storage_of

JSON_BYTES = 16 * 2**20  # read as Python objects it may take 40 times as much
MAX_NAME_BYTES = 200  # file systems allow 255
SEAL = "seal"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped surrogate, which UTF-8 cannot encode unless two form a pair


def stat(path: PurePath) -> Stat | None:
    """Return what is at a location, behind a link if there is one; None if nothing is there.

    Raises:
        StoreCorrupt: a link leads nowhere else than to itself.
        StoreError: this user may not look.
    """
    return storage_of(path).stat(path)


def stats(folder: PurePath, names: Collection[str]) -> dict[str, Stat]:
    """Return what is at the names below a folder that are there; raise what ``stat`` raises."""
    return storage_of(folder).stats(folder, names)


def exists(path: PurePath) -> bool:
    """Return whether a file or folder is at a location; not for a link that leads nowhere."""
    try:
        return stat(path) is not None
    except StoreCorrupt:
        return False


def is_file(path: PurePath) -> bool:
    """Return whether a regular file is at a location, or behind a link there."""
    return _kind(path) == "file"


def is_folder(path: PurePath) -> bool:
    """Return whether a folder is at a location, or behind a link there."""
    return _kind(path) == "folder"


def is_link(path: PurePath) -> bool:
    """Return whether a link is at a location: what it leads to is not the store's own."""
    storage = storage_of(path)
    found = storage.stat(path, follow=False) if storage.links else None
    return found is not None and found.kind == "link"


def size_of(path: PurePath) -> int | None:
    """Return the size of a regular file in bytes; None if there is no file or something else."""
    try:
        found = stat(path)
    except StoreError:
        return None
    return found.size if found and found.kind == "file" else None


def listed(folder: PurePath) -> list[PurePath]:
    """Return the paths in a folder, sorted; none if there is no folder.

    Raises:
        StoreError: the folder cannot be listed.
    """
    return storage_of(folder).list(folder)


def reading(path: PurePath) -> AbstractContextManager[io.BufferedIOBase]:
    """Open a regular file for reading.

    Raises:
        StoreCorrupt: there is no regular file, or it cannot be read.
        StoreError: this user may not read the file.
    """
    return storage_of(path).open(path)


def replacing(path: PurePath, durable: bool = True) -> AbstractContextManager[Path]:
    """Yield a temporary local path; on success, its file replaces ``path``, durably by default.

    Raises:
        StoreError: the file cannot be written.
    """
    return storage_of(path).write(path, durable)


def delete(path: PurePath) -> None:
    """Delete a file, a link, or a folder with all that is in it; do nothing if it does not exist.

    Raises:
        StoreError: it cannot be deleted.
    """
    storage_of(path).delete(path)


def make_folder(path: PurePath) -> None:
    """Make a folder and those above it, durably; do nothing if it exists.

    Raises:
        StoreError: it cannot be made.
    """
    storage_of(path).make_folder(path)


def flush(path: PurePath, missing_ok: bool = False) -> None:
    """Make a file that something else wrote, or the names in a folder, survive a power cut.

    Raises:
        StoreError: it cannot be flushed, or does not exist and ``missing_ok`` is not set.
    """
    storage_of(path).flush(path, missing_ok)


def write_text(path: PurePath, text: str) -> None:
    """Write a text file, atomically and durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PurePath, value: Any, limit: int = JSON_BYTES) -> None:
    """Write JSON, atomically and durably.

    Raises:
        StoreError: the text would be larger than ``limit`` bytes, so that it could not be read back.
    """
    write_text(path, _json(path, value, limit))


def read_json(path: PurePath, limit: int = JSON_BYTES) -> Any:
    """Read JSON as strictly as it is written: UTF-8, finite numbers, no key twice in an object.

    Raises:
        StoreCorrupt: the file is missing, larger than ``limit`` bytes, or not such JSON.
        StoreError: this user may not read the file.
    """
    data = read_bytes(path, limit)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(
            f"Expected: JSON in {path}. Got: a damaged file ({error}); `penult doctor` brings back what can be had."
        ) from error
    return value


def write_sealed(path: PurePath, value: dict[str, Any], limit: int = JSON_BYTES) -> None:
    """Write a JSON object with its seal (see ``sealed``), atomically and durably.

    Raises:
        StoreError: the text would be larger than ``limit`` bytes, so that it could not be read back.
    """
    write_json(path, sealed(value), limit)


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return the object with a last key ``seal``, from which ``read_sealed`` detects damage.

    The seal is the SHA-256 of the canonical JSON of the object without the seal. It shows that no bit has changed by
    accident; it does not show who wrote the file.
    """
    assert SEAL not in value
    plain = json.loads(json.dumps(value, allow_nan=False))  # as it will be read back: keys are text, tuples are lists
    return plain | {SEAL: _seal(plain)}


def create_sealed(path: PurePath, value: dict[str, Any]) -> bool:
    """Write a sealed JSON object unless there is a file, durably; return whether this call wrote it."""
    return storage_of(path).create(path, json.dumps(sealed(value)).encode())


def replace_sealed(path: PurePath, value: dict[str, Any], token: str | None) -> None:
    """Replace a sealed JSON object that nobody else has replaced since it had this token (see ``token_of``).

    Raises:
        StoreError: somebody else did, although the caller holds the store's lock.
    """
    text = _json(path, sealed(value), JSON_BYTES)
    if not storage_of(path).replace(path, text.encode(), token):
        raise StoreError(f"{path} was changed meanwhile by another run, which did not honour the lock: run this again.")


def token_of(path: PurePath) -> str | None:
    """Return what changes whenever a file is replaced; None if there is no file."""
    found = stat(path)
    return found.token if found else None


def read_sealed(path: PurePath, required: bool = False, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object that ``write_sealed`` wrote; return it without its seal.

    Args:
        path: of the file.
        required: refuse an object without a seal; files of older formats have none.
        limit: largest size of the file in bytes.

    Raises:
        StoreCorrupt: ``read_json`` refuses the file, it holds no JSON object, or the seal does not match.
        StoreError: this user may not read the file.
    """
    return unsealed(path, read_json(path, limit), required)


def unsealed(path: PurePath, value: Any, required: bool = False) -> dict[str, Any]:
    """Return without its seal what ``read_json`` read from a path; see ``read_sealed``."""
    if not isinstance(value, dict):
        raise StoreCorrupt(f"Expected: a JSON object in {path}. Got: {type(value).__name__}.")
    if SEAL not in value:
        if required:
            raise StoreCorrupt(f"Expected: a seal in {path}. Got: none.")
        return value
    if value.pop(SEAL) != _seal(value):
        raise StoreCorrupt(
            f"Expected: {path} as it was written. Got: a damaged file (its seal does not match); "
            "`penult doctor` brings back what can be had."
        )
    return value


def read_bytes(path: PurePath, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        StoreCorrupt: the file is larger, or ``reading`` refuses it.
        StoreError: this user may not read the file.
    """
    with reading(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        data = file.read(limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise StoreCorrupt(f"Expected: at most {limit:,} bytes in {path}. Got: {max(size, len(data)):,}.")
    return data


def read_given(path: Path, what: str, limit: int, parse: Callable[[bytes], Any]) -> Any:
    """Read a file that a user names, such as options in TOML; it is on a local disk.

    Args:
        path: of the file.
        what: it is expected to be.
        limit: the most bytes that it may have.
        parse: makes a value of the bytes; raises ValueError for others, such as damaged ones.

    Raises:
        UsageError: there is no such file, it is too large, or it cannot be read or parsed.
    """
    size = size_of(path)
    if size is None or size > limit:
        got = "no such file" if size is None else f"{size:,} bytes"
        raise UsageError(f"Expected: {what} of up to {limit:,} bytes. Got: {path}, {got}.")
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: Expected: {what}. Got: {said}.") from error


def sha256_of(path: PurePath) -> str:
    """Return the sha256 of a whole file, in hex; raise what ``reading`` raises."""
    return measured(path)[0]


def measured(path: PurePath) -> tuple[str, int]:
    """Return the sha256 of a whole file, in hex, and its size in bytes; raise what ``reading`` raises."""
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def is_plain_name(name: object) -> bool:
    """Return whether this names an entry of a folder, nothing outside it, and leaves room for a suffix."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        return False
    return len(name.encode(errors="replace")) <= MAX_NAME_BYTES


def _kind(path: PurePath) -> str | None:
    try:
        found = stat(path)
    except StoreCorrupt:
        return None
    return found.kind if found else None


def _json(path: PurePath, value: Any, limit: int) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > limit:
        raise StoreError(f"{path}: Expected: at most {limit:,} bytes of JSON to write. Got: {len(text.encode()):,}.")
    return text


def _seal(value: dict[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key twice")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number too large")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")
