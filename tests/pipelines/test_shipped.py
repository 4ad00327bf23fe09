"""What ships with networks of Keras and OpenVINO, taken into a spec: against Keras's own code, and a graph's own."""

from __future__ import annotations

import importlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import json_of, penult
from featurestore.errors import UsageError
from heads.backend import import_keras
from pipelines.backbones.applications import APPLICATIONS
from pipelines.backbones.graphs import import_openvino
from pipelines.backbones.model_spec import ModelSpec, read
from pipelines.images import decoder


def spec_of(folder: Path, *lines: str) -> ModelSpec:
    (folder / "spec.toml").write_text("\n".join(lines))
    return read(folder / "spec.toml")[0]


def picture(width: int, height: int) -> Image.Image:
    """A smooth one, in which a wrong rule shows and a rounding does not."""
    coarse = np.random.default_rng(width).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def seen_by(image: Image.Image, spec: ModelSpec) -> np.ndarray:
    """The input as the spec says it, float (s, s, 3)."""
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = decoder.decode(file.getvalue(), spec.preprocessing()).pixels.astype(float)
    pixels = pixels if spec.channels == "RGB" else pixels[..., ::-1]
    return (pixels * spec.scale - np.array(spec.mean)) / np.array(spec.std)


# -- keras.applications


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121", "EfficientNetB0"])
def test_the_rule_of_an_application_is_its_own_function(tmp_path: Path, name: str) -> None:
    lines = (f'from = "keras:{name.lower()}"', 'layout = "NHWC"', 'resize = "squash"', 'interpolation = "nearest"')
    spec = spec_of(tmp_path, *lines)
    (one,) = (one for one in APPLICATIONS if one.name == name)
    image = picture(one.input_size, one.input_size)
    import_keras()
    rule = importlib.import_module(f"keras.applications.{one.module}").preprocess_input
    np.testing.assert_allclose(seen_by(image, spec), rule(np.asarray(image, np.float32)), atol=1e-4)


def test_what_applications_leave_open_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected: layout, resize, interpolation beside from = 'keras:VGG16'"):
        spec_of(tmp_path, 'from = "keras:VGG16"')
    with pytest.raises(UsageError, match=r"keras.applications has no 'VGG61': the nearest names are .*VGG16"):
        spec_of(tmp_path, 'from = "keras:VGG61"')


# -- KerasHub

CONVERTER: dict[str, Any] = {
    "name": "image_converter",
    "trainable": True,
    "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None},
    "image_size": [48, 48],
    "scale": [0.017, 0.0175, 0.0174],
    "offset": [-2.1, -2.0, -1.8],
    "interpolation": "bilinear",
    "antialias": False,
    "crop_to_aspect_ratio": False,
    "pad_to_aspect_ratio": False,
    "bounding_box_format": "yxyx",
}


