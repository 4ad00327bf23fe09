"""Training rows that stay in the store: read anew on every pass of a sweep, while validation and test are in memory."""

from __future__ import annotations

import numpy as np

from featurestore.dataset import TEST, TRAIN, VAL, Dataset
from featurestore.errors import UsageError
from heads.rows import StreamedRows

SHARE = 0.25  # of the limit, for val and test; the rest is for their copies, labels, solvers and the program
SAMPLE_SHARE = 0.05
MOST_SAMPLED = 65_536  # rows


def streamed_rows(train: Dataset) -> StreamedRows:
    """The rows of a dataset whose vectors are stored, in the order ``train.stored.order``. Takes two passes.

    Raises:
        HeadError: features that are not finite.
    """
    assert train.stored is not None
    fit = int(SAMPLE_SHARE * train.stored.memory_limit / (4 * train.width))
    some = np.random.default_rng(0).permutation(len(train))[: np.clip(fit, 2, MOST_SAMPLED)]
    return StreamedRows(train.stored.pieces, train.stored.take(np.sort(some)).read())


def split(dataset: Dataset) -> dict[str, Dataset]:
    """The splits of a dataset: train as it is, val and test in memory.

    Raises:
        UsageError: the memory limit is too low for that.
    """
    if dataset.stored is None:
        return {name: dataset.part(name) for name in (TRAIN, VAL, TEST)}
    limit, held = dataset.stored.memory_limit, dataset.splits != TRAIN
    needed = int(held.sum()) * dataset.width * 4
    if needed > SHARE * limit:
        raise UsageError(
            f"The {int(held.sum()):,} images of val and test take {_megabytes(needed)} and may take a quarter of "
            f"--memory-limit, {_megabytes(limit)}: raise it to {_megabytes(needed / SHARE)}, or lower --val and "
            "--test."
        )
    scored = dataset.take(held).read()
    return {TRAIN: dataset.part(TRAIN), VAL: scored.part(VAL), TEST: scored.part(TEST)}


def _megabytes(size: float) -> str:
    return f"{np.ceil(size / 1e6):,.0f} MB"
