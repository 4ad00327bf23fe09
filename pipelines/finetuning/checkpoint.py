"""The checkpoint of a fine-tuning run: a folder under ``STORE/finetune``, locked by one process, written each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from featurestore import layout
from featurestore.errors import StoreCorrupt, StoreError, StoreLocked
from featurestore.runs import is_run_id, utc_now
from featurestore.storage.base import storage_of
from featurestore.storage.files import delete, exists, is_link, make_folder, read_sealed, write_sealed
from featurestore.storage.npz import OVERHEAD, read_npz, write_npz
from pipelines.finetuning.trainer import Trainer

TOLD, TOLD_BYTES = "told", 64 * 2**20  # array name and size limit of the history, as JSON


@dataclass
class Course:
    """The progress of a training: what a checkpoint holds besides the network's current weights.

    Attributes:
        history: the scores of each finished epoch.
        start: the validation scores before the first epoch.
        best_epoch: number of the best epoch on validation, from 1; 0 means before the first.
        best: the trained weights of that epoch.
    """

    history: list[dict[str, float]]
    start: dict[str, float]
    best_epoch: int
    best: list[np.ndarray]


@contextmanager
def own_folder(path: PurePath, new_run_id: Callable[[str], str]) -> Iterator[tuple[PurePath, dict[str, str]]]:
    """Lock a run's checkpoint folder; yield it, with the run's ``run_id`` and the time when it ``started``.

    If no run has begun in the folder, ``new_run_id`` makes an id for a run of the given kind.

    Raises:
        StoreLocked: another process has locked the folder.
        StoreCorrupt: the folder or its parent is a link, or the run's id and start noted in it are damaged.
    """
    if is_link(path) or is_link(path.parent):
        raise StoreCorrupt(f"Expected: a folder of the store at {path}. Got: a link to another one: remove the link.")
    make_folder(path)
    with storage_of(path).lock(path / layout.LOCK, f"since {utc_now()}") as holder:
        if holder is not None:
            raise StoreLocked(f"The same fine-tuning runs already, in {path}: wait for it to end.")
        begun = path / layout.BEGUN
        if not exists(begun):
            write_sealed(begun, {"run_id": new_run_id("finetune"), "started": utc_now()})
        told = read_sealed(begun)
        if not is_run_id(told.get("run_id")) or not isinstance(told.get("started"), str):
            raise StoreCorrupt(
                f"Expected: what a fine-tuning is called in {begun}. Got: something else: remove {path}."
            )
        yield path, told


def discard(folder: PurePath) -> None:
    """Remove a run's checkpoint folder; if a link is in its place, leave the link and its target alone."""
    if not (is_link(folder) or is_link(folder.parent)):
        with suppress(StoreError):
            delete(folder)


def save(folder: PurePath, trainer: Trainer, course: Course) -> None:
    """Write the course and the network's current state durably, in place of the previous checkpoint."""
    told = json.dumps({"history": course.history, "start": course.start, "best_epoch": course.best_epoch})
    write_npz(folder / layout.CHECKPOINT, {TOLD: np.array(told), **_named(_state(trainer, course.best))})


def resume(folder: PurePath, trainer: Trainer) -> Course | None:
    """Restore the network from the last checkpoint and return the course; return None if there is no checkpoint.

    Raises:
        StoreCorrupt: the checkpoint is damaged or belongs to another network.
    """
    path = folder / layout.CHECKPOINT
    if not exists(path):
        return None
    state = _state(trainer, trainer.weights())
    expected = _named(state)
    try:
        arrays = read_npz(path, TOLD_BYTES + sum(array.nbytes + OVERHEAD for array in expected.values()))
        told = json.loads(str(arrays.pop(TOLD)))
        if {name: array.shape for name, array in arrays.items()} != {n: array.shape for n, array in expected.items()}:
            raise ValueError("it is of another network")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("numbers that are not finite")
        state = {name: [arrays[f"{name}{i}"] for i in range(len(group))] for name, group in state.items()}
        course = Course(told["history"], told["start"], told["best_epoch"], state["best"])
        _check(course)
    except (StoreCorrupt, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreCorrupt(f"The checkpoint {path} is damaged ({error}): remove it and start again.") from error
    trainer.set_weights(state["weights"])
    trainer.set_momenta(state["momenta"])
    return course


def _check(course: Course) -> None:
    """Raise ValueError, TypeError or KeyError if a training cannot have written this course."""
    for row in (course.start, *course.history):
        if not (math.isfinite(row["val_accuracy"]) and math.isfinite(row["val_loss"])):
            raise ValueError("scores that are not finite")
    for row in course.history:
        math.isfinite(row["seconds"])
    if course.best_epoch not in range(len(course.history) + 1):
        raise ValueError("a best epoch that was not trained")


def _state(trainer: Trainer, best: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    return {"best": best, "weights": trainer.weights(), "momenta": trainer.momenta()}


def _named(state: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Return a state as the named arrays of a checkpoint."""
    return {f"{name}{i}": array for name, group in state.items() for i, array in enumerate(group)}
