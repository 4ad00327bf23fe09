"""Make tests/golden/models: one small network with random weights in every format, a picture, and its vector.

``nncf.xml`` stays: ``make_nncf.py`` makes it of ``net.xml``.

The vector is Keras's, and the picture is resized by Pillow alone. Run it where the extras ``export`` and ``dev`` are:

    PYTHONPATH=. python tests/golden/make_models.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from heads.backend import import_keras
from pipelines.backbones.graphs import import_openvino

FOLDER = Path(__file__).parent / "models"
SIDE, WIDTH = 64, 24
MEAN, STD, CROP_RATIO = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875


def main() -> None:
    """Write every file anew."""
    kept = {name: (FOLDER / name).read_bytes() for name in ("net.toml", "nncf.xml", "nncf.bin")}
    shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    for name, data in kept.items():
        (FOLDER / name).write_bytes(data)
    keras, openvino = import_keras(), import_openvino()
    import tensorflow as tf
    import tf2onnx

    keras.utils.set_random_seed(3)
    layers = keras.layers
    pixels = keras.Input((SIDE, SIDE, 3), name="pixels")
    seen = layers.Conv2D(16, 5, strides=4, activation="relu", name="first")(pixels)
    seen = layers.Conv2D(WIDTH, 3, strides=2, activation="tanh", name="features")(seen)
    network = keras.Model(pixels, layers.Dense(5, name="top")(layers.GlobalAveragePooling2D(name="gap")(seen)))
    network.save(FOLDER / "net.keras")
    network.save(FOLDER / "net.h5")
    tap = keras.Model(pixels, seen)
    tap.export(FOLDER / "saved_model", verbose=False)
    signature = (tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="pixels"),)
    function = tf.function(lambda pixels: tap(pixels), input_signature=signature)
    tf2onnx.convert.from_function(function, signature, output_path=str(FOLDER / "net.onnx"))
    whole = onnx.load(FOLDER / "net.onnx")
    onnx.save(whole, FOLDER / "external.onnx", save_as_external_data=True, location="numbers.bin", size_threshold=0)
    (FOLDER / "net.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(tap).convert())
    openvino.save_model(openvino.Core().read_model(FOLDER / "net.onnx"), FOLDER / "net.xml", compress_to_fp16=False)

    draw = np.random.default_rng(7)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize((150, 100), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, int) + draw.integers(-40, 40, (100, 150, 3))
    picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    picture.save(FOLDER / "ref.png")
    side = int(SIDE / CROP_RATIO)
    picture = picture.resize((int(side * 150 / 100), side), Image.Resampling.BICUBIC)
    left, top = round((picture.width - SIDE) / 2), round((picture.height - SIDE) / 2)
    square = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    given = (square / 255 - np.float32(MEAN)) / np.float32(STD)
    given = given[None].astype(np.float32)
    np.save(FOLDER / "ref.npy", np.asarray(tap(given))[0].mean(axis=(0, 1)))
    (FOLDER / "int8.tflite").write_bytes(quantized(tap, given, None))
    (FOLDER / "uint8.tflite").write_bytes(quantized(tap, given, tf.uint8))


def quantized(network: Any, given: np.ndarray, ends: Any) -> bytes:
    """Return a Keras model as a LiteRT file of 8 bits, with inputs and outputs of another type if one is named."""
    import tensorflow as tf

    draw = np.random.default_rng(1)
    seen = [np.clip(given + 0.3 * draw.normal(size=given.shape), -2.3, 2.8).astype(np.float32) for _ in range(32)]
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([one] for one in seen)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if ends is not None:
        converter.inference_input_type = converter.inference_output_type = ends
    return converter.convert()


if __name__ == "__main__":
    main()
