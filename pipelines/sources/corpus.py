"""List a corpus and read its files: a folder per class, a manifest, WebDataset tar shards, or a kind from outside.

Listing streams: it holds one directory's names, one batch of a manifest or one sample of a tar at a time.
Nothing is dropped silently. A file that is not an image by its name is counted in ``Source.ignored``. A place that
cannot be listed is reported in ``Source.problems`` and ``Source.incomplete``. An image that cannot be read is still
listed as an entry, and fails when it is read.
"""

# ruff: noqa: PTH119, PTH120

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from featurestore.errors import NoPictures, SourceError
from pipelines.sources import kinds
from pipelines.sources.base import Entry
from pipelines.sources.class_names import notes_on_classes
from pipelines.sources.listing import (
    MAX_KINDS,
    MAX_PROBLEM_LENGTH,
    MAX_PROBLEMS,
    Hints,
    Listing,
    Problems,
    has_image_name,
)
from pipelines.sources.places import is_foreign, is_uri, locate, read, schemes, source_uri
from pipelines.sources.uris import local_path, member_of, mode_of, path_of, printable, uri_of
from pipelines.sources.webdataset import expand_braces

__all__ = [
    "MAX_KINDS",
    "MAX_PROBLEMS",
    "MAX_PROBLEM_LENGTH",
    "Entry",
    "Hints",
    "NoPictures",
    "Problems",
    "Source",
    "expand_braces",
    "is_uri",
    "list_source",
    "locate",
    "member_of",
    "path_of",
    "printable",
    "read",
    "source_uri",
    "uri_of",
]


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
    def is_label_file(self) -> bool:
        """Whether it is of a kind that `penult label` reads."""
        return kinds.named(self.kind).is_label_file

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
        for entry in kinds.named(self.kind).entries(self):
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
        if (self.hints.image_column or self.hints.label_column) and not self.columns:
            self.notes.append(f"{self.location} has no columns: --image-column and --label-column were not used.")
        for note in notes_on_classes(classes):
            self.notes.append(note)

    def _nothing_found(self) -> str:
        others = ", ".join(f"{count} × {name}" for name, count in self.ignored.most_common(5))
        seen = "; ".join(self.problems[:3] + ([f"only {others}"] if others else []))
        seen = seen.removesuffix(".") or "nothing"
        return f"{self.location} has no images. Expected: {kinds.named(self.kind).looked_for}. Got: {seen}."


def list_source(source: str | os.PathLike[str], hints: Hints = Hints()) -> Source:
    """Recognise a corpus: a folder, a .csv, .tsv or .parquet manifest, .tar shards with brace expansion, and so on.

    Args:
        source: where it is; ``~`` is expanded.
        hints: where a guess would be wrong.

    Raises:
        SourceError: nothing is there, or its kind is not supported.
    """
    location = local_path(source)
    if (kind := kinds.of_location(location)) is not None:
        return Source(location, kind.name, hints)
    if is_foreign(location):
        raise SourceError(f"Expected: a path, or a URI that begins with {schemes()}. Got: {location}.")
    if not is_uri(location) and not mode_of(location):
        raise SourceError(f"There is no {location}: name a folder, a manifest or a tar.")
    if has_image_name(os.path.basename(location)):
        folder = os.path.dirname(location) or "."
        raise SourceError(f"{location} is a single image: name the folder that holds it, {folder}.")
    *most, last = kinds.endings()
    raise SourceError(f"Expected: a folder, or a {', '.join(most)} or {last} file. Got: {location}.")
