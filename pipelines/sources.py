"""List a corpus and read its files: a folder per class, a manifest, or WebDataset tar shards.

Listing streams: it holds one directory's names, one batch of a manifest or one sample of a tar at a time.
Nothing vanishes in silence: a file that cannot be a picture is counted in ``Source.ignored``, a place that
cannot be read is told in ``Source.problems``, and a picture that cannot be read is an entry that fails later.

A picture's identity is its URI: ``file://`` and the percent-encoded bytes of the absolute path, so that names
that are not UTF-8 survive; a member of a tar adds ``#`` and its percent-encoded name.
"""

# Paths stay strings: pathlib costs more than the stat calls, and changes names such as "./a".
# ruff: noqa: PTH100, PTH110, PTH112, PTH113, PTH116, PTH118, PTH119, PTH120, PTH122, PTH123

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from featurestore.errors import ImageError, SourceError
from pipelines import tars

MAX_FILE_BYTES = 256 * 2**20

# Formats that images.py refuses are listed too: each becomes a row that says why.
IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"),
        *("apng", "avif", "dds", "eps", "exr", "hdr", "heic", "heif", "ico", "j2k", "jp2", "jxl"),
        *("pbm", "pgm", "pnm", "ppm", "psd", "qoi", "svg", "tga"),
    )
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_SIDE_FILE_BYTES = 2**20  # a label in a tar is never larger
MAX_KINDS = 100  # of files left out
MAX_PROBLEMS = 1000
MAX_PROBLEM_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One source picture.

    Attributes:
        uri: where it is; the key of its catalog row.
        size: in bytes, -1 if it is not a readable regular file.
        mtime_ns: of the file, for a tar member of the tar; 0 if unknown.
        offset: of a tar member's data within the tar, -1 for a plain file.
        label: class name, or None.
        split: "train", "val", "test", or None.
        group: pictures of one group are never parted by a split; or None. In a folder, files of a class whose names
            agree up to ``_nohash_`` are one, the rule of TensorFlow's retrain.py.
    """

    uri: str
    size: int
    mtime_ns: int
    offset: int = -1
    label: str | None = None
    split: str | None = None
    group: str | None = None


class Problems(list[str]):
    """Sentences for people, cut short where there are too many, or one is too long, for a run's record."""

    more = 0

    def append(self, problem: str) -> None:
        """Add a sentence, or count it in the last one."""
        if len(self) < MAX_PROBLEMS:
            super().append(problem[:MAX_PROBLEM_LENGTH])
        else:
            self.more += 1
            self[-1] = f"… and {self.more + 1:,} more."


