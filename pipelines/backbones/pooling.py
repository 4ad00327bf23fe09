"""Pooling: how the tapped layer of a backbone's own graph becomes one vector per image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import UsageError

POSITIONS = ("avg", "max", "none")  # over a map (n, h, w, c)
TOKENS = ("cls", "avg", "max", "cls+avg", "none")  # over tokens (n, t, d)
_WRITTEN = re.compile(r"(?P<kind>[a-z+]+)(?: after (?P<prefix>\d{1,4}))?(?: of (?P<layout>NHWC|NCHW))?(?P<l2>, l2)?")


@dataclass(frozen=True)
class Pooling:
    """How features become a vector; ``str`` is what a feature set's spec holds, and ``parse`` reads it.

    Attributes:
        kind: "avg" or "max" over positions or tokens; "cls", the first token; "cls+avg", both, one behind the other;
            "none" flattens.
        prefix: tokens before those of the image's patches, such as CLS and registers: "avg" and "max" leave them out.
        l2: the vector is divided by its length.
        layout: of positions, "NHWC" or "NCHW"; "" if it is that of the network's input.
    """

    kind: str
    prefix: int = 0
    l2: bool = False
    layout: str = ""

    def __str__(self) -> str:
        """Return the kind, and what is not at its default."""
        prefix, layout = f" after {self.prefix}" * bool(self.prefix), f" of {self.layout}" * bool(self.layout)
        return self.kind + prefix + layout + ", l2" * self.l2

    @classmethod
    def parse(cls, text: str) -> Pooling:
        """Read what ``str`` gives.

        Raises:
            UsageError: it is something else.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None or found["kind"] not in {*POSITIONS, *TOKENS}:
            known = ", ".join(dict.fromkeys(POSITIONS + TOKENS))
            raise UsageError(f"Expected: a pooling, one of {known}. Got: {text!r}.")
        return cls(found["kind"], int(found["prefix"] or 0), bool(found["l2"]), found["layout"] or "")

    def of(self, features: Any, layout: str) -> Any:
        """Return an output of an OpenVINO graph, pooled to (n, d).

        Args:
            features: the output: positions (n, h, w, c) or (n, c, h, w), tokens (n, t, d), or vectors (n, d).
            layout: of the network's input, "NHWC" or "NCHW".

        Raises:
            UsageError: this pooling has no meaning for an output of this rank.
        """
        from openvino import opset13 as ops

        rank = features.get_partial_shape().rank
        axes = rank.get_length() if rank.is_static else -1
        if axes < 2 or (axes == 3 and self.kind not in TOKENS) or (axes == 4 and self.kind not in POSITIONS):
            raise UsageError(
                f"Expected: an output that pooling {self.kind!r} makes into one vector per image. "
                f"Got: shape {features.get_partial_shape()}."
            )
        if axes == 4 and self.kind != "none":
            reduce = ops.reduce_mean if self.kind == "avg" else ops.reduce_max
            features = reduce(features, [1, 2] if (self.layout or layout) == "NHWC" else [2, 3], False).output(0)
        elif axes == 3 and self.kind != "none":
            features = self._of_tokens(features)
        elif axes > 2:
            features = ops.reshape(features, [0, -1], True).output(0)
        if not self.l2:
            return features
        features = ops.convert(features, "f32").output(0)
        length = ops.sqrt(ops.reduce_sum(ops.multiply(features, features), [1], True))
        return ops.divide(features, ops.maximum(length, np.array([[1e-12]], np.float32))).output(0)

    def _of_tokens(self, tokens: Any) -> Any:
        from openvino import opset13 as ops

        first = ops.gather(tokens, 0, 1)
        if self.kind == "cls":
            return first.output(0)
        patches = ops.slice(tokens, [self.prefix], [2**31 - 1], [1], [1])
        pooled = (ops.reduce_max if self.kind == "max" else ops.reduce_mean)(patches, [1], False)
        return (pooled if self.kind != "cls+avg" else ops.concat([first, pooled], 1)).output(0)
