"""The journal of a run: its plan, and an entry for each finished shard that says what the shard wrote.

``staging/<run>/`` is a redo log. A shard is finished at the moment when its entry is linked into place; all files that
the entry names were flushed before. If the run dies, the next writer commits the finished shards from the journal.

The journal may be damaged by then. ``run.json`` and the entries are sealed, and hold the SHA-256 of every other file. A
file that does not match counts as never written; ``damaged`` lists such files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore import heartbeats, layout
from featurestore.concurrency import side_by_side
from featurestore.errors import StoreCorrupt, StoreError
from featurestore.labels import with_origin
from featurestore.runs import is_run_id
from featurestore.schema import CATALOG, LABELS, LABELS_V1
from featurestore.storage.files import (
    create_sealed,
    delete,
    exists,
    flush,
    is_folder,
    is_link,
    is_plain_name,
    listed,
    make_folder,
    read_bytes,
    read_sealed,
    reading,
    replacing,
    sha256_of,
    write_sealed,
)

MOST_ATTACHED = 4 * 2**30  # bytes of a file for workers

PLAN = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("replaces", pa.bool_(), nullable=False),  # the catalog has a row with this uri
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """What one finished shard wrote; a shard is finished once its entry is a file in the journal."""

    shard: int
    fragments: list[str]  # of the feature set, as JSON
    rows_file: str  # catalog rows, Arrow IPC, in the journal's folder
    embedded: int
    deduplicated: int
    failures: dict[str, int]
    seconds: dict[str, float]
    rows_sha256: str | None = None  # of the rows file, added by ``finish``; older journals have none
    worker: str | None = None  # who did it; older journals do not say

    @property
    def images(self) -> int:
        """How many images of its plan are done: embedded, found to be known, or failed."""
        return self.embedded + self.deduplicated + sum(self.failures.values())


class Staging:
    """The journal of one run, under ``STORE/staging/<run_id>``."""

    def __init__(self, store: PurePath, run_id: str) -> None:
        self.run_id = run_id
        self.folder = layout.journal(store, run_id)
        self._shards = self.folder / layout.SHARDS
        self._finished: dict[int, ShardEntry] = {}  # those that were read
        self._good: set[str] = set()  # the driver's files that were checked

    def begin(self, feature_set: str) -> None:
        """Create the journal's folder and note the feature set that the run writes to.

        Raises:
            StoreError: the folder cannot be created, or holds the journal of another run.
        """
        _check_root(self.folder.parent)
        make_folder(self._shards)
        told = {"run_id": self.run_id, "feature_set": feature_set, "files": {}}
        if not create_sealed(self.folder / layout.RECORD, told):
            raise StoreError(
                f"Expected: no journal at {self.folder}. Got: one of a run of the same id: run this again."
            )

    @property
    def feature_set(self) -> str | None:
        """The feature set that the run writes to; None if ``run.json`` is missing or damaged."""
        told = self._told()
        return None if told is None else told["feature_set"]

    @contextmanager
    def writer(self, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatchFileWriter]:
        """Write ``<name>.arrow`` batch by batch; the complete file appears when the block ends."""
        with self._noting(f"{name}.arrow") as temporary, pa.ipc.new_file(temporary, schema) as writer:
            yield writer

    def attach(self, name: str, data: bytes) -> None:
        """Add a file that workers are to read."""
        with self._noting(name) as temporary:
            temporary.write_bytes(data)

    def attached(self, name: str) -> bytes:
        """Return what ``attach`` wrote; raise StoreCorrupt if it is missing or damaged."""
        told, data = self._told() or {}, read_bytes(self.folder / name, MOST_ATTACHED)
        if hashlib.sha256(data).hexdigest() != told.get("files", {}).get(name):
            raise StoreCorrupt(f"Expected: {self.folder / name} as it was written. Got: a damaged file.")
        return data

    @contextmanager
    def _noting(self, name: str) -> Iterator[Path]:
        """Yield a temporary local path; at the end its file is in the journal, and its digest in ``run.json``."""
        with replacing(self.folder / name) as temporary:
            yield temporary
            digest = sha256_of(temporary)
        told = read_sealed(self.folder / layout.RECORD, required=True)
        told["files"][name] = digest
        write_sealed(self.folder / layout.RECORD, told)

    def shard_plan(self, shard: int) -> pa.RecordBatch:
        """Return the planned images of one shard.

        Raises:
            StoreCorrupt: the plan is damaged.
        """
        return next(self.shard_plans([shard]))

    def shard_plans(self, shards: Iterable[int]) -> Iterator[pa.RecordBatch]:
        """Yield the planned images of some shards; raise what ``shard_plan`` raises."""
        path = self.folder / layout.PLAN
        with _arrow_errors(path), reading(path) as file:
            plan = pa.ipc.open_file(file)
            yield from map(plan.get_batch, shards)

    def finish(self, entry: ShardEntry, rows: Iterable[pa.RecordBatch]) -> ShardEntry:
        """Write the catalog rows, then the entry; return the entry of whoever finished this shard first."""
        rows_path, path = self._shards / entry.rows_file, self._entry_path(entry.shard)
        with replacing(rows_path) as temporary:
            with pa.ipc.new_file(temporary, CATALOG) as writer:
                for batch in rows:
                    writer.write_batch(batch)
            digest = sha256_of(temporary)
        whole = replace(entry, rows_sha256=digest)
        if create_sealed(path, asdict(whole)):
            return whole
        delete(rows_path)
        return self._whole(self._entry(path))

    def entry(self, shard: int) -> ShardEntry | None:
        """Return the entry of a finished shard; None if the shard is not finished or its entry is damaged."""
        try:
            return self._whole(self._entry(self._entry_path(shard)))
        except StoreCorrupt:
            return None

    def entries(self) -> Iterator[ShardEntry]:
        """Yield the entries of all finished shards in order of shard number, without the damaged ones."""
        numbers = sorted({int(path.stem) for path in self._entry_paths() if path.stem.isdecimal()})
        unread = [number for number in numbers if number not in self._finished]
        for number, entry in zip(unread, side_by_side(self.entry, unread), strict=True):
            if entry is not None:
                self._finished[number] = entry
        yield from (self._finished[number] for number in numbers if number in self._finished)

    def damaged(self) -> list[PurePath]:
        """Return the files of the journal that are missing or are not what the run wrote; all are read anew."""
        self._finished.clear()
        self._good.clear()
        if self._told() is None:
            path = self.folder / layout.RECORD
            return [path] if exists(path) or is_link(path) else []
        wrong = []
        for name, schema in ((layout.PLAN, PLAN), (layout.PLANNED_LABELS, LABELS)):
            try:
                self._noted(name, schema)
            except StoreCorrupt:
                wrong.append(self.folder / name)
        for path in self._entry_paths():
            try:
                entry = self._entry(path)
                path = self._shards / entry.rows_file
                self._whole(entry)
            except StoreCorrupt:
                wrong.append(path)
        return wrong

    def holds_rows(self) -> bool:
        """Return whether committing this journal would add rows."""
        return next(self.entries(), None) is not None or next(self.label_rows(), None) is not None

    def catalog_rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the catalog rows of all finished shards."""
        paths = [self._shards / entry.rows_file for entry in self.entries()]
        for batches in side_by_side(lambda path: list(_batches(path)), paths):
            yield from batches

    def label_rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the planned label rows (schema LABELS); none if planning did not end or the file is damaged."""
        try:
            path = self._noted(layout.PLANNED_LABELS, LABELS)
        except StoreCorrupt:
            path = None
        yield from map(with_origin, _batches(path)) if path else ()

    def replaced_uris(self) -> pa.ChunkedArray:
        """Return the uris of finished shards that had a catalog row before; all uris, if the plan is damaged."""
        try:
            self._noted(layout.PLAN, PLAN)
            plans = self.shard_plans(entry.shard for entry in self.entries())
            parts = [plan.column("uri").filter(plan.column("replaces")) for plan in plans]
        except StoreCorrupt:
            parts = [rows.column("uri") for rows in self.catalog_rows()]
        return pa.chunked_array(parts, pa.string())

    def note_progress(self, shard: int, images: int, worker: str = "") -> None:
        """Note how many images of a running shard are done, and who works on it; losing this does no harm."""
        heartbeats.write(self._shards, shard, heartbeats.Note(images, worker))

    def begun(self, shard: int) -> heartbeats.Note | None:
        """Return the last note of who works, or has worked, on a shard; None if nobody has begun it."""
        return heartbeats.read(self._shards, shard)

    def begun_images(self) -> Iterator[str]:
        """Yield the uris of shards that were begun and not finished: one of these images may have ended the run."""
        with suppress(StoreError):
            begun = set(heartbeats.shards(self._shards)).difference(entry.shard for entry in self.entries())
            for plan in self.shard_plans(sorted(begun)) if begun else ():
                yield from plan.column("uri").to_pylist()

    def watch(self) -> heartbeats.Watch:
        """Return what tells again and again how far the run is, as the workers noted it."""
        return heartbeats.Watch(self._shards)

    def is_open(self) -> bool:
        """Return whether the run still goes on: its driver has neither committed nor abandoned it."""
        return exists(self.folder / layout.RECORD)

    def missing(self, shards: int) -> list[int]:
        """Return the numbers, below ``shards``, of those that are not finished."""
        finished = {entry.shard for entry in self.entries()}
        return [shard for shard in range(shards) if shard not in finished]

    def remove(self) -> None:
        """Delete the journal after the commit; never follow a link in its place."""
        if not (is_link(self.folder) or is_link(self.folder.parent)):
            delete(self.folder / layout.RECORD)  # first: without run.json, the remaining files are ignored
            flush(self.folder, missing_ok=True)  # else it might return after a power cut, and overwrite later runs
            with suppress(StoreError):
                delete(self.folder)

    def _told(self) -> dict[str, Any] | None:
        """Return the content of ``run.json``; None if it is missing, damaged or another run's."""
        try:
            told = read_sealed(self.folder / layout.RECORD)
        except StoreCorrupt:
            return None
        files = told.get("files", {})
        good = told.get("run_id") == self.run_id and is_plain_name(told.get("feature_set")) and isinstance(files, dict)
        return told if good else None

    def _noted(self, name: str, schema: pa.Schema) -> PurePath | None:
        """Return the path of a file that the driver wrote, once it is checked; None if it was not finished.

        Raises:
            StoreCorrupt: the file is not what was written.
        """
        path = self.folder / name
        if name not in self._good:
            told = self._told()
            if told is None:
                return None
            if (files := told.get("files")) is None:  # an older journal, which notes none
                files = {name: None} if exists(path) else {}
            if name not in files:
                return None
            self._check(path, schema, files[name])
            self._good.add(name)
        return path

    def _entry_paths(self) -> list[PurePath]:
        """Return the files that may be entries."""
        return [path for path in listed(self._shards) if path.suffix == layout.JSON]

    def _entry_path(self, shard: int) -> PurePath:
        return self._shards / f"{shard}{layout.JSON}"

    def _entry(self, path: PurePath) -> ShardEntry:
        """Read an entry and check that the files it names lie inside the journal and the feature set.

        Raises:
            StoreCorrupt: the entry is damaged.
        """
        told = read_sealed(path)
        try:
            entry = ShardEntry(**told)
            good = (
                all(map(_is_count, (entry.shard, entry.embedded, entry.deduplicated, *entry.failures.values())))
                and all(isinstance(seconds, int | float) for seconds in entry.seconds.values())
                and isinstance(entry.fragments, list)
                and all(map(_stays_inside, entry.fragments))
                and is_plain_name(entry.rows_file)
                and isinstance(entry.worker, str | None)
                and path == self._entry_path(entry.shard)
            )
        except (TypeError, AttributeError) as error:
            raise StoreCorrupt(f"Expected: a shard's entry in {path}. Got: {error}.") from error
        if not good:
            raise StoreCorrupt(f"Expected: a shard's entry in {path}. Got: values that no run writes.")
        return entry

    def _whole(self, entry: ShardEntry) -> ShardEntry:
        """Return the entry, once its rows are checked.

        Raises:
            StoreCorrupt: the rows are damaged.
        """
        self._check(self._shards / entry.rows_file, CATALOG, entry.rows_sha256)
        return entry

    def _check(self, path: PurePath, schema: pa.Schema, sha256: str | None) -> None:
        """Raise StoreCorrupt unless a file is what this run wrote."""
        with _arrow_errors(path), reading(path) as file:
            if (found := hashlib.file_digest(file, "sha256").hexdigest()) != sha256 and sha256 is not None:
                raise StoreCorrupt(f"{path}: Expected: sha256 {sha256}. Got: {found}.")
            for batch in _read(file):
                batch.validate(full=True)
                own = "run_id" not in schema.names or pc.all(pc.equal(batch.column("run_id"), self.run_id)).as_py()
                known = (schema, LABELS_V1) if schema == LABELS else (schema,)  # an older penult may have written it
                if batch.schema not in known or not own:
                    raise StoreCorrupt(f"Expected in {path}: rows of run {self.run_id}. Got: others.")


