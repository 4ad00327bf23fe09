"""The table of published evaluations, and ``evaluate``, the one way to make any of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from featurestore.splits import SPLITS, TEST, TRAIN, VAL
from heads.protocols.base import Protocol, Row
from heads.protocols.big_vision import FEWSHOT
from heads.protocols.clip_benchmark import LINEAR_PROBE
from heads.protocols.dinov2 import KNN, LOGREG
from heads.train import check_dataset

PROTOCOLS: dict[str, Protocol] = {
    "dinov2-logreg": LOGREG,
    "dinov2-knn": KNN,
    "big-vision-fewshot": FEWSHOT,
    "clip-benchmark": LINEAR_PROBE,
}


@dataclass(frozen=True)
class Evaluated:
    """The rows of a protocol's results, notes on them, and the seconds that it took."""

    rows: list[Row]
    notes: list[str]
    seconds: float


def find(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UsageError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"There is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def evaluate(dataset: Dataset, name: str) -> Evaluated:
    """Evaluate a feature set by a protocol, on its own splits.

    Args:
        dataset: in memory, with rows in train and test, and in val if the protocol needs them.
        name: of the protocol.

    Raises:
        HeadError: the dataset lacks rows that the protocol needs, or cannot be fitted.
        UsageError: there is no such protocol.
    """
    protocol = find(name)
    notes = check_dataset(dataset, (TRAIN, TEST))
    parts = {split: dataset.part(split) for split in SPLITS}
    if protocol.validates and not len(parts[VAL]):
        raise HeadError(
            f"{name} chooses on validation, and the val split of {dataset.feature_set} is empty: give --val a share "
            "above 0, or label more images."
        )
    began = time.perf_counter()
    rows, more = protocol.evaluate(parts)
    return Evaluated(rows, notes + more, round(time.perf_counter() - began, 3))
