"""Decoding for a backbone that is told in a few words."""

from __future__ import annotations

from typing import Any

from featurestore.spec import Preprocessing
from pipelines.images import decoder


def decoded(data: bytes, side: int, crop: str = "squash", **more: Any) -> decoder.Picture:
    """Decode a file for an input of ``side`` pixels; ``more`` are further fields of the preprocessing."""
    return decoder.decode(data, Preprocessing(side, "lite", crop, **more))
