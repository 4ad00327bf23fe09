"""List a corpus and read its files: a folder per class, a manifest, or WebDataset tar shards.

Listing streams: it holds one directory's names, one batch of a manifest or one sample of a tar at a time.
Nothing is dropped silently. A file that is not an image by its name is counted in ``Source.ignored``. A place that
cannot be listed is reported in ``Source.problems`` and ``Source.incomplete``. An image that cannot be read is still
listed as an entry, and fails when it is read.
"""

# ruff: noqa: PTH116, PTH119, PTH120

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from featurestore.errors import NoPictures, SourceError
from pipelines.sources.class_names import notes_on_classes
from pipelines.sources.folders import list_folder
from pipelines.sources.listing import MAX_KINDS, MAX_PROBLEM_LENGTH, MAX_PROBLEMS, Listing, Problems, has_image_name
from pipelines.sources.manifests import list_manifest
from pipelines.sources.uris import (
    MAX_FILE_BYTES,
    Entry,
    local_path,
    locate,
    member_of,
    path_of,
    printable,
    read,
    source_uri,
    uri_of,
)
from pipelines.sources.webdataset import expand_braces, list_shards, shards_of

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_KINDS",
    "MAX_PROBLEMS",
    "MAX_PROBLEM_LENGTH",
    "Entry",
    "NoPictures",
    "Problems",
    "Source",
    "expand_braces",
    "list_source",
    "locate",
    "member_of",
    "path_of",
    "printable",
    "read",
    "source_uri",
    "uri_of",
]

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_LISTERS: dict[str, Callable[[Listing], Iterator[Entry]]] = {
    "folder": list_folder,
    "manifest": list_manifest,
    "tar": list_shards,
}
_LOOKED_FOR = {
    "folder": "picture files (.jpg, .png, .webp, .gif, .bmp, .tif …), in sub-folders named after their class",
    "manifest": "at least one row",
    "tar": "members such as 0001.jpg with 0001.cls",
}


@dataclass
class Source(Listing):
    """A corpus; iterate to list it, in the same order each time.

    Attributes, after an iteration (and those of Listing):
        classes: the number of entries of each label.
        unlabelled: the number of entries without a label.
        splits: the number of entries of each given split.
        missing: the number of entries that are not a readable regular file.
    """

    classes: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    missing: int = 0

    @property
    def uri(self) -> str:
        """The URI of this corpus, the same however its location was typed."""
        return source_uri(self.location)

    @property
    def labelled(self) -> int:
        """The number of entries with a label."""
        return self.classes.total()

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            NoPictures: there is no image in what could be listed.
            SourceError: a manifest's row is wrong, a shard is missing, or the folder cannot be read.
        """
        self.forget()
        self.classes, self.splits = Counter(), Counter()
        self.unlabelled = self.missing = 0
        classes, splits = self.classes, self.splits
        for entry in _LISTERS[self.kind](self):
            if entry.label is None:
                self.unlabelled += 1
            else:
                classes[entry.label] += 1
            if entry.split is not None:
                splits[entry.split] += 1
            if entry.size < 0:
                self.missing += 1
            yield entry
        if not classes and not self.unlabelled:
            raise NoPictures(self._nothing_found())
        for note in notes_on_classes(classes):
            self.notes.append(note)

    def _nothing_found(self) -> str:
        others = ", ".join(f"{count} × {name}" for name, count in self.ignored.most_common(5))
        seen = "; ".join(self.problems[:3] + ([f"only {others}"] if others else [])) or "nothing"
        return f"{self.location} has no pictures. Expected: {_LOOKED_FOR[self.kind]}. Got: {seen}."


def list_source(source: str | os.PathLike[str], *, split_folders: bool = True) -> Source:
    """Recognise a corpus: a folder, a .csv, .tsv or .parquet manifest, or .tar shards with brace expansion.

    Args:
        source: where it is; ``~`` is expanded.
        split_folders: whether train, val and test folders above the class folders are splits, see ``folders``.

    Raises:
        SourceError: nothing is there, or its kind is not supported.
    """
    location = local_path(source)
    lower = location.lower()
    mode = _mode(location)
    if stat.S_ISDIR(mode):
        return Source(location, "folder", split_folders)
    if lower.endswith(_COMPRESSED_TAR):
        raise SourceError(
            f"{location} is a compressed tar, which cannot be read at random: decompress it to .tar first."
        )
    if lower.endswith(".tar"):
        first = next(shards_of(location))
        if not stat.S_ISREG(_mode(first)):
            raise SourceError(f"There is no shard {first}: check the path and the braces.")
        return Source(location, "tar")
    if not mode:
        raise SourceError(f"There is no {location}: name a folder, a manifest or a tar.")
    if lower.endswith((".csv", ".tsv", ".parquet")):
        return Source(location, "manifest")
    if has_image_name(os.path.basename(location)):
        folder = os.path.dirname(location) or "."
        raise SourceError(f"{location} is a single picture: name the folder that holds it, {folder}.")
    raise SourceError(f"Expected: a folder, or a .csv, .tsv, .parquet or .tar file. Got: {location}.")


def _mode(path: str) -> int:
    """Return the mode of a file or folder, 0 if there is none.

    Raises:
        SourceError: the mode cannot be read.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return 0
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
