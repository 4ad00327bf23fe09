"""The rows of an Arrow file or stream, wherever it lies: one image is read without its neighbours.

pyarrow reads a stream from its beginning, and a batch whole, which may be all of the file. Here the few numbers that
tell where a batch's buffers lie are read from its header, as "Arrow columnar format", section "Serialization and
Interprocess Communication", and its ``Message.fbs`` define them.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import types

from featurestore.errors import ImageError
from pipelines.sources.base import Blob
from pipelines.sources.uris import MAX_FILE_BYTES

MAGIC = b"ARROW1\0\0"  # of a file, which holds a stream and a table of contents
CONTINUED = b"\xff\xff\xff\xff"
RECORD_BATCH = 3  # a kind of message
CODECS = ("lz4", "zstd")
MAX_HEADER_BYTES = 2**28


def _numbers(form: str, data: Any, at: int = 0) -> tuple[int, ...]:
    """Return numbers of a file.

    Raises:
        pa.ArrowInvalid: they would lie outside of it.
    """
    try:
        if at < 0:
            raise struct.error
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise pa.ArrowInvalid("it is damaged: a header ends too early") from None


class _Table:
    """A table of a FlatBuffer; a field that is left out is 0."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - _numbers("<i", data, at)[0]
        self._end = _numbers("<H", data, self._fields)[0]

    def _field(self, slot: int) -> int:
        at = 4 + 2 * slot
        found = _numbers("<H", self._data, self._fields + at)[0] if at < self._end else 0
        return self._at + found if found else 0

    def number(self, slot: int, form: str) -> int:
        return _numbers(form, self._data, at)[0] if (at := self._field(slot)) else 0

    def table(self, slot: int) -> _Table | None:
        return _Table(self._data, at + _numbers("<I", self._data, at)[0]) if (at := self._field(slot)) else None

    def vector(self, slot: int, form: str) -> Iterator[tuple[int, ...]]:
        """Return the structs of a vector, each of several numbers."""
        if not (at := self._field(slot)):
            return iter(())
        at += _numbers("<I", self._data, at)[0]
        count, size = _numbers("<I", self._data, at)[0], struct.calcsize(form)
        return (_numbers(form, self._data, at + 4 + i * size) for i in range(count))


class _Message(NamedTuple):
    """Where a message lies in a file."""

    start: int
    body: int
    size: int  # of the body
    kind: int
    rows: int

    def table(self, blob: Blob) -> _Table:
        """Read its header."""
        return _root(blob.pread(self.body - self.start - 8, self.start + 8))


def _message_at(blob: Blob, start: int, body: int) -> _Message:
    header = _root(blob.pread(body - start - 8, start + 8))
    record = header.table(2)
    return _Message(
        start, body, header.number(3, "<q"), header.number(1, "<B"), record.number(0, "<q") if record else 0
    )


def _root(data: bytes) -> _Table:
    return _Table(data, _numbers("<I", data)[0])


