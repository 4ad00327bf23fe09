"""Feature extraction as Keras's guide to transfer learning does it: a data set from a folder, then ``predict``.

    python -m benchmarks.keras_guide CORPUS BACKBONE WEIGHTS SECONDS

Prints images per second. The backbone is the one penult runs, so the two compute the same features.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(corpus: str, backbone: str, weights: str, seconds: float) -> None:
    import keras
    import tensorflow as tf

    from pipelines.backbones.networks import build
    from pipelines.backbones.table import resolve

    tap = resolve(backbone, weights)
    model = build(tap)
    pictures = keras.utils.image_dataset_from_directory(
        corpus, image_size=(tap.input_size, tap.input_size), batch_size=32, shuffle=False, verbose=False
    )
    pixels = pictures.map(lambda x, _: tf.cast(x, "uint8")).prefetch(2)
    for batch in pixels.take(1):
        began = time.perf_counter()
        model.predict(batch, verbose=0)  # traced once, not counted below
        a_batch = time.perf_counter() - began
    began = time.perf_counter()
    model.predict(pixels.take(4), verbose=0)
    a_batch = min(a_batch, (time.perf_counter() - began) / 4)
    batches = min(max(8, int(seconds / a_batch)), int(pictures.cardinality()))
    began = time.perf_counter()
    features = model.predict(pixels.take(batches), verbose=0)
    print(len(features) / (time.perf_counter() - began))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
