"""TensorBoard event files of a result, written by TensorFlow; the tensorboard package is not needed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from heads.backend import import_tensorflow
from heads.train import TrainResult


def check(folder: Path) -> None:
    """Make the folder if needed, and check, before anything is fitted, that it can be written.

    Raises:
        UsageError: it cannot be written; the message says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"Expected: --tensorboard, a folder that can be written. Got: {folder}: {why}.") from error


def write(result: TrainResult, folder: Path) -> None:
    """Write the sub-folders ``train``, ``validation`` and ``test``.

    The curves have Keras's tags, ``epoch_loss`` and ``epoch_accuracy``, from step 0. The final scores are scalars at
    step 0: ``top1``, and the other metrics of the test split. The head and its parameters are the text ``head``.

    Args:
        result: without a history there are no curves.
        folder: made if needed; TensorBoard shows its name as the run's name.
    """
    tensorflow = import_tensorflow()
    parameters = {"head": result.head.family, **result.head.params}
    table = "\n".join(["| parameter | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in parameters.items())])
    scalars = {
        "train": _curves(result, ""),
        "validation": [*_curves(result, "val_"), ("top1", result.val, 0)],
        "test": [(name, value, 0) for name, value in result.metrics.items()],
    }
    for split, points in scalars.items():
        writer = tensorflow.summary.create_file_writer(str(folder / split))
        with writer.as_default():
            for tag, value, step in points:
                _write(tensorflow, "scalars", tag, tensorflow.constant(value, tensorflow.float32), step)
            if split == "train":
                _write(tensorflow, "text", "head", tensorflow.constant(table), 0)
        writer.close()


def _curves(result: TrainResult, prefix: str) -> list[tuple[str, float, int]]:
    return [
        (f"epoch_{name}", epoch[prefix + name], step)
        for step, epoch in enumerate(result.history)
        for name in ("loss", "accuracy")
        if prefix + name in epoch
    ]


def _write(tensorflow: Any, plugin: str, tag: str, value: Any, step: int) -> None:
    """Write one value as ``tf.summary.scalar`` or ``text`` would; those two require the tensorboard package."""
    kind = tensorflow.compat.v1.SummaryMetadata
    data_class = {"scalars": "DATA_CLASS_SCALAR", "text": "DATA_CLASS_TENSOR"}[plugin]
    metadata = kind(plugin_data=kind.PluginData(plugin_name=plugin), data_class=data_class)
    tensorflow.summary.write(tag, value, step=step, metadata=metadata)
