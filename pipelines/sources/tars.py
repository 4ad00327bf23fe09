"""The headers of a tar, read without trusting them: in one pass, in linear time, in bounded memory.

Python's own tarfile is not safe in every Python version that penult supports. It loops for ever on a negative size,
takes quadratic time over a header of digits, recurses over nested extended headers, and reads a header that claims a
terabyte whole.

Sources: IEEE 1003.1 (ustar and pax) and GNU tar's long names, base-256 numbers and sparse files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from typing import NamedTuple

from pipelines.sources.base import Blob

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")  # how such tars are called
BLOCK = 512
MAX_ZEROS_AT_ONCE = 2**18
MAX_HEADER_BYTES = 2**20  # of an extended header: names and attributes
MAX_SIZE = 2**62

_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, FIFOs
_FOLDER, _SPARSE, _LONG_NAME, _LONG_LINK = b"5", b"S", b"L", b"K"
_PAX, _PAX_SOLARIS, _PAX_GLOBAL = b"x", b"X", b"g"


class TarDamaged(ValueError):
    """The tar is cut off or damaged; the message only names the byte."""


class Member(NamedTuple):
    """A member of a tar: its name, where its data lies, and its kind."""

    name: str  # bytes that are not UTF-8 are surrogates
    offset: int
    size: int
    kind: str  # "file", "folder" or "other" (a link, a sparse file …)


def members(blob: Blob) -> Iterator[Member]:
    """Yield the members of an open tar, also those of tars appended by ``cat``: reading goes on after an end mark.

    Raises:
        TarDamaged: the tar is damaged; the members before the damage have been yielded.
        OSError: it cannot be read.
    """
    at, told = 0, dict[bytes, bytes]()  # what extended headers say about the next member
    while True:
        block = _block(blob, at)
        if block == bytes(BLOCK):
            if told:
                raise TarDamaged(f"byte {at}")
            if (at := _end_of_zeros(blob, at)) < 0:
                return
            continue
        if not _checksum_holds(block):
            raise TarDamaged(f"byte {at}")
        kind, data = block[156:157], at + BLOCK
        size = _number(block[124:136], at) if b"size" not in told else _decimal(told[b"size"], at)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_SOLARIS, _PAX_GLOBAL):
            size = _number(block[124:136], at)
            body = _header_body(blob, data, size, at)
            if kind == _LONG_NAME:
                told = {b"path": _text(body)} | told
            elif kind in (_PAX, _PAX_SOLARIS):
                told = _pax_records(body, at) | told
            at = data + _padded(size)
            continue
        if kind == _SPARSE:
            more = block[482]
            while more:
                more, data = _block(blob, data)[504], data + BLOCK
        sparse = kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in told)
        name = told.get(b"path", _name(block)).decode("utf-8", "surrogateescape")
        folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
        what = "folder" if folder else "file" if kind in _REGULAR and not sparse else "other"
        yield Member(name.rstrip("/"), data, size, what)
        at, told = data + (0 if kind in _WITHOUT_DATA else _padded(size)), {}


@lru_cache(maxsize=4)
def places_of_files(
    open_blob: Callable[[str], AbstractContextManager[Blob]], uri: str, size: int, mtime_ns: int
) -> dict[str, tuple[int, int]]:
    """Map the names of a tar's files to (offset, size), as far as it can be read.

    The last few tars are remembered; ``size`` and ``mtime_ns`` make a changed tar another one.
    """
    found: dict[str, tuple[int, int]] = {}
    with suppress(TarDamaged, OSError), open_blob(uri) as blob:
        for member in members(blob):
            if member.kind == "file":
                found.setdefault(member.name, (member.offset, member.size))
    return found


def _end_of_zeros(blob: Blob, at: int) -> int:
    """Return where the blocks of zeros from ``at`` on end, -1 if nothing else follows; holes are not read."""
    step = 20 * BLOCK  # the usual padding
    while True:
        if (found := blob.data_at(at)) < 0:
            return -1
        at = max(at, found // BLOCK * BLOCK)
        data = blob.pread(step, at)
        if not data:
            return -1
        zeros = len(data) - len(data.lstrip(b"\0"))
        if zeros < len(data):
            return at + zeros // BLOCK * BLOCK
        at, step = at + len(data), min(2 * step, MAX_ZEROS_AT_ONCE)


def _block(blob: Blob, at: int) -> bytes:
    block = blob.pread(BLOCK, at)
    if len(block) < BLOCK:
        raise TarDamaged(f"byte {at}")
    return block


def _checksum_holds(block: bytes) -> bool:
    """Return whether the checksum is the sum of the header's bytes, with its own field as blanks.

    Some old tar programs summed the bytes as signed ones; that is accepted too.
    """
    try:
        told = _number(block[148:156], 0)
    except TarDamaged:
        return False
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return told == total or told == total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _number(field: bytes, at: int) -> int:
    """Read a number, in octal or in GNU's base 256."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:])
    else:
        text = _text(field).strip()
        if text.strip(b"01234567"):  # also a negative number of base 256
            raise TarDamaged(f"byte {at}")
        number = int(text or b"0", 8)
    if number > MAX_SIZE:
        raise TarDamaged(f"byte {at}")
    return number


def _decimal(text: bytes, at: int) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarDamaged(f"byte {at}")
    return min(int(text), MAX_SIZE)


def _header_body(blob: Blob, data: int, size: int, at: int) -> bytes:
    body = blob.pread(size, data) if size <= MAX_HEADER_BYTES else b""
    if len(body) < size:
        raise TarDamaged(f"byte {at}")
    return body


def _pax_records(body: bytes, at: int) -> dict[bytes, bytes]:
    """Read records of the form "LENGTH KEY=VALUE\\n"."""
    records, begin = dict[bytes, bytes](), 0
    while begin < len(body) and body[begin]:
        digits = body[begin : begin + 8].partition(b" ")[0]
        key_at, end = begin + len(digits) + 1, begin + (int(digits) if digits.isdigit() else 0)
        if not key_at < end <= len(body):
            raise TarDamaged(f"byte {at}")
        key, _, value = body[key_at : end - 1].partition(b"=")
        records[key] = value
        begin = end
    return records


def _name(block: bytes) -> bytes:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" if prefix else b"") + _text(block[:100])


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
