"""The operations that pooling takes, on tensors of Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

from heads.backend import import_keras
from pipelines.backbones.operations import SHORTEST


class _Tensors:
    """Outputs of layers, see ``pipelines.backbones.operations.Operations``; they have the layers' own dtype."""

    def rank(self, output: Any) -> int:
        return len(output.shape)

    def shape(self, output: Any) -> Any:
        return tuple(output.shape)

    def mean(self, output: Any, axes: tuple[int, ...]) -> Any:
        return import_keras().ops.mean(output, axes)

    def max(self, output: Any, axes: tuple[int, ...]) -> Any:
        return import_keras().ops.max(output, axes)

    def first(self, tokens: Any) -> Any:
        return tokens[:, 0]

    def after(self, tokens: Any, prefix: int) -> Any:
        return tokens[:, prefix:]

    def joined(self, vectors: list[Any]) -> Any:
        return import_keras().ops.concatenate(vectors, 1)

    def flat(self, output: Any) -> Any:
        return import_keras().layers.Flatten()(output)

    def unit(self, vectors: Any) -> Any:
        ops = import_keras().ops
        length = ops.sqrt(ops.sum(ops.square(vectors), 1, keepdims=True))
        return vectors / ops.maximum(length, np.float32(SHORTEST))


TENSORS = _Tensors()
