"""The data checks of a night, before heads are compared: a value, a limit, a reason, images that moved it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.snapshot import NO_LABEL, Snapshot, short_keys
from featurestore.splits import TEST, TRAIN
from heads.monitoring.copies import near_copies
from heads.monitoring.drift import drift
from pipelines.retraining.options import CHECKS, EXAMPLES, ChecksOptions

MAX_ROWS = 20_000  # of the champion's training images, of which drift draws some
NO_CHAMPION = "There is no champion to compare with."
SEED = 0


@dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
        data: all labelled images of tonight; their vectors may stay in the store.
        champion: the labelled images that the champion was made from; None if there is no champion.
        new_files: how many files are new or changed tonight.
        failed: how many of them failed.
        failed_uris: some of those.
    """

    data: Dataset
    champion: Snapshot | None
    new_files: int
    failed: int
    failed_uris: list[str]

    @cached_property
    def keys(self) -> np.ndarray:
        """The images of ``data`` as a snapshot names them, uint64 (n,)."""
        return short_keys(self.data.keys)

    @cached_property
    def before(self) -> np.ndarray:
        """The labels that the images had when the champion was made, str (n,); NO_LABEL for new ones."""
        return np.full(len(self.data), NO_LABEL) if self.champion is None else self.champion.labels(self.keys)

    def in_split(self, split: str) -> np.ndarray:
        """Return the rows of a split, bool (n,)."""
        return self.data.splits == split

    def uris(self, rows: np.ndarray) -> list[str]:
        """Return the URIs of the first of some rows, given by mask or number."""
        return [str(uri) for uri in self.data.uris[rows][:EXAMPLES]]


@dataclass(frozen=True)
class Finding:
    """What a check found: a value (None if there was nothing to check), whether it is too far, why, and images."""

    value: float | None
    bad: bool
    reason: str
    images: list[str] = field(default_factory=list)


def run_checks(options: ChecksOptions, evidence: Evidence) -> list[dict[str, Any]]:
    """Return what each check found that is not off: name, level, value, limit, status, reason and images.

    The status is "ok", or the check's level, "warn" or "block".
    """
    rows = []
    for name in CHECKS:
        level, limit = getattr(options, name), getattr(options, f"{name}_limit")
        if level == "off":
            continue
        found = _CHECKS[name](evidence, limit, options)
        rows.append(
            {
                "name": name,
                "level": level,
                "value": found.value,
                "limit": limit,
                "status": level if found.bad else "ok",
                "reason": found.reason,
                "images": found.images,
            }
        )
    return rows


def _failures(evidence: Evidence, limit: float, _options: ChecksOptions) -> Finding:
    n, failed = evidence.new_files, evidence.failed
    share = failed / n if n else 0.0
    return Finding(share, share > limit, f"{failed:,} of {n:,} new files failed.", evidence.failed_uris[:EXAMPLES])


def _small_classes(evidence: Evidence, limit: int, _options: ChecksOptions) -> Finding:
    names, codes = np.unique(evidence.data.y, return_inverse=True)
    counts = np.bincount(codes[evidence.in_split(TRAIN)], minlength=len(names))
    small = np.flatnonzero(counts < limit)
    least = int(counts.min()) if len(counts) else 0
    told = _some([f"{names[i]} ({counts[i]:,})" for i in small])
    reason = f"Classes with fewer than {limit:,} training images: {told}." if len(small) else "No class is small."
    return Finding(least, bool(len(small)), reason)


def _appeared(evidence: Evidence, limit: int, _options: ChecksOptions) -> Finding:
    if evidence.champion is None:
        return Finding(None, False, NO_CHAMPION)
    new = np.setdiff1d(evidence.data.y, evidence.champion.names)
    reason = f"Classes that the champion does not know: {_some(new)}." if len(new) else "No class is new."
    return Finding(len(new), len(new) > limit, reason, evidence.uris(np.isin(evidence.data.y, new)))


def _vanished(evidence: Evidence, limit: int, _options: ChecksOptions) -> Finding:
    if evidence.champion is None:
        return Finding(None, False, NO_CHAMPION)
    gone = np.setdiff1d(evidence.champion.names, evidence.data.y)
    reason = f"Classes of the champion that no image has any more: {_some(gone)}." if len(gone) else "No class is gone."
    return Finding(len(gone), len(gone) > limit, reason)