@dataclass
class Source:
    """A corpus; iterate to list it, in the same order each time.

    Attributes:
        location: what the user named.
        kind: "folder", "manifest" or "tar".
        ignored: after an iteration, the number of files left out by extension.
        problems: after an iteration, what could not be listed, one sentence each.
        labelled: after an iteration, the number of entries with a label.
    """

    location: str
    kind: str
    ignored: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    labelled: int = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            SourceError: a manifest's row is wrong, a shard is missing, or there is no picture at all.
        """
        self.ignored.clear()
        self.problems = Problems()
        self.labelled = 0
        found = False
        lister = {"folder": _list_folder, "manifest": _list_manifest, "tar": _list_tars}[self.kind]
        for entry in lister(self):
            found = True
            self.labelled += entry.label is not None
            yield entry
        if not found:
            raise SourceError(self._nothing_found())

    def _nothing_found(self) -> str:
        looked_for = {
            "folder": "picture files (.jpg, .png, .webp, .gif, .bmp, .tif …), in sub-folders named after their class",
            "manifest": "at least one row",
            "tar": "members such as 0001.jpg with 0001.cls",
        }[self.kind]
        others = ", ".join(f"{count} × {name}" for name, count in self.ignored.most_common(5))
        seen = "; ".join(self.problems[:3] + ([f"only {others}"] if others else [])) or "nothing"
        return f"{self.location} has no pictures. Expected: {looked_for}. Got: {seen}."


def list_source(source: str | os.PathLike[str]) -> Source:
    """Recognise a corpus: a folder, a .csv, .tsv or .parquet manifest, or .tar shards with brace expansion.

    Raises:
        SourceError: nothing is there, or it is of no known kind.
    """
    location = os.fspath(source)
    lower = location.lower()
    if os.path.isdir(location):
        return Source(location, "folder")
    if lower.endswith(_COMPRESSED_TAR):
        raise SourceError(
            f"{location} is a compressed tar, which cannot be read at random: decompress it to .tar first."
        )
    if lower.endswith(".tar"):
        first = next(_shards(location))
        if not os.path.isfile(first):
            raise SourceError(f"There is no shard {first}: check the path and the braces.")
        return Source(location, "tar")
    if not os.path.exists(location):
        raise SourceError(f"There is no {location}: name a folder, a manifest or a tar.")
    if lower.endswith((".csv", ".tsv", ".parquet")):
        return Source(location, "manifest")
    raise SourceError(f"Expected: a folder, or a .csv, .tsv, .parquet or .tar file. Got: {location}.")


# --- URIs


def uri_of(path: str | bytes | os.PathLike[str], member: str | None = None) -> str:
    """Return the URI of a file (made absolute, links not resolved), or of a member of a tar."""
    uri = "file://" + quote_from_bytes(os.path.abspath(os.fsencode(path)))
    return uri if member is None else f"{uri}#{quote_from_bytes(member.encode('utf-8', 'surrogateescape'))}"


def path_of(uri: str) -> str:
    """Return the path of a ``file://`` URI, for a tar member that of the tar.

    Raises:
        SourceError: the URI is of another scheme or host, or its path is not absolute.
    """
    path = uri.removeprefix("file://localhost").removeprefix("file://").partition("#")[0]
    if not uri.startswith("file://") or not path.startswith("/"):
        raise SourceError(f"Expected: a URI such as file:///folder/picture.jpg. Got: {uri}.")
    return os.fsdecode(unquote_to_bytes(path))


def member_of(uri: str) -> str | None:
    """Return the member's name of a tar member's URI, None for a plain file."""
    _, hash_sign, member = uri.partition("#")
    return unquote_to_bytes(member).decode("utf-8", "surrogateescape") if hash_sign else None


def locate(uri: str) -> Entry:
    """Return the unlabelled entry of a URI; size -1 where there is no such regular file or member.

    The headers of a tar are scanned once and remembered while the tar does not change.
    """
    path, member = path_of(uri), member_of(uri)
    size, mtime_ns = _size_and_mtime(path)
    if member is None or size < 0:
        return Entry(uri, size, mtime_ns)
    offset, size = _members(path, size, mtime_ns).get(member, (-1, -1))
    return Entry(uri, size, mtime_ns, offset)


# --- reading


def read(uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
    """Read a picture's bytes: a plain file whole, a tar member at its offset (found if not given).

    Only regular files are opened, so a FIFO or a device never blocks.

    Returns:
        data, its size in bytes, and the mtime in ns of the file that was open while it was read.

    Raises:
        ImageError: "vanished", "unreadable", "truncated" (a tar ends within the member) or "too_large".
    """
    path = path_of(uri)
    if offset < 0 and member_of(uri) is not None:
        found = locate(uri)
        if found.offset < 0:
            raise ImageError("vanished", f"{path!r} has no member {member_of(uri)!r} any more.")
        offset, size = found.offset, found.size
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("unreadable", f"{path!r} is not a regular file.")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _read_open(descriptor, path, offset, size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        gone = isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise ImageError("vanished" if gone else "unreadable", f"Cannot read {path!r}: {error}.") from error
    except MemoryError as error:
        raise ImageError("too_large", f"There is not enough memory to read {path!r}.") from error


def _read_open(descriptor: int, path: str, offset: int, size: int) -> tuple[bytes, int, int]:
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):  # swapped between stat and open
        raise ImageError("unreadable", f"{path!r} is not a regular file.")
    plain = offset < 0
    start, size = (0, info.st_size) if plain else (offset, size)
    if size > MAX_FILE_BYTES:
        raise ImageError("too_large", f"{size:,} bytes are more than the limit of {MAX_FILE_BYTES:,}.")
    data = _pread(descriptor, size, start)
    if len(data) < size and not plain:
        raise ImageError("truncated", f"{path!r} ends within the member at byte {offset}.")
    if len(data) < size or os.fstat(descriptor).st_mtime_ns != info.st_mtime_ns:
        raise ImageError("unreadable", f"{path!r} changed while it was read: run again.")
    return data, size, info.st_mtime_ns


def _pread(descriptor: int, size: int, start: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        size, start = size - len(part), start + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _size_and_mtime(path: str) -> tuple[int, int]:
    """Return (size, mtime_ns) of a regular file, links followed, else (-1, 0)."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    return (info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (-1, 0)


