"""Networks with seeded random weights, standing in for published ones that would need a download."""

import importlib
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipelines.backbones import table


def network(name, include_top=False, **options):
    """A keras.applications model with seeded random weights and the batch statistics of real images.

    Without those statistics a deep random network forgets its input, and no comparison could fail.
    """
    import keras

    keras.utils.set_random_seed(7)
    model = getattr(keras.applications, name)(weights=None, include_top=include_top, **options)
    normalisations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalisations:
        layer.momentum = 0.0
    module = importlib.import_module(f"keras.applications.{table.TABLE[name].module}")
    size = model.input_shape[1] or 96
    if normalisations:
        model(module.preprocess_input(pictures(size).astype("float32")), training=True)
    return model


def weights(name, folder, include_top=False, **options) -> Path:
    """Save a seeded network's weights as Keras does."""
    path = Path(folder) / f"{name}{'-top' if include_top else ''}.weights.h5"
    network(name, include_top, **options).save_weights(path)
    return path


def pictures(size):
    """Real photographs: uint8 (6, size, size, 3), the two of scikit-learn and two crops of each."""
    images = []
    for photograph in load_sample_images().images:
        for box in ((107, 0, 534, 427), (0, 0, 200, 200), (300, 150, 520, 370)):
            images.append(Image.fromarray(photograph).crop(box).resize((size, size), Image.Resampling.BILINEAR))
    return np.stack([np.asarray(image) for image in images])


def cosine(a, b):
    """Cosine of each row of a with the same row of b."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
