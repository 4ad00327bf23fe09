"""What the reports share: templates, pictures inside the page, intervals on one axis, words for a head."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from heads import registry

IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}

Thumbnail = Callable[[str], bytes | None]  # returns small PNG, JPEG, GIF or WebP bytes for a URI, or None


def template(name: str) -> Any:
    """Return a Jinja template of this package, which escapes whatever it shows and fails on what it is not given."""
    return _templates().get_template(name)


@cache
def _templates() -> Any:
    """Return what compiles each template once per process: that takes longer than to render it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["points"] = points
    environment.filters["range"] = lambda ends: f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"
    return environment


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text, in per cent."""
    return f"{100 * share:.{digits}f}\u202f%"


def points(difference: float, digits: int = 2) -> str:
    """Return a difference of two shares as text, in percentage points: +1.25, −0.30, 0."""
    value = round(100 * difference, digits)
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0"


def picture(uri: str, thumbnail: Thumbnail) -> dict[str, Any]:
    """Return an image for the macro ``gallery``: its URI, name and source, None where there is no thumbnail."""
    return {"uri": uri, "name": PurePosixPath(uri).name, "source": data_uri(thumbnail(uri))}


def data_uri(image: bytes | None) -> str | None:
    """Return an image as a data URI; None if it is not of one of the ``IMAGE_TYPES``."""
    kind = next((kind for magic, kind in IMAGE_TYPES.items() if image and image.startswith(magic)), None)
    if image is None or kind is None:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def describe(row: Mapping[str, Any]) -> str:
    """Return the parameters of a leaderboard's row in words."""
    words = [
        registry.describe(row["head"], row["params"]),
        "balanced" if row.get("class_weight") else "",
        f"{row['views']} views" if row.get("views") else "",
    ]
    return ", ".join(filter(None, words))


@dataclass(frozen=True)
class Axis:
    """An axis that intervals share, as the macro ``interval`` draws them; its ends are multiples of 5 %."""

    low: float
    high: float

    @classmethod
    def of(cls, intervals: Iterable[Sequence[float]]) -> Axis:
        """Return the shortest axis with room for the intervals, from 0 to 100 % if there is none."""
        known = list(intervals) or [(0.0, 1.0)]
        first = min(math.floor(20 * min(ci[0] for ci in known)), 19)
        last = max(math.ceil(20 * max(ci[1] for ci in known)), first + 1)
        return cls(first / 20, last / 20)

    def places(self, value: float, ci: Sequence[float]) -> list[float]:
        """Return where on the axis, from 0 to 100, the interval's ends and the value are."""
        return [round(100 * (share - self.low) / (self.high - self.low), 2) for share in (*ci, value)]
