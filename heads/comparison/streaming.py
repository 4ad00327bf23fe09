"""Streaming of training rows from the store, once per pass of a sweep; validation and test are in memory."""

from __future__ import annotations

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import UsageError
from featurestore.splits import TEST, TRAIN, VAL
from heads.solvers.kernels import KernelFeatures, KernelRows
from heads.solvers.rows import StreamedRows

SHARE = 0.25  # of the memory limit, for val and test; the rest is for their copies, labels, solvers and the program
SAMPLE_SHARE = 0.2  # of the memory limit, for a sample of the training rows
MAX_SAMPLED = 0.25  # of the training rows, the largest sample
MAPPED_SHARE = 0.1  # of the memory limit, for the kernel's features of a sample
ROOM_SHARE = 0.1  # of the memory limit, for problems that are solved together


def streamed_rows(train: Dataset) -> StreamedRows:
    """Return the rows of a dataset whose vectors are stored, in the order ``train.stored.order``; reads them all once.

    Raises:
        HeadError: features that are not finite.
    """
    assert train.stored is not None
    limit, most = train.stored.memory_limit, int(MAX_SAMPLED * len(train))
    fit = int(SAMPLE_SHARE * limit / (4 * train.width))  # of float32; float16 takes half as much
    return StreamedRows.surveyed(train.stored.pieces, len(train), max(min(fit, most), 2), int(ROOM_SHARE * limit))


def streamed_kernel_rows(train: Dataset, features: KernelFeatures, plain: StreamedRows) -> KernelRows:
    """Return the same rows as the features of a kernel; reads them all once.

    Raises:
        HeadError: there is no room for them in temporary files.
    """
    assert train.stored is not None
    fit = int(MAPPED_SHARE * train.stored.memory_limit / (4 * features.axes.shape[1]))
    sampled = max(min(fit, int(MAX_SAMPLED * len(train))), 2)
    return KernelRows.streamed(features, plain, train.stored.pieces, sampled)


def split(dataset: Dataset) -> dict[str, Dataset]:
    """Return the splits of a dataset: train as it is, val and test in memory.

    Raises:
        UsageError: the memory limit is too low for val and test.
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