def pending(store: PurePath) -> list[Staging]:
    """Return the journals that dead runs left, oldest first; other files in that folder are ignored.

    Raises:
        StoreCorrupt: the folder of journals is a link to another folder.
    """
    root = store / layout.JOURNALS
    _check_root(root)
    names = [path.name for path in listed(root) if is_folder(path) and not is_link(path)]
    return [Staging(store, name) for name in names if is_run_id(name)]


def _check_root(root: PurePath) -> None:
    if is_link(root):
        raise StoreCorrupt(f"Expected: a folder of the store at {root}. Got: a link to another one: remove the link.")


def _batches(path: PurePath) -> Iterator[pa.RecordBatch]:
    with _arrow_errors(path), reading(path) as file:
        yield from _read(file)


def _read(file: io.BufferedIOBase) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(file)
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i)


@contextmanager
def _arrow_errors(path: PurePath) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file into a StoreError for users."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"{path} may not be read: give this user the right to.") from error
    except (pa.ArrowException, OSError, IndexError, MemoryError) as error:
        raise StoreCorrupt(f"Expected: an Arrow file {path} as it was written. Got: {error}.") from error


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _stays_inside(fragment: str) -> bool:
    """Return whether a fragment (JSON) names its files by plain names, so that they lie in its own table's folder."""
    inside = True

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal inside
        paths = [value for name, value in pairs if name == "path"]
        bases = [value for name, value in pairs if name == "base_id" and value is not None]
        inside = inside and all(map(is_plain_name, paths)) and not bases

    try:
        json.loads(fragment, object_pairs_hook=look)
    except (ValueError, RecursionError):
        return False
    return inside
