"""A network of timm or transformers, exported where torch is, to a folder that ``penult backbones add`` takes.

The folder has the network as ONNX, a spec, and a proof of it: a picture, and the vector that torch computes of it with
the network's own transform. What the spec says of the pixels is compared with that transform before anything is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
import warnings
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from featurestore.errors import BackboneError, UsageError
from featurestore.storage.files import write_text
from pipelines.backbones import canary, torch_networks
from pipelines.backbones.model_spec import ModelSpec
from pipelines.backbones.torch_networks import CHOICES, HOMES, INPUT, OUTPUT, Home
from pipelines.folders import check_new, whole_folder
from pipelines.images import decoder

MODEL, SPEC, PICTURE, VECTOR = "model.onnx", "spec.toml", "ref.png", "ref.npy"
MAX_LEVELS = 1.0  # of 255, on average: a resize in torch differs from Pillow's by rounding, any other rule by more


@dataclass(frozen=True)
class Imported:
    """What was exported: the source as it was named, the folder, a name to add it under, its size and width."""

    source: str
    folder: Path
    name: str
    size: int
    width: int

    @property
    def command(self) -> str:
        """The line that adds the network to a store."""
        model, spec = self.folder / MODEL, self.folder / SPEC
        return shlex.join(["penult", "backbones", "add", self.name, str(model), "--spec", str(spec)])

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self) | {"folder": str(self.folder), "command": self.command}


def bring(source: str, to: Path, random: bool = False, pooling: str | None = None) -> Imported:
    """Export a network to a new folder, whole or not at all.

    Args:
        source: "timm:NAME", or "hf:ID" with an ID or a folder of Hugging Face.
        to: the folder to make.
        random: whether its weights are drawn, with a fixed seed, instead of fetched.
        pooling: what is taken of a model of transformers, see ``torch_networks.CHOICES``.

    Raises:
        UsageError: no such source or network, a folder that is there, or an output that has to be said.
        BackboneError: torch is missing, the network cannot be had or exported, or no spec can say its transform.
    """
    if pooling not in (None, *CHOICES):
        raise UsageError(f"Expected: --pooling {', '.join(CHOICES)}. Got: {pooling!r}.")
    kind, _, called = source.partition(":")
    if kind not in HOMES or not called:
        raise UsageError(f"Expected: timm:NAME, or hf:ID with an ID or a folder of Hugging Face. Got: {source!r}.")
    check_new(to)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and of networks, on what their authors will change
        home = torch_networks.open_home(kind, called, random, pooling)
        spec = ModelSpec.of({**home.values, "input": INPUT, "output": OUTPUT, "pooling": "none"})
        picture = _picture()
        with Image.open(io.BytesIO(picture)) as image:
            pixels = np.ascontiguousarray(home.pixels(image), np.float32)
        _check_pixels(source, home, spec, picture, pixels)
        vector = home.vector(pixels)
        with whole_folder(to) as fresh:
            home.export(pixels, fresh / MODEL)
            (fresh / PICTURE).write_bytes(picture)
            np.save(fresh / VECTOR, vector)
            write_text(fresh / SPEC, _written(spec, source, random))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(called).name.rpartition(":")[2]).strip("-.")
    return Imported(source, to, name or kind, spec.size, len(vector))


def _picture() -> bytes:
    """Return a built-in drawing of 904 × 1040 pixels as a PNG, upright and opaque, so that all decode it alike."""
    file = io.BytesIO(resources.files("pipelines.backbones").joinpath(canary.PICTURES[0]).read_bytes())
    made = io.BytesIO()
    with Image.open(file) as image:
        ImageOps.exif_transpose(image).convert("RGB").save(made, "PNG")
    return made.getvalue()


def _check_pixels(source: str, home: Home, spec: ModelSpec, picture: bytes, pixels: np.ndarray) -> None:
    """Raise BackboneError unless a network's own transform makes of a picture what its spec says."""
    if pixels.shape != (3, spec.size, spec.size):
        raise BackboneError(
            f"Expected: a transform to {spec.size} × {spec.size} pixels, as that of {source} says it is. "
            f"Got: {home.transform}, to {pixels.shape}."
        )
    levels = (pixels.transpose(1, 2, 0) * np.array(spec.std) + np.array(spec.mean)) / spec.scale
    off = np.abs(levels - decoder.decode(picture, spec.preprocessing()).pixels).mean()
    if off > MAX_LEVELS:
        raise BackboneError(
            f"The transform of {source} ({home.transform}) makes other pixels than it says, {off:.1f} of 255 off on "
            "average, and no spec can say it: export the network yourself, and write the spec."
        )


def _written(spec: ModelSpec, source: str, random: bool) -> str:
    """Return a spec as TOML, with every key."""
    lines = [f"# {source}, as torch gives it: {OUTPUT} is one vector per image, pooled inside the network."]
    lines += ["# Its weights are random: for trials only."] * random
    lines += ["# The input is (pixel * scale - mean) / std, of pixels from 0 to 255.", ""]
    lines += [f"{key} = {json.dumps(value)}" for key, value in asdict(spec).items()]
    lines += ["", "[reference]  # the vector of the picture, by torch with the network's own transform"]
    return "\n".join([*lines, f'image = "{PICTURE}"', f'vector = "{VECTOR}"', ""])
