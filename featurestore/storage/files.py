"""Small durable files: written whole or not at all, kept through a power cut, and read without trusting them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from featurestore.errors import StoreCorrupt, StoreError

JSON_BYTES = 16 * 2**20  # read as Python objects it may take 40 times as much
MAX_NAME_BYTES = 200  # file systems allow 255
SEAL = "seal"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped surrogate, which UTF-8 cannot encode unless two form a pair


def trouble(error: OSError, path: Path | str) -> str:
    """Return one sentence that says what the system refused and what to do.

    ``path`` is named if the error has no file name. Lance and Arrow give the error number only in their message.
    """
    told = re.search(r"(?:os error|errno) (\d+)", str(error))
    number = error.errno or (int(told[1]) if told else errno.EIO)
    what = {
        errno.ENOSPC: "make room there",
        errno.EDQUOT: "make room there",
        errno.EFBIG: "let files be larger there",
        errno.EROFS: "make it writable, or name another folder",
        errno.EACCES: "give this user the right to, or name another folder",
        errno.EPERM: "give this user the right to, or name another folder",
    }.get(number, "look after that disk")
    return (
        f"{error.filename or path}: {os.strerror(number)}: {what}, then run the same command again; "
        "what was finished is kept."
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the OSError raised when ``path`` cannot be written into a StoreError for users.

    Raises:
        StoreError: see ``trouble``.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(trouble(error, path)) from error


def fsync(path: Path, missing_ok: bool = False) -> None:
    """Flush one file or folder to the disk; with ``missing_ok``, do nothing if it does not exist."""
    with writing(path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            if missing_ok:
                return
            raise
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success, its file replaces ``path`` durably."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            yield temporary
            fsync(temporary)
            temporary.replace(path)
        fsync(path.parent)
    finally:
        with suppress(OSError):  # if this fails too, the first error is the one to raise
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically and durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, limit: int = JSON_BYTES) -> None:
    """Write JSON, atomically and durably.

    Raises:
        StoreError: the text would be larger than ``limit`` bytes, so that it could not be read back.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > limit:
        raise StoreError(f"{path}: Expected: at most {limit:,} bytes of JSON to write. Got: {len(text.encode()):,}.")
    write_text(path, text)


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
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


def write_sealed(path: Path, value: dict[str, Any], limit: int = JSON_BYTES) -> None:
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


def read_sealed(path: Path, required: bool = False, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object that ``write_sealed`` wrote; return it without its seal.

    Args:
        path: of the file.
        required: refuse an object without a seal; files of older formats have none.
        limit: largest size of the file in bytes.

    Raises:
        StoreCorrupt: ``read_json`` refuses the file, it holds no JSON object, or the seal does not match.
        StoreError: this user may not read the file.
    """
    value = read_json(path, limit)
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


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        StoreCorrupt: the file is larger, or ``reading`` refuses it.
        StoreError: this user may not read the file.
    """
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        raise StoreCorrupt(f"Expected: at most {limit:,} bytes in {path}. Got: {max(size, len(data)):,}.")
    return data


def size_of(path: Path) -> int | None:
    """Return the size of a regular file in bytes; None if there is no file or something else."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def listed(folder: Path) -> list[Path]:
    """Return the paths in a folder, sorted; none if there is no folder.

    Not a glob: it would be empty for a folder that this user may not list.

    Raises:
        StoreError: the folder cannot be listed.
    """
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except FileNotFoundError:  # removed in the meantime
        return []
    except OSError as error:
        raise StoreError(trouble(error, folder)) from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a whole file, in hex; raise what ``reading`` raises."""
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading; do not wait for anything else in its place, such as a pipe.

    Raises:
        StoreCorrupt: there is no regular file, or it cannot be read.
        StoreError: this user may not read the file.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StoreCorrupt(f"Expected: a regular file at {path}. Got: something else.")
            yield file
    except PermissionError as error:
        raise StoreError(f"{path} may not be read: give this user the right to.") from error
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise StoreCorrupt(
            f"Expected: a file at {path}. Got: {getattr(error, 'strerror', error)}; "
            "`penult doctor` brings back what can be had."
        ) from error


def is_plain_name(name: object) -> bool:
    """Return whether this names an entry of a folder, nothing outside it, and leaves room for a suffix."""
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        return False
    return len(name.encode(errors="replace")) <= MAX_NAME_BYTES


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
