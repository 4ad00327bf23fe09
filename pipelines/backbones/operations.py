"""The few operations that pooling takes, on outputs of a graph of OpenVINO and on numpy's arrays."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

SHORTEST = 1e-12  # length of a vector that is divided by its length


class Operations(Protocol):
    """What is done with an output (n, …), whatever holds it."""

    def rank(self, output: Any) -> int:
        """Return the number of axes; -1 if it is not known."""

    def shape(self, output: Any) -> Any:
        """Return the shape, for a message."""

    def mean(self, output: Any, axes: tuple[int, ...]) -> Any:
        """Return the mean over some axes, which go."""

    def max(self, output: Any, axes: tuple[int, ...]) -> Any:
        """Return the greatest over some axes, which go."""

    def first(self, tokens: Any) -> Any:
        """Return the first token of (n, t, d)."""

    def after(self, tokens: Any, prefix: int) -> Any:
        """Return the tokens of (n, t, d) that come after some."""

    def joined(self, vectors: list[Any]) -> Any:
        """Return vectors (n, d), one behind the other."""

    def flat(self, output: Any) -> Any:
        """Return (n, d)."""

    def unit(self, vectors: Any) -> Any:
        """Return vectors (n, d), each divided by its length."""


class _Graphs:
    """Outputs of a graph of OpenVINO."""

    def rank(self, output: Any) -> int:
        rank = output.get_partial_shape().rank
        return rank.get_length() if rank.is_static else -1

    def shape(self, output: Any) -> Any:
        return output.get_partial_shape()

    def mean(self, output: Any, axes: tuple[int, ...]) -> Any:
        return _ops().reduce_mean(output, list(axes), False).output(0)

    def max(self, output: Any, axes: tuple[int, ...]) -> Any:
        return _ops().reduce_max(output, list(axes), False).output(0)

    def first(self, tokens: Any) -> Any:
        return _ops().gather(tokens, 0, 1).output(0)

    def after(self, tokens: Any, prefix: int) -> Any:
        return _ops().slice(tokens, [prefix], [2**31 - 1], [1], [1]).output(0)

    def joined(self, vectors: list[Any]) -> Any:
        return _ops().concat(vectors, 1).output(0)

    def flat(self, output: Any) -> Any:
        return _ops().reshape(output, [0, -1], True).output(0)

    def unit(self, vectors: Any) -> Any:
        ops = _ops()
        vectors = ops.convert(vectors, "f32").output(0)
        length = ops.sqrt(ops.reduce_sum(ops.multiply(vectors, vectors), [1], True))
        return ops.divide(vectors, ops.maximum(length, np.array([[SHORTEST]], np.float32))).output(0)


class _Arrays:
    """Arrays of float32."""

    def rank(self, output: np.ndarray) -> int:
        return output.ndim

    def shape(self, output: np.ndarray) -> Any:
        return output.shape

    def mean(self, output: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return output.mean(axis=axes)

    def max(self, output: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return output.max(axis=axes)

    def first(self, tokens: np.ndarray) -> np.ndarray:
        return tokens[:, 0]

    def after(self, tokens: np.ndarray, prefix: int) -> np.ndarray:
        return tokens[:, prefix:]

    def joined(self, vectors: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(vectors, axis=1)

    def flat(self, output: np.ndarray) -> np.ndarray:
        return output.reshape(len(output), -1)

    def unit(self, vectors: np.ndarray) -> np.ndarray:
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(SHORTEST))


def _ops() -> Any:
    from openvino import opset13

    return opset13


GRAPHS, ARRAYS = _Graphs(), _Arrays()
