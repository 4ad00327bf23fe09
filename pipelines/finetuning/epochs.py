"""The epochs of a fine-tuning, from the start or from a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import PurePath

import numpy as np

from featurestore.errors import HeadError, SourceError
from featurestore.splits import TRAIN, VAL
from pipelines.finetuning import checkpoint
from pipelines.finetuning.checkpoint import Course
from pipelines.finetuning.pictures import Batch, Pictures
from pipelines.finetuning.trainer import Trainer
from pipelines.options import FinetuneOptions
from pipelines.stored_heads import Say

Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # pixels, rows → losses, predicted classes


def train(
    trainer: Trainer, pictures: Pictures, weights: np.ndarray, options: FinetuneOptions, folder: PurePath, say: Say
) -> Course:
    """Train all epochs, or those after the checkpoint; return the course.

    Args:
        trainer: the network.
        pictures: what it is trained and validated on.
        weights: float32 (n,), weight in the loss of each row of the images' dataset.
        options: how to train.
        folder: of the checkpoint.
        say: called with a line for people per epoch.

    Raises:
        SourceError: no image of a split can be read any more.
        HeadError: the loss is no longer finite.
    """
    epochs = _Epochs(trainer, pictures, weights, options)
    course = checkpoint.resume(folder, trainer)
    if course is None:
        course = Course([], epochs.validate(), 0, trainer.weights())
        say(f"Before: validation {course.start['val_accuracy']:.1%}, loss {course.start['val_loss']:.4f}.")
    else:
        epochs.skip(len(course.history))
        say(f"Resuming after epoch {len(course.history)} of {options.epochs}.")
    for epoch in range(len(course.history) + 1, options.epochs + 1):
        since = time.perf_counter()
        row = {**epochs.train(epoch), **epochs.validate()}
        row["seconds"] = round(time.perf_counter() - since, 3)
        if not np.isfinite(list(row.values())).all():
            raise HeadError(f"In epoch {epoch} the loss is not finite any more: give a smaller --learning-rate.")
        course.history.append(row)
        if _better(row, course):
            course.best_epoch, course.best = epoch, trainer.weights()
        with pictures.watch.stage("checkpoint"):
            checkpoint.save(folder, trainer, course)
        say(
            f"Epoch {epoch} of {options.epochs}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.1%}; "
            f"validation {row['val_accuracy']:.1%}, loss {row['val_loss']:.4f} ({row['seconds']:.1f} s)."
        )
    return course


class _Epochs:
    """Passes over the images of train and val."""

    def __init__(self, trainer: Trainer, pictures: Pictures, weights: np.ndarray, options: FinetuneOptions) -> None:
        self._trainer, self._pictures, self._weights, self._options = trainer, pictures, weights, options
        dataset = pictures.dataset
        self._train, self._val = (np.flatnonzero(dataset.splits == split) for split in (TRAIN, VAL))
        self._labels = _codes(dataset.y, trainer.classes)

    def train(self, epoch: int) -> dict[str, float]:
        """Train on views of train in the epoch's order; return the loss and the accuracy of the steps."""
        options, augmentation = self._options, self._options.augmentation
        self._trainer.begin(augmentation.seed, epoch, options.rate(epoch))
        order = np.random.default_rng([augmentation.seed, epoch]).permutation(self._train)
        views = (augmentation, epoch) if augmentation.changes else None
        with self._pictures.watch.stage("train"):
            loss, share, count = self._over(
                self._pictures.batches(order, views),
                lambda pixels, rows: self._trainer.step(pixels, self._labels[rows], self._weights[rows]),
            )
        self._pictures.watch.trained += count
        return {"epoch": epoch, "loss": loss, "accuracy": share}

    def validate(self) -> dict[str, float]:
        """Return the loss and the accuracy on val, of the images themselves."""
        with self._pictures.watch.stage("validate"):
            loss, share, _ = self._over(
                self._pictures.batches(self._val),
                lambda pixels, rows: self._trainer.evaluate(pixels, self._labels[rows]),
            )
        return {"val_loss": loss, "val_accuracy": share}

    def skip(self, epochs: int) -> None:
        """Count the images of epochs that an earlier process has finished, and of the validation before them."""
        self._pictures.watch.count(len(self._val) + epochs * (len(self._train) + len(self._val)))

    def _over(self, batches: Iterator[Batch], step: Step) -> tuple[float, float, int]:
        """Return the mean loss, the share of right predictions, and the number of images that could be read."""
        losses, right = [], []
        with closing(batches):  # type: ignore[type-var]
            for pixels, rows in batches:
                loss, predicted = step(pixels, rows)
                losses.append(loss)
                right.append(predicted == self._labels[rows])
        if not losses:
            raise SourceError(self._pictures.nothing_left())
        return float(np.concatenate(losses).mean()), float(np.concatenate(right).mean()), sum(map(len, losses))


def _better(row: dict[str, float], course: Course) -> bool:
    """Return whether an epoch has a higher validation accuracy than the best so far, or the same and a lower loss."""
    best = course.history[course.best_epoch - 1] if course.best_epoch else course.start
    return (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def _codes(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label in the sorted classes, int32 (n,); -1 for a label that is no class."""
    at = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    return np.where(classes[at] == y, at, -1).astype(np.int32)
