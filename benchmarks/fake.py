"""A backbone of no cost, for claims about everything else."""

from __future__ import annotations

import numpy as np

WIDTH = 1280


class FreeEngine:
    """1,280 numbers a picture, from its first pixels."""

    width, batch_size = WIDTH, 32

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        first = pixels.reshape(len(pixels), -1)[:, :WIDTH]
        return first.astype(np.float32) / 255


def install() -> None:
    """Let this process embed with it."""
    from pipelines import worker

    worker.open_engine = lambda *_args, **_options: FreeEngine()  # type: ignore[assignment]
