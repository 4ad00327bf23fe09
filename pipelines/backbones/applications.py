"""The models of keras.applications, with their published weights in Keras's cache."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import BackboneError, UsageError
from heads.backend import import_keras
from pipelines.backbones.base import Normalization
from pipelines.backbones.keras_base import KerasBackbone

if TYPE_CHECKING:
    import keras

# As keras.applications.imagenet_utils names them.
CAFFE = Normalization((103.939, 116.779, 123.68), channels="bgr", name="caffe")
TF = Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), name="tf")
TORCH = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), name="torch")
MODEL = Normalization(name="model")  # left to the model


@dataclass(frozen=True)
class Application(KerasBackbone):
    """A model of keras.applications.

    Attributes:
        module: of keras.applications, with the function that normalises pixels.
        file: the name of the published weights without classifier in Keras's cache.
        unnamed_top: layers after the last feature layer that have no name of their own.
    """

    module: str
    file: str
    unnamed_top: tuple[str, ...] = ()

    def needs_top(self, layer: str) -> bool:
        """Return whether a layer exists only in the network with its classifier."""
        return super().needs_top(layer) or layer in self.unnamed_top

    def published(self, top: bool) -> Path:
        """Return where the published weights are, or will be once Keras has downloaded them."""
        name = re.sub(r"[-_]no_?top(_v2)?", "", self.file) if top else self.file
        return _keras_home() / "models" / name

    def fetch(self, top: bool) -> None:
        """Download the published weights with Keras unless they are on this machine.

        Raises:
            BackboneError: the download was refused.
        """
        if self.published(top).is_file():
            return
        builder = getattr(import_keras().applications, self.name)
        shape = (self.input_size, self.input_size, 3)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # Keras draws its progress bar on stdout
                builder(weights="imagenet", include_top=top, input_shape=shape)
        except Exception as error:
            raise BackboneError(
                f"The weights of {self.name} could not be downloaded: give a copy with `--weights FILE`."
            ) from error

    def network(self, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
        """Return the network with random weights; Keras pools its last layer."""
        try:
            return getattr(import_keras().applications, self.name)(
                weights=None,
                include_top=top,
                input_shape=(input_size, input_size, 3),
                pooling=None if pooling == "none" else pooling,
            )
        except ValueError as error:
            raise UsageError(f"{self.name} cannot be built for {input_size} pixels: {error}") from error

    def normalized(self, pixels: Any) -> Any:
        """Return float pixels of 0 to 255 as in the network's training."""
        return importlib.import_module(f"keras.applications.{self.module}").preprocess_input(pixels)


