"""Make tests/golden/models/nncf.xml: the small network with activations and weights of 8 bits, by NNCF 3.4.

penult does not depend on NNCF. Run it in an environment with ``nncf``, ``openvino`` and ``pillow``:

    python tests/golden/make_nncf.py
"""

from __future__ import annotations

import re
from pathlib import Path

import nncf
import numpy as np
import openvino
from PIL import Image

FOLDER = Path(__file__).parent / "models"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Quantise the network on the picture with noise, and write it without the white space."""
    pixels = np.asarray(Image.open(FOLDER / "ref.png").convert("RGB").resize((64, 64)), np.float32)
    given = (pixels / 255 - np.float32(MEAN)) / np.float32(STD)
    draw = np.random.default_rng(1)
    seen = [(given[None] + 0.3 * draw.normal(size=(1, 64, 64, 3))).astype(np.float32) for _ in range(32)]
    network = openvino.Core().read_model(FOLDER / "net.xml")
    openvino.save_model(nncf.quantize(network, nncf.Dataset(seen)), FOLDER / "nncf.xml", compress_to_fp16=False)
    text = (FOLDER / "nncf.xml").read_text()
    (FOLDER / "nncf.xml").write_text(re.sub(r">\s+<", "><", text))


if __name__ == "__main__":
    main()