def _flips(evidence: Evidence, limit: float, _options: ChecksOptions) -> Finding:
    if evidence.champion is None:
        return Finding(None, False, NO_CHAMPION)
    known = evidence.before != NO_LABEL
    flipped = known & (evidence.before != evidence.data.y)
    share = float(flipped.sum() / max(known.sum(), 1))
    reason = f"{flipped.sum():,} of {known.sum():,} images have another label than when the champion was made."
    return Finding(share, share > limit, reason, evidence.uris(flipped))


def _drift(evidence: Evidence, limit: float, _options: ChecksOptions) -> Finding:
    if evidence.champion is None:
        return Finding(None, False, NO_CHAMPION)
    was_training = np.isin(evidence.keys, evidence.champion.of_split(TRAIN))
    draw = np.random.default_rng(SEED)
    rows = [_drawn(np.flatnonzero(mask), draw) for mask in (was_training, evidence.before == NO_LABEL)]
    old, new = (evidence.data.take(some).read() for some in rows)
    found = drift(old.X, old.y, new.X, new.y, SEED)
    if found is None:
        return Finding(None, False, f"Too few images to compare: {len(old):,} old and {len(new):,} new ones.")
    reason = (
        f"A classifier tells {len(new):,} new images from the champion's training images with an area under the ROC "
        f"curve of {found.auc:.3f} ({found.ci[0]:.3f} to {found.ci[1]:.3f}; 0.5 is chance)."
    )
    newest = np.argsort(-found.scores, kind="stable")[:EXAMPLES]
    return Finding(found.auc, found.ci[0] > limit, reason, [str(uri) for uri in new.uris[newest]])


def _copies(evidence: Evidence, limit: float, options: ChecksOptions) -> Finding:
    """Compare every pair of a test and a training image of which at least one is new since the champion."""
    is_test, is_new = evidence.in_split(TEST), evidence.before == NO_LABEL
    test, train = np.flatnonzero(is_test), np.flatnonzero(evidence.in_split(TRAIN))
    cosine, of = np.full(len(evidence.data), -1.0), np.full(len(evidence.data), None, object)
    for some, others in ((test[is_new[test]], train), (test[~is_new[test]], train[is_new[train]])):
        if len(some) and len(others):
            found = near_copies(
                evidence.data.take(some).read().X, _blocks(evidence.data.take(others)), options.copies_cosine
            )
            cosine[some], of[some] = found.cosine, found.key
    copies = np.flatnonzero(cosine >= options.copies_cosine)
    share = len(copies) / max(len(test), 1)
    reason = f"{len(copies):,} of {len(test):,} test images are near-copies of training images"
    if len(copies):
        worst = copies[np.argsort(-cosine[copies], kind="stable")]
        twin = evidence.data.uris[np.searchsorted(evidence.data.keys, of[worst[0]])]
        reason += f", such as {evidence.data.uris[worst[0]]} of {twin} (cosine {cosine[worst[0]]:.4f})"
        copies = worst
    return Finding(share, share > limit, f"{reason}.", evidence.uris(copies))


def _test_shrank(evidence: Evidence, limit: float, _options: ChecksOptions) -> Finding:
    if evidence.champion is None:
        return Finding(None, False, NO_CHAMPION)
    was_test = evidence.champion.of_split(TEST)
    gone = int((~np.isin(was_test, evidence.keys[evidence.in_split(TEST)])).sum())
    share = gone / max(len(was_test), 1)
    reason = f"{gone:,} of the champion's {len(was_test):,} test images are no longer in the test split."
    return Finding(share, share > limit, reason)


_CHECKS: dict[str, Callable[[Evidence, Any, ChecksOptions], Finding]] = {
    "failures": _failures,
    "small_classes": _small_classes,
    "appeared": _appeared,
    "vanished": _vanished,
    "flips": _flips,
    "drift": _drift,
    "copies": _copies,
    "test_shrank": _test_shrank,
}


def _drawn(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return at most MAX_ROWS of some rows, ascending."""
    return rows if len(rows) <= MAX_ROWS else np.sort(draw.choice(rows, MAX_ROWS, replace=False))


def _blocks(data: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the vectors of a dataset with their contents, in one pass over the store if they are not in memory."""
    if data.stored is None:
        yield data.X, data.keys
        return
    start, order = 0, data.stored.order
    for piece in data.stored.pieces():
        yield piece, data.keys[order[start : start + len(piece)]]
        start += len(piece)


def _some(names: Any) -> str:
    return ", ".join(map(str, names[:EXAMPLES])) + (
        f" and {len(names) - EXAMPLES:,} more" if len(names) > EXAMPLES else ""
    )
