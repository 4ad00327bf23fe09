"""Networks of timm and of Hugging Face's transformers, as torch runs them: the only module that knows torch.

A network gives one vector per image, as its home framework gives it to a classifier or a projection behind it:

* timm: the model without its classifier, ``num_classes=0``. Its own pooling and its last norm are inside.
* transformers: what ``OUTPUTS`` says of the model's type, or what the user says. The "pooler" of a type is taken only
  where it was trained: that of a plain ViT is random in a checkpoint of a classifier.

Sources: ``create_model``, ``resolve_model_data_config`` and ``create_transform`` of timm; ``AutoModel`` and
``AutoImageProcessor`` of transformers.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featurestore.errors import BackboneError, UsageError
from pipelines.backbones import shipped
from pipelines.backbones.base import near
from pipelines.backbones.models import first_line

if TYPE_CHECKING:
    import torch

SEED = 0  # of random weights
INPUT, OUTPUT = "pixels", "features"  # of the exported graph
CHOICES = ("cls", "avg", "pooler")  # of the outputs of a model of transformers
PACKAGES = {
    "timm": ("torch", "torchvision", "timm", "onnxscript"),
    "hf": ("torch", "torchvision", "transformers", "onnxscript"),
}
# By model_type of transformers. The poolers named here are part of what was trained, or have no weights.
OUTPUTS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"), "cls"),
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model"), "pooler"),
    **dict.fromkeys(("convnext", "convnextv2", "dinov3_convnext", "regnet", "resnet", "swin", "swinv2"), "pooler"),
}
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # of types with a text tower beside


@dataclass(frozen=True)
class Home:
    """A network at home.

    Attributes:
        network: float32 (n, 3, s, s) → (n, d), without dropout or gradients.
        pixels: its own transform, from an RGB picture to float32 (3, s, s).
        transform: what people call that.
        values: of a spec, as far as the framework tells them.
    """

    network: torch.nn.Module
    pixels: Callable[[Image.Image], np.ndarray]
    transform: str
    values: dict[str, Any]

    def vector(self, pixels: np.ndarray) -> np.ndarray:
        """Return the vector of one picture's pixels, float32 (d,).

        Raises:
            BackboneError: the network does not take such pixels, or gives no vector.
        """
        import torch

        try:
            with torch.inference_mode():
                made, again = (self.network(torch.from_numpy(pixels)[None]) for _ in range(2))
        except Exception as error:  # whatever the network's code raises
            why = first_line(error)
            raise BackboneError(f"The network does not run on a picture of its own transform: {why}") from error
        if made.ndim != 2:
            raise BackboneError(f"Expected: a network with one vector per image. Got: shape {tuple(made.shape)}.")
        if not torch.allclose(made, again, rtol=1e-3, atol=1e-5):
            raise BackboneError("Expected: a network that gives one picture one vector. Got: one that draws at random.")
        return made[0].numpy()

    def export(self, pixels: np.ndarray, path: Path) -> None:
        """Write the network as ONNX, for any number of images at once, with its weights beside it.

        Raises:
            BackboneError: torch cannot export it.
        """
        import torch

        example = torch.from_numpy(pixels)[None].repeat(2, 1, 1, 1)
        try:
            program = torch.onnx.export(
                self.network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
            program.save(path, external_data=True)
        except Exception as error:  # of torch.export, of the conversion, or of the disk
            raise BackboneError(f"torch cannot export the network as ONNX: {first_line(error)}") from error


def open_home(kind: str, name: str, random: bool, pooling: str | None) -> Home:
    """Return a network of timm ("timm") or of transformers ("hf").

    Args:
        kind: a key of ``HOMES``.
        name: a model of timm, or an ID or a folder of Hugging Face.
        random: whether its weights are drawn with ``SEED`` instead of fetched.
        pooling: one of ``CHOICES``, for models of transformers whose output is not known; None if not said.

    Raises:
        BackboneError: a package is missing, or the network cannot be had.
        UsageError: there is no such network, or it has to be said what its output is.
    """
    missing = [package for package in PACKAGES[kind] if importlib.util.find_spec(package) is None]
    if missing:
        raise BackboneError(f"{kind}:{name} needs {', '.join(missing)}: run `pip install {' '.join(PACKAGES[kind])}`.")
    import torch

    torch.manual_seed(SEED)
    home = HOMES[kind](name, random, pooling)
    home.network.eval().float().requires_grad_(False)
    return home


def _of_timm(name: str, random: bool, pooling: str | None) -> Home:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    if pooling is not None:
        raise UsageError(f"A model of timm has its own pooling: leave --pooling {pooling} out.")
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if ":" not in name and name not in known:
        raise UsageError(f"timm has no model {name!r}{near(name, sorted(known), '`timm.list_models()`')}.")
    try:
        network = timm.create_model(name, pretrained=not random, num_classes=0, exportable=True)
    except Exception as error:  # of the network's code, of the download or of a file
        raise _cannot_be_had(f"timm:{name}", error) from error
    config = resolve_model_data_config(network)
    transform = create_transform(**config, is_training=False)
    steps = ", ".join(type(step).__name__ for step in transform.transforms)
    return Home(
        network,
        lambda picture: transform(picture).numpy(),
        steps,
        shipped.values_of(config, f"The transform of {name}"),
    )


def _of_transformers(name: str, random: bool, pooling: str | None) -> Home:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(name)
        output = pooling or OUTPUTS.get(TOWERS.get(config.model_type, config.model_type))
        if output is None:
            raise UsageError(
                f"Expected: --pooling {', '.join(CHOICES)}, as what {name} was trained for says. Got: none, and the "
                f"type {config.model_type} leaves it open."
            )
        processor = AutoImageProcessor.from_pretrained(name)
        whole = AutoModel.from_config(config) if random else AutoModel.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:  # not there, not reached, or of an unknown type
        raise _cannot_be_had(f"hf:{name}", error) from error
    tower = whole.vision_model if config.model_type in TOWERS else whole

    def pixels(picture: Image.Image) -> np.ndarray:
        return processor(images=picture, return_tensors="np")["pixel_values"][0]

    values = shipped.values_of(json.loads(processor.to_json_string()), f"The image processor of {name}")
    return Home(_tapped(tower, output), pixels, type(processor).__name__, values)


def _tapped(tower: torch.nn.Module, output: str) -> torch.nn.Module:
    """Return a network of one output of a model of transformers."""
    import torch

    class Tapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            made = self.tower(pixel_values=pixels)
            return TAKEN[output](made, _patches(tower, pixels.shape[-1]))

    return Tapped()


def _patches(tower: torch.nn.Module, side: int) -> int | None:
    """Return how many tokens are the picture's own; None if the model has no patches of one size."""
    patch = getattr(tower.config, "patch_size", None)
    return (side // patch) ** 2 if isinstance(patch, int) else None


def _averaged(made: Any, patches: int | None) -> torch.Tensor:
    tokens = made.last_hidden_state
    if tokens.ndim == 4:
        return tokens.mean((2, 3))
    if patches is None or not 0 < patches <= tokens.shape[1]:
        raise ValueError(f"which of {tokens.shape[1]} tokens are patches is not known: choose another --pooling")
    return tokens[:, tokens.shape[1] - patches :].mean(1)


# What is taken of the outputs of a model of transformers, and how many of the last tokens are patches:
TAKEN: dict[str, Callable[[Any, int | None], torch.Tensor]] = {
    "cls": lambda made, patches: made.last_hidden_state[:, 0],
    "avg": _averaged,
    "pooler": lambda made, patches: made.pooler_output.flatten(1),
}
HOMES: dict[str, Callable[[str, bool, str | None], Home]] = {"timm": _of_timm, "hf": _of_transformers}


def _cannot_be_had(name: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"{name} cannot be had: {first_line(error)} Name one that this machine has or can reach, or give --random."
    )
