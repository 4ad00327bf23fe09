"""Record what one pass over a corpus finds besides its images: files left out, problems, and notes.

Also the names that count as images, system folders and splits.
"""

# ruff: noqa: PTH122

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from featurestore.errors import SourceError
from pipelines.sources.uris import printable

# Formats that the decoder refuses are listed too: each such file becomes a row that says why.
IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"),
        *("apng", "avif", "dds", "eps", "exr", "hdr", "heic", "heif", "ico", "j2k", "jp2", "jxl"),
        *("pbm", "pgm", "pnm", "ppm", "psd", "qoi", "svg", "tga"),
    )
)
# Folders that systems and programs create beside images: Synology, QNAP, macOS, Windows, file systems, Jupyter, Python.
SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@synoresource", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),
        *("$recycle.bin", "recycler", "system volume information", "found.000", "lost+found"),
        *("__pycache__",),
    )
)
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
MAX_KINDS = 100  # extensions of files left out that are counted apart
MAX_PROBLEMS = 1000
MAX_PROBLEM_LENGTH = 1000
MAX_INCOMPLETE = 10_000
ANYWHERE = ""  # a prefix of every URI


class Problems(list[str]):
    """Sentences for people to read, cut to the size of a run's record: a limited number of limited length."""

    more = 0

    def append(self, problem: str) -> None:
        """Add a sentence; beyond ``MAX_PROBLEMS``, only count it in the last one."""
        if len(self) < MAX_PROBLEMS:
            super().append(problem[:MAX_PROBLEM_LENGTH])
        else:
            self.more += 1
            self[-1] = f"… and {self.more + 1:,} more."


@dataclass(frozen=True)
class Hints:
    """What is said of a source where a guess would be wrong.

    Attributes:
        split_folders: whether train, val and test folders above the class folders are splits.
        image_column: the column of a table that holds the images, or of a manifest that holds their paths.
        label_column: the column that holds the label.
    """

    split_folders: bool = True
    image_column: str | None = None
    label_column: str | None = None


@dataclass
class Listing:
    """A corpus, and what the last pass over it found besides its images.

    Attributes:
        location: its path, or its pattern of tars.
        kind: the name of its kind in the table of ``kinds``, such as "folder".
        hints: where a guess would be wrong.
        ignored: the number of files left out, per extension or reason.
        problems: what could not be listed, one sentence each.
        incomplete: prefixes of URIs below which images may be that could not be listed; each has a sentence in
            ``problems``. Images listed there before must not be taken for deleted.
        notes: how the corpus was understood, one sentence each.
        columns: for a manifest, maps "path", "label", "split" and "group" to the column's name as written in the file;
            for a table, "image" instead of "path".
    """

    location: str
    kind: str
    hints: Hints = Hints()
    ignored: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    incomplete: list[str] = field(default_factory=list)
    notes: Problems = field(default_factory=Problems)
    columns: dict[str, str] = field(default_factory=dict)

    def forget(self) -> None:
        """Clear what the last pass found, before a new one."""
        self.ignored.clear()
        self.problems, self.notes = Problems(), Problems()
        self.incomplete, self.columns = [], {}

    def could_not_list(self, prefix: str, problem: str) -> None:
        """Record that images below a prefix of URIs may not have been listed."""
        self.problems.append(problem)
        self.add_incomplete(prefix)

    def add_incomplete(self, prefix: str) -> None:
        """Record a prefix of URIs as ``could_not_list`` does, without a sentence."""
        if len(self.incomplete) < MAX_INCOMPLETE:
            self.incomplete.append(prefix)
        else:  # too many to remember: no image may be taken for deleted
            self.incomplete[-1] = ANYWHERE

    def is_image(self, name: str) -> bool:
        """Return whether a file counts as an image by its name; if not, count why in ``ignored``."""
        if has_image_name(name):
            return True
        if name.startswith("."):
            self.ignored["hidden"] += 1
        else:
            self.ignore(printable(os.path.splitext(name)[1].lower()) or "no extension")
        return False

    def ignore(self, kind: str, count: int = 1) -> None:
        """Count files left out, by their extension: of names such as "scan.000001" each has one of its own."""
        self.ignored[kind if kind in self.ignored or len(self.ignored) < MAX_KINDS else "other"] += count


def has_image_name(name: str) -> bool:
    """Return whether a file's name is that of an image."""
    return name[name.rfind(".") :].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def is_system_folder(name: str) -> bool:
    """Return whether a folder's name is one of ``SYSTEM_FOLDERS``, in any case."""
    return name.lower() in SYSTEM_FOLDERS


def is_aside(folder: str) -> bool:
    """Return whether a folder is hidden or a system folder by its name, and therefore not a class."""
    return folder.startswith(".") or is_system_folder(folder)


def split_of(word: str | None, place: str) -> str | None:
    """Normalise a split's name; blanks and None give None.

    Raises:
        SourceError: the word is not a split's name.
    """
    if not word or word.isspace():
        return None
    try:
        return SPLITS[word.strip().lower()]
    except KeyError:
        raise SourceError(f"{place}: Expected: split train, val or test. Got: {word!r}.") from None
