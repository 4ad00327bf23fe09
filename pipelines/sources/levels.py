"""What the folders above the images are: wrappers, splits, classes. The rules look at names alone, wherever they lie.

The sub-folders of the first level are the classes; whatever lies deeper is of the same class. Two things may lie above
the classes:

- A wrapper: the only sub-folder of a folder without images. It holds sub-folders and no images itself.
- Splits: sub-folders that are all called train, val or test (or training, validation, valid, dev, testing, in any
  case). They name two or three splits, there are no images beside them, and at least one of them has sub-folders, or a
  file says what the images in them are, see ``metadata``. An image directly in a split's folder belongs to that split
  and has no label.

Hidden folders and those of ``listing.SYSTEM_FOLDERS`` are left out and do not count for these rules.
"""

from __future__ import annotations

from typing import Protocol

from pipelines.sources.listing import SPLITS, Listing, is_aside
from pipelines.sources.uris import printable

MAX_WRAPPERS = 4
WRAPPER, SPLIT, CLASS = "wrapper", "split", "class"  # what the sub-folders of a level are


class Look(Protocol):
    """Looks into folders of one kind of source; one that cannot be read has nothing in it."""

    def below(self, folder: str, name: str) -> str:
        """Return where a folder in a folder is."""
        ...

    def peek(self, folder: str) -> list[str] | None:
        """Return the names of the folders in a folder; None if it holds images or cannot be read."""
        ...

    def holds_folders(self, folder: str) -> bool:
        """Return whether there are folders in a folder that count."""
        ...

    def metadata_in(self, folder: str) -> str | None:
        """Return the file in a folder that says what the images below it are; None if there is none."""
        ...


def levels_of(root: str, has_pictures: bool, folders: list[str], look: Look, listing: Listing) -> list[str]:
    """Return what the sub-folders of each level are (WRAPPER, SPLIT or CLASS), from the root down."""
    folder, levels = root, list[str]()
    while not has_pictures and len(folders) == 1 and len(levels) < MAX_WRAPPERS:
        child = look.below(folder, folders[0])
        inside = look.peek(child)
        if not inside:
            break
        listing.notes.append(
            f"{printable(folders[0])!r} is the only folder in {folder!r} and was looked through: "
            "the folders in it are what counts."
        )
        levels.append(WRAPPER)
        folder, folders = child, inside
    if listing.hints.split_folders and _are_splits(folder, has_pictures, folders, look, listing):
        levels.append(SPLIT)
    return [*levels, CLASS]


def _are_splits(folder: str, has_pictures: bool, names: list[str], look: Look, listing: Listing) -> bool:
    """Return whether all folders here are splits; in doubt they are classes, and a note says why."""
    named = [name for name in names if name.lower() in SPLITS]
    splits = {SPLITS[name.lower()] for name in named}
    inside = [look.below(folder, name) for name in named]
    deep = any(map(look.holds_folders, inside)) or any(map(look.metadata_in, [folder, *inside]))
    if len(splits) < 2:
        return False
    if has_pictures:
        why = "there are images beside them"
    elif len(named) < len(names):
        why = f"there are other folders beside them, such as {next(n for n in names if n not in named)!r}"
    elif not deep:
        why = "there are no class folders in them"
    else:
        said = ", ".join(repr(name) for name in named)
        listing.notes.append(f"The folders {said} are taken for splits; --no-split-folders takes them for classes.")
        return True
    listing.notes.append(f"Taken for classes, not for splits: {', '.join(map(repr, named))}, since {why}.")
    return False


def is_left_out(folder: str, listing: Listing) -> bool:
    """Return whether a folder is left out by its name, and count it if so."""
    if is_aside(folder):
        listing.ignored["hidden folder" if folder.startswith(".") else "system folder"] += 1
        return True
    return False


def nohash_group(label: str | None, name: str) -> str | None:
    """Return CLASS/NAME with the name before ``_nohash_``; None for other names."""
    before, mark, _ = name.partition("_nohash_")
    return f"{label or ''}/{printable(before)}" if mark else None