def _keras_home() -> Path:
    """Return Keras's folder by Keras's own rule, without importing Keras."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"])
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"


KERNELS = "_weights_tf_dim_ordering_tf_kernels"

# fmt: off
APPLICATIONS = (
    Application("ConvNeXtBase", 224, 1024, MODEL, "layer_normalization", "convnext", "convnext_base_notop.h5"),
    Application("ConvNeXtLarge", 224, 1536, MODEL, "layer_normalization", "convnext", "convnext_large_notop.h5"),
    Application("ConvNeXtSmall", 224, 768, MODEL, "layer_normalization", "convnext", "convnext_small_notop.h5"),
    Application("ConvNeXtTiny", 224, 768, MODEL, "layer_normalization", "convnext", "convnext_tiny_notop.h5"),
    Application("ConvNeXtXLarge", 224, 2048, MODEL, "layer_normalization", "convnext", "convnext_xlarge_notop.h5"),
    Application("DenseNet121", 224, 1024, TORCH, "relu", "densenet", f"densenet121{KERNELS}_notop.h5"),
    Application("DenseNet169", 224, 1664, TORCH, "relu", "densenet", f"densenet169{KERNELS}_notop.h5"),
    Application("DenseNet201", 224, 1920, TORCH, "relu", "densenet", f"densenet201{KERNELS}_notop.h5"),
    Application("EfficientNetB0", 224, 1280, MODEL, "top_activation", "efficientnet", "efficientnetb0_notop.h5"),
    Application("EfficientNetB1", 240, 1280, MODEL, "top_activation", "efficientnet", "efficientnetb1_notop.h5"),
    Application("EfficientNetB2", 260, 1408, MODEL, "top_activation", "efficientnet", "efficientnetb2_notop.h5"),
    Application("EfficientNetB3", 300, 1536, MODEL, "top_activation", "efficientnet", "efficientnetb3_notop.h5"),
    Application("EfficientNetB4", 380, 1792, MODEL, "top_activation", "efficientnet", "efficientnetb4_notop.h5"),
    Application("EfficientNetB5", 456, 2048, MODEL, "top_activation", "efficientnet", "efficientnetb5_notop.h5"),
    Application("EfficientNetB6", 528, 2304, MODEL, "top_activation", "efficientnet", "efficientnetb6_notop.h5"),
    Application("EfficientNetB7", 600, 2560, MODEL, "top_activation", "efficientnet", "efficientnetb7_notop.h5"),
    Application("EfficientNetV2B0", 224, 1280, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-b0_notop.h5"),  # noqa: E501
    Application("EfficientNetV2B1", 240, 1280, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-b1_notop.h5"),  # noqa: E501
    Application("EfficientNetV2B2", 260, 1408, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-b2_notop.h5"),  # noqa: E501
    Application("EfficientNetV2B3", 300, 1536, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-b3_notop.h5"),  # noqa: E501
    Application("EfficientNetV2L", 480, 1280, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-l_notop.h5"),
    Application("EfficientNetV2M", 480, 1280, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-m_notop.h5"),
    Application("EfficientNetV2S", 384, 1280, MODEL, "top_activation", "efficientnet_v2", "efficientnetv2-s_notop.h5"),
    Application("InceptionResNetV2", 299, 1536, TF, "conv_7b_ac", "inception_resnet_v2", f"inception_resnet_v2{KERNELS}_notop.h5"),  # noqa: E501
    Application("InceptionV3", 299, 2048, TF, "mixed10", "inception_v3", f"inception_v3{KERNELS}_notop.h5"),
    Application("MobileNet", 224, 1024, TF, "conv_pw_13_relu", "mobilenet", "mobilenet_1_0_224_tf_no_top.h5"),
    Application("MobileNetV2", 224, 1280, TF, "out_relu", "mobilenet_v2", f"mobilenet_v2{KERNELS}_1.0_224_no_top.h5"),
    Application("MobileNetV3Large", 224, 960, MODEL, "activation_19", "mobilenet_v3", "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", ("activation_20",)),  # noqa: E501
    Application("MobileNetV3Small", 224, 576, MODEL, "activation_17", "mobilenet_v3", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", ("activation_18",)),  # noqa: E501
    Application("NASNetLarge", 331, 4032, TF, "activation_259", "nasnet", "nasnet_large_no_top.h5"),
    Application("NASNetMobile", 224, 1056, TF, "activation_187", "nasnet", "nasnet_mobile_no_top.h5"),
    Application("ResNet50", 224, 2048, CAFFE, "conv5_block3_out", "resnet", f"resnet50{KERNELS}_notop.h5"),
    Application("ResNet101", 224, 2048, CAFFE, "conv5_block3_out", "resnet", f"resnet101{KERNELS}_notop.h5"),
    Application("ResNet152", 224, 2048, CAFFE, "conv5_block3_out", "resnet", f"resnet152{KERNELS}_notop.h5"),
    Application("ResNet50V2", 224, 2048, TF, "post_relu", "resnet_v2", f"resnet50v2{KERNELS}_notop.h5"),
    Application("ResNet101V2", 224, 2048, TF, "post_relu", "resnet_v2", f"resnet101v2{KERNELS}_notop.h5"),
    Application("ResNet152V2", 224, 2048, TF, "post_relu", "resnet_v2", f"resnet152v2{KERNELS}_notop.h5"),
    Application("VGG16", 224, 512, CAFFE, "block5_pool", "vgg16", f"vgg16{KERNELS}_notop.h5"),
    Application("VGG19", 224, 512, CAFFE, "block5_pool", "vgg19", f"vgg19{KERNELS}_notop.h5"),
    Application("Xception", 299, 2048, TF, "block14_sepconv2_act", "xception", f"xception{KERNELS}_notop.h5"),
)
# fmt: on