def _is_image(name: str, ignored: Counter[str]) -> bool:
    """Whether a file counts as a picture by its name; if not, count why."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        ignored["hidden"] += 1
    elif suffix in IMAGE_EXTENSIONS:
        return True
    else:
        kind = printable(suffix) or "no extension"
        # Names such as "scan.000001" have an extension each.
        ignored[kind if kind in ignored or len(ignored) < MAX_KINDS else "other"] += 1
    return False


# --- folder


def _list_folder(source: Source) -> Iterator[Entry]:
    """Yield each folder's files by name, then those of its sub-folders; the first level gives the labels."""
    pending: list[tuple[str, str | None, frozenset[tuple[int, int]]]]
    pending = [(os.path.abspath(source.location), None, frozenset())]
    while pending:
        folder, label, above = pending.pop()
        try:
            info = os.stat(folder)
            here = (info.st_dev, info.st_ino)
            if here in above:
                source.problems.append(f"{folder!r} links back to a folder above it and was not followed.")
                continue
            with os.scandir(folder) as items:
                # Names alone are kept: a DirEntry is ten times as large.
                names = sorted((_is_folder(item), item.name) for item in items)
        except OSError as error:
            source.problems.append(f"The folder {folder!r} cannot be read: {error.strerror}.")
            continue
        prefix = uri_of(folder).rstrip("/") + "/"
        below = []
        for is_folder, name in names:
            path = os.path.join(folder, name)
            if not is_folder:
                if _is_image(name, source.ignored):
                    size, mtime_ns = _size_and_mtime(path)
                    uri = prefix + quote_from_bytes(os.fsencode(name))
                    yield Entry(uri, size, mtime_ns, -1, label, None, _nohash_group(label, name))
            elif name.startswith("."):
                source.ignored["hidden folder"] += 1
            else:
                below.append((path, label if above else printable(name), above | {here}))
        pending.extend(reversed(below))


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself: a file that cannot be read
        return False


def _nohash_group(label: str | None, name: str) -> str | None:
    """The class and the name before ``_nohash_``; None for other names."""
    before, mark, _ = name.partition("_nohash_")
    return f"{label or ''}/{printable(before)}" if mark else None


def printable(name: str) -> str:
    """A name as text that is valid UTF-8, as a label and a run's record must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# --- manifest


def _list_manifest(source: Source) -> Iterator[Entry]:
    folder = os.path.dirname(os.path.abspath(source.location))
    seen: dict[bytes, tuple[str | None, ...]] = {}
    shared: dict[tuple[str | None, ...], tuple[str | None, ...]] = {}  # rows that say the same share a tuple
    for number, row in enumerate(_manifest_rows(source.location), start=1):
        place = f"{source.location}, row {number}"
        uri = _manifest_uri(row, folder, place)
        label, split, group = row.get("label") or None, _split(row.get("split"), place), row.get("group") or None
        values = shared.setdefault((label, split, group), (label, split, group))
        digest = hashlib.blake2b(uri.encode(), digest_size=16).digest()
        if digest in seen:
            for name, old, new in zip(("label", "split", "group"), seen[digest], values, strict=True):
                if old != new:
                    raise SourceError(f"{place}: {uri} has {name} {new!r} here and {old!r} in a row above.")
            continue
        seen[digest] = values
        found = locate(uri)
        yield Entry(uri, found.size, found.mtime_ns, found.offset, label, split, group)


def _manifest_rows(location: str) -> Iterator[dict[str, str | None]]:
    """Stream a manifest's known columns as strings."""
    import pyarrow as pa

    try:
        batches = _parquet_batches(location) if location.lower().endswith(".parquet") else _csv_batches(location)
        for batch in batches:
            for column in ("path", "uri", "label", "split", "group"):
                if column in batch.schema.names:
                    index = batch.schema.get_field_index(column)
                    batch = batch.set_column(index, column, batch.column(index).cast(pa.string()))
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"The manifest {location} cannot be read: {error}.") from error


def _csv_batches(location: str) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter="\t" if location.lower().endswith(".tsv") else ",", newlines_in_values=True)
    with csv.open_csv(location, parse_options=parse) as reader:
        columns = _manifest_columns(reader.schema.names, location)
    # Types are given, not inferred: a label 007 stays 007, and the 10,000th row cannot change a column's type.
    convert = csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
    with csv.open_csv(location, parse_options=parse, convert_options=convert) as reader:
        yield from reader


