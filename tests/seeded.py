"""Networks with seeded random weights, standing in for published ones that would need a download."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from heads.backend import import_keras
from pipelines.backbones import table
from pipelines.backbones.applications import TF
from pipelines.backbones.keras_base import KerasBackbone

if TYPE_CHECKING:
    import keras


def network(name: str, include_top: bool = False, **options: Any) -> keras.Model:
    """A keras.applications model with seeded random weights and the batch statistics of real images."""
    keras = import_keras()
    keras.utils.set_random_seed(7)
    model = getattr(keras.applications, name)(weights=None, include_top=include_top, **options)
    module = importlib.import_module(f"keras.applications.{table.TABLE[name].module}")
    return settled(model, module.preprocess_input)


def settled(model: keras.Model, normalized: Any) -> keras.Model:
    """Without the statistics of real images a deep random network forgets its input, and no comparison could fail."""
    normalisations = [layer for layer in model.layers if isinstance(layer, import_keras().layers.BatchNormalization)]
    for layer in normalisations:
        layer.momentum = 0.0
    if normalisations:
        model(normalized(pictures(model.input_shape[1] or 96).astype("float32")), training=True)
    return model


def weights(name: str, folder: Path, include_top: bool = False, **options: Any) -> Path:
    """Save a seeded network's weights as Keras does."""
    path = Path(folder) / f"{name}{'-top' if include_top else ''}.weights.h5"
    network(name, include_top, **options).save_weights(path)
    return path


@dataclass(frozen=True)
class Small(KerasBackbone):
    """MobileNet's first two blocks, a few channels wide: its kinds of layers, built in a fraction of its time."""

    folder: Path

    def published(self, top: bool) -> Path:
        return self.folder / f"{self.name}.weights.h5"

    def network(self, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
        keras = import_keras()
        maps = pixels = keras.Input((input_size, input_size, 3))
        options: dict[str, Any] = {"padding": "same", "use_bias": False}
        for layer in (
            keras.layers.Conv2D(8, 3, 2, name="conv1", **options),
            keras.layers.DepthwiseConv2D(3, name="conv_dw_1", **options),
            keras.layers.Conv2D(16, 1, name="conv_pw_1", **options),
            keras.layers.DepthwiseConv2D(3, 2, name="conv_dw_2", **options),
            keras.layers.Conv2D(self.width, 1, name="conv_pw_2", **options),
        ):
            maps = keras.layers.BatchNormalization(name=f"{layer.name}_bn")(layer(maps))
            maps = keras.layers.ReLU(6.0, name=f"{layer.name}_relu")(maps)
        pool = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}.get(pooling)
        return keras.Model(pixels, pool()(maps) if pool else maps, name=self.name)

    def normalized(self, pixels: Any) -> Any:
        return (pixels - TF.mean[0]) / TF.std[0]


@contextmanager
def small(folder: Path) -> Iterator[Small]:
    """The backbone ``small``, while the block runs; its weights are in the folder, and made if they are not."""
    backbone = Small("small", 64, 32, TF, "conv_pw_2_relu", folder)
    if not backbone.published(top=False).exists():
        import_keras().utils.set_random_seed(7)
        settled(backbone.network(False, 64), backbone.normalized).save_weights(backbone.published(top=False))
    table.register(backbone)
    try:
        yield backbone
    finally:
        del table.TABLE[backbone.name]


def pictures(size: int) -> np.ndarray:
    """Real photographs: uint8 (6, size, size, 3), the two of scikit-learn and two crops of each."""
    from sklearn.datasets import load_sample_images  # takes a second

    images = []
    for photograph in load_sample_images().images:
        for box in ((107, 0, 534, 427), (0, 0, 200, 200), (300, 150, 520, 370)):
            images.append(Image.fromarray(photograph).crop(box).resize((size, size), Image.Resampling.BILINEAR))
    return np.stack([np.asarray(image) for image in images])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a with the same row of b."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
