"""Pooling: how the tapped layer of a backbone's own graph becomes one vector per image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from featurestore.errors import UsageError
from pipelines.backbones.operations import GRAPHS, Operations

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

    def of(self, features: Any, layout: str, ops: Operations = GRAPHS) -> Any:
        """Return an output, pooled to (n, d).

        Args:
            features: the output: positions (n, h, w, c) or (n, c, h, w), tokens (n, t, d), or vectors (n, d).
            layout: of the network's input, "NHWC" or "NCHW".
            ops: of what holds it: by default an output of a graph of OpenVINO.

        Raises:
            UsageError: this pooling has no meaning for an output of this rank.
        """
        axes = ops.rank(features)
        if axes < 2 or (axes == 3 and self.kind not in TOKENS) or (axes == 4 and self.kind not in POSITIONS):
            raise UsageError(
                f"Expected: an output that pooling {self.kind!r} makes into one vector per image. "
                f"Got: shape {ops.shape(features)}."
            )
        if axes == 4 and self.kind != "none":
            reduced = ops.mean if self.kind == "avg" else ops.max
            features = reduced(features, (1, 2) if (self.layout or layout) == "NHWC" else (2, 3))
        elif axes == 3 and self.kind != "none":
            features = self._of_tokens(features, ops)
        elif axes > 2:
            features = ops.flat(features)
        return ops.unit(features) if self.l2 else features

    def _of_tokens(self, tokens: Any, ops: Operations) -> Any:
        if self.kind == "cls":
            return ops.first(tokens)
        patches = ops.after(tokens, self.prefix)
        pooled = ops.max(patches, (1,)) if self.kind == "max" else ops.mean(patches, (1,))
        return pooled if self.kind != "cls+avg" else ops.joined([ops.first(tokens), pooled])