class _Batch:
    """Where the columns of a record batch lie in a file."""

    def __init__(self, blob: Blob, message: _Message, schema: pa.Schema) -> None:
        record = message.table(blob).table(2)
        packed = record.table(3) if record else None
        if record is None or (packed and packed.number(0, "<b") not in range(len(CODECS))):
            raise pa.ArrowInvalid("it is damaged: a batch has no header")
        self._blob, self._message = blob, message
        self._codec = CODECS[packed.number(0, "<b")] if packed else None
        nodes, buffers, more = record.vector(1, "<qq"), record.vector(2, "<qq"), record.vector(4, "<q")
        try:
            self._spans = {field.name: _span(field.type, nodes, buffers, more) for field in schema}
        except StopIteration:
            raise pa.ArrowInvalid("it is damaged: a batch lacks some of its columns") from None

    def is_plain(self, name: str) -> bool:
        """Return whether ``cell`` can read a column: it is not compressed, and no view."""
        kind = _binary(self._spans[name]).kind
        return self._codec is None and (types.is_binary(kind) or types.is_large_binary(kind))

    def cell(self, name: str, row: int) -> bytes | None:
        """Read a cell of a column of binaries, or of structs with binaries in the field ``bytes``."""
        span = self._spans[name]
        binary = _binary(span)
        if not (self._is_valid(span, row) and self._is_valid(binary, row)):
            return None
        form = "<qq" if types.is_large_binary(binary.kind) else "<ii"
        width = struct.calcsize(form)
        offsets, data = binary.buffers[1:]
        start, end = _numbers(form, self._read(offsets, row * width // 2, width))
        if end - start > MAX_FILE_BYTES:
            raise ImageError("too_large", f"{end - start:,} bytes are more than the limit of {MAX_FILE_BYTES:,}.")
        return self._read(data, start, end - start)

    def _is_valid(self, span: _Span, row: int) -> bool:
        bits = span.buffers[0]
        return not bits[1] or bool(self._read(bits, row // 8, 1)[0] >> row % 8 & 1)

    def array(self, name: str) -> Any:
        """Read a column as an Arrow array."""
        array = self._array(self._spans[name])
        array.validate(full=True)  # its numbers may point anywhere
        if len(array) != self._message.rows:
            raise pa.ArrowInvalid("it is damaged: the columns of a batch are not equally long")
        return array

    def _array(self, span: _Span) -> Any:
        if types.is_dictionary(span.kind):
            raise pa.ArrowInvalid("categories of an Arrow file are not read: write the column as plain text")
        buffers = [self._buffer(place) for place in span.buffers]
        if buffers and not span.buffers[0][1]:
            buffers[0] = None  # all are valid
        children = [self._array(child) for child in span.children]
        return pa.Array.from_buffers(span.kind, span.length, buffers, span.nulls, 0, children)

    def _buffer(self, place: tuple[int, ...]) -> Any:
        data = pa.py_buffer(self._read(place, 0, place[1]))
        if self._codec is None or not len(data):
            return data
        (size,) = _numbers("<q", data)
        return data[8:] if size < 0 else pa.Codec(self._codec).decompress(data[8:], size)

    def _read(self, place: tuple[int, ...], start: int, size: int) -> bytes:
        """Read a part of a buffer."""
        if not (start >= 0 and 0 <= size <= place[1] - start and 0 <= place[0] <= self._message.size - place[1]):
            raise pa.ArrowInvalid("it is damaged: a cell does not lie in its batch")
        if len(data := self._blob.pread(size, self._message.body + place[0] + start)) < size:
            raise pa.ArrowInvalid("it is cut off")
        return data


@dataclass
class _Span:
    """Where an array lies: its buffers as (start, length), from the beginning of the body on."""

    kind: pa.DataType
    length: int
    nulls: int
    buffers: list[tuple[int, ...]]
    children: list[_Span]


_Structs = Iterator[tuple[int, ...]]


def _span(kind: pa.DataType, nodes: _Structs, buffers: _Structs, more: _Structs) -> _Span:
    """Take the parts of an array from those of a batch, in which a parent stands before its children."""
    length, nulls = next(nodes)
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    count = 0 if types.is_null(kind) else kind.num_buffers - types.is_union(kind)
    if types.is_binary_view(kind) or types.is_string_view(kind):
        count = 2 + next(more)[0]
    own = [next(buffers) for _ in range(count)]
    children = [] if types.is_dictionary(kind) else [kind.field(i).type for i in range(kind.num_fields)]
    return _Span(kind, length, nulls, own, [_span(child, nodes, buffers, more) for child in children])


def _binary(span: _Span) -> _Span:
    return span.children[span.kind.get_field_index("bytes")] if types.is_struct(span.kind) else span


class ArrowRows:
    """An open Arrow file or stream, see ``rows.Rows``. Threads may share it."""

    def __init__(self, opening: AbstractContextManager[Blob]) -> None:
        with ExitStack() as closing:
            self._blob = blob = closing.enter_context(opening)
            first, *rest = _messages(blob)
            self.schema = pa.ipc.read_schema(pa.py_buffer(blob.pread(first.body - first.start, first.start)))
            self._closing = closing.pop_all()
        self._batches = [message for message in rest if message.kind == RECORD_BATCH]
        self._starts = [0, *itertools.accumulate(message.rows for message in self._batches)]
        self.count, self.token = self._starts[-1], (blob.size, blob.mtime_ns)
        self._batch = functools.lru_cache(2)(self._open_batch)
        self._unpacked = functools.lru_cache(2)(self._unpack)
        self._lock = threading.Lock()

    def _open_batch(self, number: int) -> _Batch:
        return _Batch(self._blob, self._batches[number], self.schema)

    def _unpack(self, number: int, column: str) -> Any:
        return self._batch(number).array(column)

    def cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        """Yield the Arrow arrays of these columns, batch by batch."""
        for number in range(len(self._batches)):
            batch = self._open_batch(number)
            yield [batch.array(name) for name in columns]

    def image(self, column: str, row: int) -> bytes | None:
        """Return the bytes in a row of a column; None where they are null."""
        number = bisect.bisect_right(self._starts, row) - 1
        row -= self._starts[number]
        batch = self._batch(number)
        if batch.is_plain(column):
            return batch.cell(column, row)
        with self._lock:  # one thread unpacks a batch for all
            value = self._unpacked(number, column)[row].as_py()
        return value["bytes"] if isinstance(value, dict) else value


def _messages(blob: Blob) -> Iterator[_Message]:
    """Yield the messages of a stream, the schema first.

    Raises:
        pa.ArrowInvalid: it is damaged, cut off, or no such stream.
    """
    at = len(MAGIC) if blob.pread(len(MAGIC), 0) == MAGIC else 0
    if blob.pread(4, at) != CONTINUED:
        raise pa.ArrowInvalid("it does not begin as an Arrow file or stream does")
    while at < blob.size:
        mark, size = _numbers("<4si", blob.pread(8, at))
        if mark == CONTINUED and size == 0:
            return
        if mark != CONTINUED or not 0 < size <= MAX_HEADER_BYTES:
            raise pa.ArrowInvalid(f"it is damaged at byte {at:,}")
        message = _message_at(blob, at, at + 8 + size)
        at = message.body + message.size
        if not message.body <= at <= blob.size:
            raise pa.ArrowInvalid("it is cut off")
        yield message
