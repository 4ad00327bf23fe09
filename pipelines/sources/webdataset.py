"""List WebDataset tar shards: members that share a key, the name up to its first dot, are one sample."""

# ruff: noqa: PTH110, PTH119, PTH122

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.errors import BucketError, SourceError, StoreError
from featurestore.storage import cache
from pipelines.sources import places, tar_listings, tars
from pipelines.sources.base import Blob, Entry, SourceKind
from pipelines.sources.listing import Listing, is_system_folder, split_of
from pipelines.sources.rows import DAMAGE
from pipelines.sources.uris import member_uri, mode_of

SIDE_FILES = (".cls", ".json")
MAX_SIDE_FILE_BYTES = 2**20  # a label in a tar is never larger
MEMBER_BYTES = 100  # of a tar, or more, for each byte that is remembered of it
RULES = 1  # grows when something else is found in a tar than before
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_Side = dict[str, tars.Member]  # by suffix


class Tars(SourceKind):
    """WebDataset shards: one tar, or a pattern with braces that names many."""

    name = "tar"
    looked_for = "members such as 0001.jpg with 0001.cls"
    endings = (".tar",)

    def owns(self, location: str) -> bool:
        """Return whether it is called as a tar is.

        Raises:
            SourceError: the first shard is not there.
        """
        if not location.lower().endswith((*self.endings, *tars.COMPRESSED)):
            return False
        first = next(shards_of(location))
        if not (places.locate(first).size >= 0 if places.is_uri(first) else stat.S_ISREG(mode_of(first))):
            raise SourceError(_no_shard(first))
        return True

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the images of all shards."""
        return list_shards(listing)


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``{000..015}`` and ``{a,b}`` lazily, left to right, as bash does; braces do not nest."""
    # braceexpand 0.1.7 makes a list of a million names before the first, and refuses or changes names with { or \.
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


def shards_of(location: str) -> Iterator[str]:
    """Yield the tars that a pattern names; the name of an existing local file is not expanded."""
    return iter([location]) if os.path.exists(location) else expand_braces(location)


def list_shards(listing: Listing) -> Iterator[Entry]:
    """Yield the images of all shards, each with the label, split and group of its sample.

    Raises:
        SourceError: a shard is missing, or a sample's split is not train, val or test.
    """
    tally, shards = _Tally(), shards_of(listing.location)
    while some := list(itertools.islice(shards, places.MAX_ASKED)):
        found = places.locate_all(list(map(places.uri_of, some)))
        for shard, entry in zip(some, found, strict=True):
            if entry.size < 0:
                raise SourceError(_no_shard(shard))
            uri, size, mtime_ns, *_ = entry
            yield from _list_shard(listing, _Shard(uri, places.shown(uri), size, mtime_ns), tally)
    tally.tell(listing)


def _no_shard(shard: str) -> str:
    return f"There is no shard {shard}: check the path and the braces."


class _Shard(NamedTuple):
    uri: str
    path: str  # as it is called in sentences
    size: int
    mtime_ns: int


