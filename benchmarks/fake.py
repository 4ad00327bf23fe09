"""A backbone of no cost, for claims about everything else."""

from __future__ import annotations

import numpy as np

WIDTH = 1280


class FreeEngine:
    """``width`` numbers per image, from its first pixels."""

    batch_size = 32

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        first = pixels.reshape(len(pixels), -1)[:, : self.width]
        return first.astype(np.float32) / 255


def install(width: int = WIDTH) -> None:
    """Let this process embed with it."""
    from pipelines.embedding import worker

    worker.engine_for.cache_clear()
    worker.open_engine = lambda *_args, **_options: FreeEngine(width)  # type: ignore[assignment]
