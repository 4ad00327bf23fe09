"""What was found in a tar, as an Arrow file: its images, and last what else there is to tell of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.sources.base import Entry

ROWS = 10_000  # per batch
SCHEMA = pa.schema(
    [
        ("member", pa.string()),  # as it stands in the URI, percent-encoded
        ("size", pa.int64()),
        ("offset", pa.int64()),
        *((name, pa.string()) for name in ("label", "split", "group")),
    ]
)
TOLD = b"told"  # of the last batch


def write(path: Path, entries: Iterator[Entry], told: Callable[[], dict[str, Any]]) -> None:
    """Write the entries of one tar and, once they have been read, what ``told`` returns; memory stays bounded."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        while some := list(islice(entries, ROWS)):
            rows = [(e.uri.partition("#")[2], e.size, e.offset, e.label, e.split, e.group) for e in some]
            columns = [pa.array(column, f.type) for column, f in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        writer.write_batch(pa.RecordBatch.from_pylist([], SCHEMA), {TOLD: json.dumps(told())})


def read(path: Path, tar: str, mtime_ns: int) -> tuple[dict[str, Any], Iterator[Entry]]:
    """Return what was told of a tar, given by its URI, and its entries.

    Raises:
        OSError, ValueError, pa.ArrowException: the file is damaged.
    """
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    told = json.loads(reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata[TOLD])

    def entries() -> Iterator[Entry]:
        for number in range(reader.num_record_batches - 1):
            columns = (column.to_pylist() for column in reader.get_batch(number).columns)
            for member, size, offset, label, split, group in zip(*columns, strict=True):
                yield Entry(f"{tar}#{member}", size, mtime_ns, offset, label, split, group)

    return told, entries()
