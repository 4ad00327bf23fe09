"""Notes on odd class names of a corpus: too many, alike, or meaningless ones."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator

NOTHING = frozenset(("nan", "none", "null", "n/a", "<na>", "nat"))
MAX_EXAMPLES = 3
MAX_CLASSES = 100_000  # with more, the names are not compared one by one


def notes_on_classes(classes: Counter[str]) -> Iterator[str]:
    """Yield one sentence for each oddity: too many classes, names that look alike, names that mean nothing.

    Args:
        classes: the number of images of each class.
    """
    if len(classes) > 20 and classes.total() < 2 * len(classes):
        yield f"There are {len(classes):,} classes for {classes.total():,} labelled images: is this the label?"
    if len(classes) > MAX_CLASSES:
        return
    alike = defaultdict(list)
    for name in classes:
        alike[_look(name)].append(name)
    if pairs := [sorted(names) for names in alike.values() if len(names) > 1]:
        shown = "; ".join(
            " and ".join(f"{_shown(n, names)} ({classes[n]:,})" for n in names) for names in pairs[:MAX_EXAMPLES]
        )
        more = f", and {len(pairs) - MAX_EXAMPLES:,} more" if len(pairs) > MAX_EXAMPLES else ""
        yield f"Classes that differ only by case, blanks or Unicode form, each a class of its own: {shown}{more}."
    if blanks := [name for name in classes if name != name.strip() and len(alike[_look(name)]) == 1]:
        yield f"{len(blanks):,} of {len(classes):,} classes begin or end with a blank, such as {blanks[0]!r}."
    if empty := [name for name in classes if name.strip().lower() in NOTHING]:
        yield f"{empty[0]!r} is taken for a class ({classes[empty[0]]:,} images); an empty cell means no label."
    if classes and all(name.endswith(".0") and name[:-2].isdigit() for name in classes):
        yield f"The classes are numbers such as {next(iter(classes))!r}, as pandas writes whole numbers with gaps."


def _look(name: str) -> str:
    """Return a name without case, extra blanks and Unicode variants, which a reader overlooks."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _shown(name: str, alike: list[str]) -> str:
    """Return a name in quotes, in ASCII escapes if names that look alike differ only by Unicode form."""
    forms = {unicodedata.normalize("NFC", other) for other in alike}
    return ascii(name) if len(forms) < len(alike) else repr(name)