def _parquet_batches(location: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(location) as file:
        yield from file.iter_batches(10_000, columns=_manifest_columns(file.schema_arrow.names, location))


def _manifest_columns(names: list[str], location: str) -> list[str]:
    if "path" not in names and "uri" not in names:
        raise SourceError(
            f"{location} lists no pictures. Expected: a column path or uri. Got: {', '.join(map(repr, names))}."
        )
    known: list[str] = [name for name in ("path", "uri", "label", "split", "group") if name in names]
    if twice := [name for name in known if names.count(name) > 1]:
        raise SourceError(f"{location} has the column {twice[0]} twice: rename one of them.")
    return known


def _manifest_uri(row: dict[str, str | None], folder: str, place: str) -> str:
    text = row.get("path") or row.get("uri")
    if not text:
        raise SourceError(f"{place}: the path is empty.")
    if text.startswith("file://"):
        try:
            return uri_of(path_of(text), member_of(text))
        except SourceError as error:
            raise SourceError(f"{place}: {error}") from error
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise SourceError(f"{place}: only files can be read. Expected: a path or file:// URI. Got: {text}.")
    return uri_of(os.path.join(folder, text))


def _split(word: str | None, place: str) -> str | None:
    """Normalise a split's name; empty is none."""
    if not word:
        return None
    try:
        return _SPLITS[word.strip().lower()]
    except KeyError:
        raise SourceError(f"{place}: Expected: split train, val or test. Got: {word!r}.") from None


# --- tar


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{000..015}`` and ``{a,b}`` lazily, left to right, as bash does; braces do not nest."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1]):
        for rest in expand_braces(pattern[match.end() :]):
            yield pattern[: match.start()] + choice + rest


def _choices(inside: str) -> Iterator[str]:
    if limits := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = int(limits[1]), int(limits[2])
        padded = any(len(text) > 1 and text.startswith("0") for text in limits.groups())
        width = max(map(len, limits.groups())) if padded else 1
        step = 1 if last >= first else -1
        for number in range(first, last + step, step):
            yield f"{number:0{width}}"
    elif "," in inside:
        yield from inside.split(",")
    else:
        yield "{" + inside + "}"


def _shards(location: str) -> Iterator[str]:
    return iter([location]) if os.path.exists(location) else expand_braces(location)


def _list_tars(source: Source) -> Iterator[Entry]:
    for shard in _shards(source.location):
        size, mtime_ns = _size_and_mtime(shard)
        if size < 0:
            raise SourceError(f"There is no shard {shard}: check the path and the braces.")
        yield from _list_tar(source, os.path.abspath(shard), mtime_ns)


def _list_tar(source: Source, path: str, mtime_ns: int) -> Iterator[Entry]:
    """Yield a shard's pictures; members in a row that share a key (up to the first dot) are one sample."""
    names: set[str] = set()
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        source.problems.append(f"{path!r} cannot be read: {error.strerror}.")
        return
    with file:
        members = _tar_members(file.fileno(), path, source.problems, source.ignored)
        for _, sample in itertools.groupby(members, key=lambda member: _sample_key(member.name)):
            pictures = []
            side_files = {}
            for member in sample:
                base = os.path.basename(member.name)
                suffix = os.path.splitext(base)[1].lower()
                if suffix in (".cls", ".json") and not base.startswith("."):
                    side_files[suffix] = member
                elif _is_image(base, source.ignored):
                    pictures.append(member)
            label, split, group = _side_data(file.fileno(), path, side_files, source.problems)
            for member in pictures:
                if member.name in names:
                    source.problems.append(f"{path!r} has {member.name!r} twice; the first one is used.")
                    continue
                names.add(member.name)
                uri = uri_of(path, member.name)
                yield Entry(uri, member.size, mtime_ns, member.offset, label, split, group)


def _sample_key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _tar_members(descriptor: int, path: str, problems: Problems, ignored: Counter[str]) -> Iterator[tars.Member]:
    """Stream the regular members; whatever ends the archive early is a problem."""
    try:
        for member in tars.members(descriptor):
            if member.kind == "file":
                yield member
            elif member.kind == "other":
                ignored["link or special member"] += 1
    except (tars.TarDamaged, OSError) as error:
        problems.append(f"{path!r} is damaged or cut off at {error}; what is before it is used.")


def _side_data(
    descriptor: int, path: str, side_files: dict[str, tars.Member], problems: Problems
) -> tuple[str | None, str | None, str | None]:
    """Read a sample's label, split and group from its .cls and .json; .cls has the last word on the label."""
    label = split = group = None
    if member := side_files.get(".json"):
        try:
            values = json.loads(_pread(descriptor, min(member.size, _SIDE_FILE_BYTES), member.offset))
            label, word, group = (_text(values.get(key)) for key in ("label", "split", "group"))
        except (ValueError, AttributeError, RecursionError) as error:
            problems.append(f"{path!r}: {member.name!r} is not a JSON object with label, split or group ({error}).")
        else:
            split = _split(word, f"{path}, {member.name!r}")
    if member := side_files.get(".cls"):
        text = _pread(descriptor, min(member.size, _SIDE_FILE_BYTES), member.offset)
        label = text.decode("utf-8", "backslashreplace").strip() or label
    return label, split, group


def _text(value: Any) -> str | None:
    """A JSON value as a string; 3 and "3" are one label."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"Expected: a string or an integer. Got: {value!r}")
    return str(value).encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=4)
def _members(path: str, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Map member names to (offset, size); size and mtime are there to forget a tar that changed."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with open(path, "rb") as file:
            for member in _tar_members(file.fileno(), path, Problems(), Counter()):
                found.setdefault(member.name, (member.offset, member.size))
    except OSError:
        return {}
    return found