def serialized(config: dict[str, Any], inside: bool = False) -> dict[str, Any]:
    """As KerasHub saves a converter; inside, in a preprocessor."""
    one = {"module": "keras_hub.layers", "class_name": "ResNetImageConverter", "config": config}
    if not inside:
        return one
    config = {"name": "preprocessor", "image_converter": one, "config_file": "preprocessor.json"}
    return {"module": "keras_hub.models", "class_name": "ResNetImageClassifierPreprocessor", "config": config}


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, (90, 60)),
        ({"antialias": True, "interpolation": "bicubic"}, (90, 60)),
        ({"antialias": True, "interpolation": "lanczos3"}, (90, 60)),
        ({"antialias": True}, (60, 100)),
        ({"crop_to_aspect_ratio": True}, (90, 60)),
        ({"crop_to_aspect_ratio": True, "antialias": True}, (60, 100)),
        ({"pad_to_aspect_ratio": True}, (96, 72)),
        ({"scale": 1 / 127.5, "offset": -1.0}, (90, 60)),
        ({"scale": None, "offset": None}, (90, 60)),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_converter_is_what_keras_does(
    tmp_path: Path, change: dict[str, Any], size: tuple[int, int], inside: bool
) -> None:
    config = CONVERTER | change
    (tmp_path / "preprocessor.json").write_text(json.dumps(serialized(config, inside)))
    spec = spec_of(tmp_path, 'from = "preprocessor.json"', 'layout = "NHWC"')
    keys = ("interpolation", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    resizing = import_keras().layers.Resizing(48, 48, **{key: config[key] for key in keys})
    image = picture(*size)
    scale, offset = (default if config[key] is None else config[key] for key, default in (("scale", 1), ("offset", 0)))
    wanted = np.asarray(resizing(np.asarray(image, np.float32))) * scale + offset
    levels = np.abs(seen_by(image, spec) - wanted) / np.array(scale)
    if config["pad_to_aspect_ratio"]:  # 6 rows of black; Keras adds them before it resizes, and blends them in
        assert levels[:5].max() == levels[-5:].max() == 0
        levels = levels[8:-8]
    # At the edge of a cut, penult knows the neighbours, which Keras has cut off.
    assert levels[:, 4:-4].max() < 1.5 if levels.shape[0] < 48 else levels[4:-4, 4:-4].max() < 1.5


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (serialized(CONVERTER), "Expected: layout beside from = 'preprocessor.json'"),
        (serialized(CONVERTER | {"image_size": None}), "Expected: size, layout beside"),
        (serialized(CONVERTER | {"image_size": [48, 32]}), "a square"),
        (serialized(CONVERTER | {"interpolation": "bicubic"}), "bicubic or lanczos3 with antialias"),
        (serialized(CONVERTER | {"interpolation": "lanczos5"}), "bicubic or lanczos3 with antialias"),
        (serialized(CONVERTER | {"longest_edge": 9}), "Got: 'longest_edge'"),
        (serialized({"name": "text"}), "one without a usable 'interpolation'"),
    ],
)
def test_what_a_converter_leaves_open_is_asked_for(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    (tmp_path / "preprocessor.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        spec_of(tmp_path, 'from = "preprocessor.json"')
    assert str(tmp_path) in str(error.value)


# -- OpenVINO's IR

MEAN, STD, SIDE = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 64
INFO = {
    "model_type": "Classification",
    "mean_values": "123.675 116.28 103.53",
    "scale_values": "58.395 57.12 57.375",
    "reverse_input_channels": "True",
    "resize_type": "standard",
    "labels": "cat dog",
}


def drawn(folder: Path, embedded: bool, **info: str) -> Path:
    """A graph as Model API finds it, RGB NCHW, or saves it: with the resize, mean and scale inside, BGR NHWC."""
    openvino = import_openvino()
    from openvino import opset13 as ops
    from openvino.preprocess import ColorFormat, PrePostProcessor, ResizeAlgorithm

    pixels = ops.parameter([-1, 3, SIDE, SIDE], np.float32, "image")
    kernel = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    rows = ops.relu(ops.convolution(pixels, kernel, [8, 8], [0, 0], [0, 0], [1, 1]))
    features = ops.reduce_mean(rows, [2, 3], False)
    features.output(0).set_names({"features"})
    graph = openvino.Model([features], [pixels], "net")
    if embedded:
        steps = PrePostProcessor(graph)
        tensor = steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        tensor.set_color_format(ColorFormat.BGR).set_spatial_dynamic_shape()
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        resized = steps.input().preprocess().resize(ResizeAlgorithm.RESIZE_LINEAR).convert_color(ColorFormat.RGB)
        resized.convert_element_type(openvino.Type.f32).mean(MEAN).scale(STD)
        graph = steps.build()
        info = {"embedded_processing": "True", "orig_height": str(SIDE), "orig_width": str(SIDE), **info}
    for key, value in {**INFO, **info}.items():
        graph.set_rt_info(value, ["model_info", key])
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_what_is_in_the_graph_is_not_done_twice(tmp_path: Path, channels: str) -> None:
    """The graph with its preprocessing inside, run on the whole picture, is the reference of both."""
    image = picture(150, 110)
    image.save(tmp_path / "ref.png")
    compiled = import_openvino().Core().compile_model(
        drawn(tmp_path, embedded=True), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )  # fmt: skip
    np.save(tmp_path / "ref.npy", compiled(np.asarray(image)[None, ..., ::-1].copy())[0][0])
    lines = ['output = "features"', "[reference]", 'image = "ref.png"', 'vector = "ref.npy"']
    for name, embedded, right in (("inside", True, "BGR"), ("outside", False, "RGB")):
        model = drawn(tmp_path, embedded)
        spec_of(tmp_path, 'from = "model.xml"', f'channels = "{channels}"', *lines)
        add = ("backbones", "add", name, model, "--spec", tmp_path / "spec.toml", "--store", tmp_path / "store")
        done = penult(*add, "--json")
        if channels == right:
            assert json_of(done)["cosine"] > 0.99999
        else:
            assert done.returncode == 1 and f'With channels = "{right}" it matches' in done.stderr


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        ({}, {"size": SIDE, "layout": "NCHW", "resize": "squash", "interpolation": "bilinear", "antialias": False}),
        ({}, {"mean": tuple(MEAN), "std": tuple(STD), "scale": 1.0}),
        ({"mean_values": "", "scale_values": "255"}, {"mean": (0, 0, 0), "std": (255, 255, 255)}),
        ({"resize_type": "crop", "interpolation_mode": "CUBIC"}, {"resize": "center", "interpolation": "bicubic"}),
        ({"resize_type": "fit_to_window_letterbox", "pad_value": "114"}, {"resize": "pad", "fill": (114, 114, 114)}),
        ({"interpolation_mode": "NEAREST"}, {"interpolation": "nearest", "antialias": True}),
    ],
)
def test_model_info_fills_the_spec(tmp_path: Path, info: dict[str, str], wanted: dict[str, Any]) -> None:
    drawn(tmp_path, False, **info)
    spec = spec_of(tmp_path, 'from = "model.xml"', 'channels = "RGB"')
    assert {key: getattr(spec, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({}, "Expected: channels beside from = 'model.xml' (channels: that of the pictures"),
        ({}, "turned, as reverse_input_channels is set"),
        ({"resize_type": "fit_to_window"}, "Got: 'fit_to_window' and 'LINEAR'"),
        ({"intensity_mode": "window"}, "Expected: intensity_mode none. Got: 'window'"),
        ({"input_dtype": "u16"}, "Expected: input_dtype u8. Got: 'u16'"),
        ({"mean_values": "1 2"}, "2 numbers for three channels"),
        ({"reverse_input_channels": "perhaps"}, "'perhaps' for true or false"),
    ],
)
def test_what_model_info_leaves_open_is_asked_for(tmp_path: Path, info: dict[str, str], said: str) -> None:
    drawn(tmp_path, False, **info)
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        spec_of(tmp_path, 'from = "model.xml"')
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub("<model_info>.*</model_info>", "", text, flags=re.S), "an IR without"),
        (lambda text: text.replace("-1,3,64,64", "?,3,?,?").replace("?,3,64,64", "?,3,?,?"), "size: the input may"),
        (lambda text: text.replace("?,3,64,64", "?,64,64"), "size: the shape of the input does not tell"),
        (lambda text: text.replace("?,3,64,64", "?,3,64,32"), "a square"),
        (lambda text: text[:-300], "OpenVINO's .xml"),
        (lambda text: text.replace("<net ", '<!DOCTYPE net [<!ENTITY b "c">]><net '), "a document with entities"),
    ],
)
def test_an_ir_that_says_less_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = drawn(tmp_path, False)
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        spec_of(tmp_path, 'from = "model.xml"')
    assert str(tmp_path) in str(error.value)
