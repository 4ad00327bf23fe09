"""Options of random views: how far a view may differ from its image, and the identity of views drawn with them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from featurestore.errors import UsageError
from featurestore.limits import check_seed
from featurestore.options import Option

RULES = "affine-v1"  # of ``views``; any other way to draw views or move pixels needs a new name
FLIPS = ("none", "horizontal", "vertical", "both")
FILLS = ("nearest", "reflect", "black")
MAX_VIEWS = 100  # per image


@dataclass(frozen=True)
class Augmentation:
    """How far a random view may differ from its image.

    Attributes:
        rotation: degrees, drawn from ±rotation.
        shift: share of the side, drawn from ±shift per axis.
        shear: degrees, drawn from ±shear.
        zoom: each axis is scaled by a factor drawn from 1 ± zoom.
        flip: "none", "horizontal", "vertical" or "both"; each flip is drawn with probability 1/2.
        fill: what lies beyond the border: "nearest" or "reflect" pixels of the image, or "black".
        seed: the seed of all draws.
    """

    rotation: Annotated[float, Option("Rotate a random view by up to this many degrees either way.")] = 0.0
    shift: Annotated[float, Option("Move a random view by up to this share of its side.")] = 0.0
    shear: Annotated[float, Option("Shear a random view by up to this many degrees.")] = 0.0
    zoom: Annotated[float, Option("Scale each axis of a random view by a factor of 1 ± this.")] = 0.0
    flip: Annotated[str, Option("Flip half of the views: none, horizontal, vertical or both.")] = "none"
    fill: Annotated[str, Option("Fill what lies beyond the border: nearest, reflect or black.")] = "nearest"
    seed: Annotated[int, Option("Another seed draws other views.")] = 0

    def check(self) -> None:
        """Raise UsageError if a value is out of its range."""
        limits = {"rotation": 180.0, "shift": 1.0, "shear": 80.0, "zoom": 0.9}
        for name, most in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UsageError(f"Expected: --{name} from 0 to {most:g}. Got: {value}.")
        if self.flip not in FLIPS:
            raise UsageError(f"Expected: --flip {', '.join(FLIPS)}. Got: {self.flip!r}.")
        if self.fill not in FILLS:
            raise UsageError(f"Expected: --fill {', '.join(FILLS)}. Got: {self.fill!r}.")
        check_seed("--seed of the views", self.seed)

    @property
    def changes(self) -> bool:
        """Whether views differ from their image at all."""
        return any((self.rotation, self.shift, self.shear, self.zoom)) or self.flip != "none"

    def to_json(self) -> str:
        """Return canonical JSON, which is the identity of the views."""
        return json.dumps(asdict(self) | {"rules": RULES}, sort_keys=True, separators=(",", ":"))