@dataclass
class _Tally:
    """Counts over the samples of all shards, for the notes."""

    labelled: int = 0
    unlabelled: int = 0
    apart: int = 0  # samples whose side files lie elsewhere in the tar
    loose: int = 0  # samples with side files and no image beside them
    examples: list[str] = field(default_factory=list)

    def count(self, name: str, label: str | None) -> None:
        self.labelled += label is not None
        self.unlabelled += label is None
        if label is None and len(self.examples) < 2:
            self.examples.append(name)

    def add(self, other: _Tally) -> None:
        for name in ("labelled", "unlabelled", "apart", "loose"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = [*self.examples, *other.examples][:2]

    def tell(self, listing: Listing) -> None:
        if self.labelled and self.unlabelled:
            listing.notes.append(
                f"{self.unlabelled:,} of {self.labelled + self.unlabelled:,} images have no label in their tar, "
                f"such as {' and '.join(map(repr, self.examples))}."
            )
        if self.apart:
            listing.notes.append(f"The labels of {self.apart:,} samples were found elsewhere in their tar.")
        if (alone := self.loose - self.apart) > 0:
            listing.notes.append(f"{alone:,} samples in the tars have a .cls or .json file, and no image.")


def _list_shard(listing: Listing, shard: _Shard, tally: _Tally) -> Iterator[Entry]:
    """Yield the images of a tar, from what is remembered of it if it is far away."""
    if (found := _remembered(shard)) is not None:
        told, entries = found
        for kind, count in told["ignored"].items():
            listing.ignore(kind, count)
        for problem in told["problems"]:
            listing.problems.append(problem)
        for prefix in told["incomplete"]:
            listing.add_incomplete(prefix)
        tally.add(_Tally(**told["tally"]))
        yield from entries
        return
    try:
        with places.open_blob(shard.uri) as blob:
            yield from _images_of(blob, shard, listing, tally)
    except OSError as error:
        listing.could_not_list(shard.uri + "#", f"{shard.path!r} cannot be read: {error.strerror or error}.")


def _remembered(shard: _Shard) -> tuple[dict[str, Any], Iterator[Entry]] | None:
    """Return what was found in a far tar, now or before it was as it is; None for one that is near or cannot be read.

    A near tar is listed from its headers in no time; of a far one its listing may be a download.
    """
    if places.in_flight(shard.uri) == 1:
        return None
    key = f"{RULES} {shard.uri} {shard.size} {shard.mtime_ns}"
    place = cache.place_of(cache.OBJECTS, key, "members.arrow")
    own, tally = Listing(shard.path, "tar"), _Tally()

    def told() -> dict[str, Any]:
        of_listing = {"ignored": own.ignored, "problems": own.problems, "incomplete": own.incomplete}
        return of_listing | {"tally": asdict(tally)}

    def fetch(path: Path) -> None:
        with places.open_blob(shard.uri) as blob:
            if (blob.size, blob.mtime_ns) != (shard.size, shard.mtime_ns):
                raise OSError(f"{shard.uri} changed")
            tar_listings.write(path, _images_of(blob, shard, own, tally), told)

    try:
        if not place.is_file() and not cache.has_room(shard.size // MEMBER_BYTES):
            return None
        return tar_listings.read(cache.kept(place, fetch), shard.uri, shard.mtime_ns)
    except BucketError:
        raise
    except (StoreError, *DAMAGE):
        with suppress(OSError):
            place.unlink()
        return None


def _images_of(blob: Blob, shard: _Shard, listing: Listing, tally: _Tally) -> Iterator[Entry]:
    """Yield the images of an open tar; raise OSError if it cannot be read."""
    names: set[str] = set()
    apart: dict[str, _Side] | None = None
    members = _members(blob, shard, listing)
    for key, members_of_sample in itertools.groupby(members, key=lambda member: _sample_key(member.name)):
        pictures, side_files = _sort_out(members_of_sample, listing)
        tally.loose += not pictures and bool(side_files)
        if not pictures:
            continue
        values = _side_data(blob, shard.path, side_files, listing)
        if values[0] is None:  # read the whole tar once more, for side files that lie apart
            apart = _side_files_apart(blob, shard) if apart is None else apart
            if more := apart.pop(key, None):
                tally.apart += 1
                values = _side_data(blob, shard.path, more | side_files, listing)
        for member in pictures:
            if member.name in names:
                listing.problems.append(f"{shard.path!r} has {member.name!r} twice; the first one is used.")
                continue
            names.add(member.name)
            tally.count(member.name, values[0])
            yield Entry(member_uri(shard.uri, member.name), member.size, shard.mtime_ns, member.offset, *values)


def _members(blob: Blob, shard: _Shard, listing: Listing) -> Iterator[tars.Member]:
    """Yield the files without hidden and system files such as macOS's ``._1.jpg``, which would end a sample."""
    try:
        for member in tars.members(blob):
            folder, _, base = member.name.rpartition("/")
            if member.kind == "other":
                listing.ignored["link or special member"] += 1
            elif member.kind == "folder":
                continue
            elif base.startswith("."):
                listing.ignored["hidden"] += 1
            elif any(map(is_system_folder, folder.split("/"))):
                listing.ignored["system folder"] += 1
            else:
                yield member
    except tars.TarDamaged as error:
        problem = f"{shard.path!r} is damaged or cut off at {error}; what is before it is used."
        listing.could_not_list(shard.uri + "#", problem)


def _sample_key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sort_out(members: Iterator[tars.Member], listing: Listing) -> tuple[list[tars.Member], _Side]:
    pictures: list[tars.Member] = []
    side_files: _Side = {}
    for member in members:
        base = os.path.basename(member.name)
        suffix = os.path.splitext(base)[1].lower()
        if suffix in SIDE_FILES:
            side_files[suffix] = member
        elif listing.is_image(base):
            pictures.append(member)
    return pictures, side_files


def _side_files_apart(blob: Blob, shard: _Shard) -> dict[str, _Side]:
    """Return the side files of a tar that have no image beside them, by their sample's key.

    A tar whose samples lie together has none. In other tars they take memory, less than the tar's size.
    """
    apart: dict[str, _Side] = {}
    unsaid = Listing(shard.path, "tar")  # not shown: the first pass reports the same
    members = _members(blob, shard, unsaid)
    for key, members_of_sample in itertools.groupby(members, key=lambda member: _sample_key(member.name)):
        pictures, side_files = _sort_out(members_of_sample, unsaid)
        if side_files and not pictures:
            apart[key] = apart.get(key, {}) | side_files
    return apart


def _side_data(blob: Blob, path: str, side_files: _Side, listing: Listing) -> tuple[str | None, str | None, str | None]:
    """Read a sample's label, split and group from its .cls and .json; the label in .cls takes precedence."""
    label = split = group = None
    if member := side_files.get(".json"):
        try:
            values = json.loads(blob.pread(min(member.size, MAX_SIDE_FILE_BYTES), member.offset))
            label, word, group = (_text(values.get(key)) for key in ("label", "split", "group"))
        except (ValueError, AttributeError, RecursionError) as error:
            listing.problems.append(
                f"{path!r}: {member.name!r} is not a JSON object with label, split or group ({error})."
            )
        else:
            split = split_of(word, f"{path}, {member.name!r}")
    if member := side_files.get(".cls"):
        data = blob.pread(min(member.size, MAX_SIDE_FILE_BYTES), member.offset)
        encoding = "utf-16" if data.startswith(UTF_16) else "utf-8-sig"
        label = data.decode(encoding, "backslashreplace").strip() or label
    return label, split, group


def _text(value: Any) -> str | None:
    """Return a JSON value as a string: 3, 3.0 and "3" are one label; blanks and NaN give None."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"Expected: a string or an integer. Got: {value!r}")
    return str(value).encode("utf-8", "backslashreplace").decode()
