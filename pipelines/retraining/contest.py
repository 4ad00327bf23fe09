"""The champion and the challenger of a night, each on its own feature set, on the same test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurestore import aliases
from featurestore.dataset import Dataset
from featurestore.errors import PenultError
from featurestore.snapshot import Snapshot, short_keys
from featurestore.splits import TEST, TRAIN, VAL
from featurestore.store import FeatureStore
from heads.base import Head
from pipelines.retraining.decision import Ballot
from pipelines.stored_heads import head_of


@dataclass(frozen=True)
class Champion:
    """The head in use when a night scores it.

    Attributes:
        head_id: its id.
        date: the logical date of the night that promoted it; None if a person did.
        head: None if it cannot be loaded.
        feature_set: the set that it was trained on; "" if it cannot be loaded.
        snapshot: the images that it was made from; None if they are not known.
        problem: why it cannot be loaded.
    """

    head_id: str
    date: str | None
    head: Head | None = None
    feature_set: str = ""
    snapshot: Snapshot | None = None
    problem: str = ""

    @classmethod
    def load(cls, store: FeatureStore, head_id: str) -> Champion:
        """Load a head that is, or was, the champion."""
        moves = aliases.history(store.path, aliases.CHAMPION)
        date = next((move.date for move in reversed(moves) if move.head_id == head_id), None)
        try:
            head, meta = head_of(store, head_id)
            folder, digest = store.run_folder(head_id), meta.get("labelled")
            snapshot = Snapshot.read(folder, str(digest)) if digest else None
        except PenultError as error:
            return cls(head_id, date, problem=str(error))
        return cls(head_id, date, head, str(meta["feature_set"]), snapshot)


@dataclass(frozen=True)
class Contest:
    """A ballot, the images that it is about, and remarks on which were left out.

    Attributes:
        ballot: what the heads say of n images.
        uris: n images.
        unfit: why the champion is not in the ballot, if there is one.
        notes: sentences.
    """

    ballot: Ballot
    uris: np.ndarray
    unfit: str | None
    notes: list[str]


def hold(store: FeatureStore, data: Dataset, challenger: Head, champion: Champion | None, least: int) -> Contest:
    """Let both heads predict the test images of tonight.

    Left out are images that the champion's feature set does not hold, and images that it was fitted or chosen on.

    Args:
        store: an open store.
        data: all labelled images of tonight, on the challenger's feature set; the vectors may stay in the store.
        challenger: tonight's head.
        champion: the head in use, if there is one.
        least: the champion counts as one that cannot be scored if it lacks the features of so many images that fewer
            than this are left, though there are as many.
    """
    test, notes = data.part(TEST).read(), list[str]()
    baseline = _baseline(data, test)
    keys = short_keys(test.keys)
    predicted, unfit = None, None
    if champion is not None:
        unfit = champion.problem or None
        if champion.snapshot is not None and (seen := _seen(champion.snapshot, keys)).any():
            notes.append(f"{seen.sum():,} test images are left out: the champion was fitted or chosen on them.")
            test, keys = test.take(~seen), keys[~seen]
        if champion.head is not None:
            predicted, found = _predictions(store, champion, test)
            if not found.all():
                notes.append(f"{(~found).sum():,} test images are left out: the champion's feature set lacks them.")
            if found.sum() < least <= len(test) or not found.any():
                unfit, predicted = f"{champion.feature_set} holds {found.sum():,} of {len(test):,} test images.", None
            else:
                test, keys, predicted = test.take(found), keys[found], predicted[found]
    was_test = np.zeros(len(test), bool)
    if champion is not None and champion.snapshot is not None:
        was_test = np.isin(keys, champion.snapshot.of_split(TEST))
    ballot = Ballot(test.y, challenger.predict(test.X), predicted, test.groups, was_test, baseline)
    return Contest(ballot, test.uris, unfit, notes)


def _seen(snapshot: Snapshot, keys: np.ndarray) -> np.ndarray:
    return np.isin(keys, snapshot.of_split(TRAIN)) | np.isin(keys, snapshot.of_split(VAL))


def _predictions(store: FeatureStore, champion: Champion, test: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the champion's predictions, str (n,), and which of them are real, bool (n,)."""
    assert champion.head is not None
    if champion.feature_set == test.feature_set:
        return champion.head.predict(test.X), np.ones(len(test), bool)
    X, found = store.vectors(champion.feature_set, test.keys)
    return champion.head.predict(X), found


def _baseline(data: Dataset, test: Dataset) -> float:
    """Return the share of test images that belong to the most frequent class of training."""
    names, counts = np.unique(data.y[data.splits == TRAIN], return_counts=True)
    return float(np.mean(test.y == names[counts.argmax()])) if len(counts) and len(test) else 0.0
