"""The rows of a feature set as a comparison cuts them: what each fit is made to, and what it is scored on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from featurestore.dataset import Dataset
from heads.base import SharedProblem, coded, standardisation
from heads.comparison.fit_cache import digest
from heads.comparison.streaming import streamed_rows
from heads.comparison.subsampling import by_turns, first_of_each
from heads.solvers.rows import MemoryRows, Rows
from heads.train import check_finite

HOLD_OUT = -1  # the part of fits to all training rows, which are scored on the validation split


class Table:
    """The rows of one feature set, cut into folds or not.

    A fit is made to a part of the training rows and scored on other rows. Here a part is the number of a fold, which is
    scored by a fit to the others, or ``HOLD_OUT``.

    Attributes:
        parts: the splits.
        name: of the feature set.
        training: the rows to fit: the training rows, then their views if there are any.
        groups: the group of each row of ``training``, int (n,), such as its fold; a view has its image's. None: no part
            leaves rows out.
        digest: of all that decides an outcome, except the candidate, the seed and the part.
        shares_passes: whether linear heads are fitted to all parts in shared passes over the rows.
    """

    shares_passes = True

    def __init__(self, parts: dict[str, Dataset], folds: int = 0, augmented: Dataset | None = None) -> None:
        """``folds``: how many train is cut into; 0 for none. ``augmented``: the training rows, then their views."""
        train, val = parts["train"], parts["val"]
        self._number_of_folds = folds
        self.parts, self.name = parts, train.feature_set
        self.training = train if augmented is None else augmented
        self.groups = self.training.folds(folds) if folds else None
        columns = [(part.keys, part.y) for part in ((train,) if folds else (train, val))]
        more: list[np.ndarray | str] = [] if self.groups is None else [self.groups[: len(train)].astype(str)]
        if augmented is not None:
            views = augmented.X[len(train) :]
            more += [augmented.keys[len(train) :], hashlib.sha256(np.ascontiguousarray(views).data).hexdigest()]
        self.digest = digest(train.fingerprint, *(column for pair in columns for column in pair), *more)
        self._prepared: tuple[Rows, np.ndarray] | None = None

    def with_views(self, augmented: Dataset) -> Table:
        """Return the same splits and folds as a table that is fitted on ``augmented``."""
        return Table(self.parts, self._number_of_folds, augmented)

    def whole(self) -> Table:
        """Return the same rows as a table without folds."""
        if self.groups is None:
            return self
        train = self.parts["train"]
        whole = Table(self.parts, 0, None if self.training is train else self.training)
        whole._prepared = self._prepared
        return whole

    def rows(self) -> tuple[Rows, np.ndarray]:
        """Return ``training`` for sweeps, and its rows' order there, int (n,): by group or by place in the store."""
        if self._prepared is None:
            training = self.training
            if training.stored is not None:
                self._prepared = streamed_rows(training), training.stored.order
            else:
                order = by_turns(training.y, 0) if self.groups is None else np.argsort(self.groups, kind="stable")
                self._prepared = MemoryRows(training.X[order], *standardisation(training.X)), order
        return self._prepared

    def left_out(self, part: int) -> tuple[int, ...]:
        """Return the groups that fits of a part do without."""
        return () if self.groups is None else (part,)

    def fitted(self, part: int) -> Dataset:
        """Return the rows that fits of a part are made to."""
        return self.training.take(self._fitted_rows(part))

    def scored(self, part: int) -> Dataset:
        """Return the rows that fits of a part are scored on: images, never views."""
        split, rows = self._scored_rows(part)
        return split.take(rows)

    def shared(self, part: int) -> tuple[np.ndarray, SharedProblem]:
        """Return the classes of a part, str (c,), and the problem of its fits, without class weights and of seed 0.

        Raises:
            HeadError: the part's rows have fewer than two classes, or features that are not finite.
        """
        fitted = self.fitted(part)  # of a fold it is a copy, which does not stay
        check_finite(fitted)
        classes, codes = coded(fitted.y)
        mean, scale = standardisation(fitted.X)
        rows = np.arange(len(self.training))[self._fitted_rows(part)]
        y = np.zeros(len(self.training), int)
        y[rows] = codes
        split, left_out = self._scored_rows(part)
        rows_val = np.arange(len(split))[left_out]
        problem = SharedProblem(
            X=self.training.X,
            y=y,
            n_classes=len(classes),
            class_weight=None,
            seed=0,
            X_val=split.X,
            y_val=np.searchsorted(classes, split.y),
            on_epoch=lambda _: None,
            rows=rows,
            rows_val=rows_val[np.isin(split.y[rows_val], classes)],
            mean=mean,
            scale=scale,
        )
        return classes, problem

    def _fitted_rows(self, part: int) -> np.ndarray | slice:
        """Return which rows of ``training`` fits of a part are made to."""
        return slice(None) if self.groups is None else np.flatnonzero(~np.isin(self.groups, self.left_out(part)))

    def _scored_rows(self, part: int) -> tuple[Dataset, np.ndarray | slice]:
        """Return the split that fits of a part are scored on, and which of its rows."""
        if self.groups is None:
            return self.parts["val"], slice(None)
        train = self.parts["train"]
        return train, np.flatnonzero(self.groups[: len(train)] == part)


class Beginnings(Table):
    """The first training rows by turns of their classes, more of them in each part; all parts are scored on validation.

    Sweeps standardise the features by all training rows; labels have no part in that.
    """

    def __init__(self, whole: Table, sizes: Sequence[int]) -> None:
        """``whole``: a table without folds and views. ``sizes``: ascending numbers of rows, one per part."""
        self.parts, self.name, self.training, self.sizes = whole.parts, whole.name, whole.training, tuple(sizes)
        self.groups = np.empty(len(self.training), int)
        self.groups[by_turns(self.training.y, 0)] = np.searchsorted(sizes, np.arange(len(self.training)), side="right")
        self.digest = digest(whole.digest, "beginnings", *map(str, sizes))
        self._whole = whole

    def rows(self) -> tuple[Rows, np.ndarray]:
        """Return those of the whole table."""
        return self._whole.rows()

    def left_out(self, part: int) -> tuple[int, ...]:
        """Return the groups that fits of a part do without: those of the larger parts, and the rest."""
        return tuple(range(part + 1, len(self.sizes) + 1))

    def _scored_rows(self, part: int) -> tuple[Dataset, np.ndarray | slice]:
        return self.parts["val"], slice(None)


class Shots(Table):
    """A random draw of k training rows per class in each part; all parts are scored on validation."""

    shares_passes = False

    def __init__(self, whole: Table, k: int) -> None:
        """``whole``: a table without folds and views."""
        self.parts, self.name, self.training, self.k = whole.parts, whole.name, whole.training, k
        self.groups = self._prepared = None
        self.digest = digest(whole.digest, "shots", str(k))

    def _fitted_rows(self, part: int) -> np.ndarray | slice:
        """Return the rows that are drawn; the number of the part is the seed."""
        y = self.training.y
        return first_of_each(y, by_turns(y, part), self.k)
