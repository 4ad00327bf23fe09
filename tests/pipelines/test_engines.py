import hashlib
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import seeded
from featurestore.errors import EngineError, UsageError
from heads.backend import import_keras
from pipelines.backbones import engines, graphs, networks, table
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import open_engine
from pipelines.backbones.lite import Lite
from pipelines.backbones.table import resolve

ENGINES = ("openvino", "tensorflow")  # of a backbone with a Keras model; test_native.py has the others


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache of converted graphs for this file's tests, away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["PENULT_CACHE"])


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with seeded.small(tmp_path_factory.mktemp("weights")) as backbone:
        yield resolve(backbone.name, backbone.published(top=False), input_size=96)


@pytest.fixture(scope="module")
def converted(small, tmp_path_factory):
    """A cache that holds the small graph, to be copied; and what the graph gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(tmp_path_factory.mktemp("converted")))
        return Path(os.environ["PENULT_CACHE"]), open_engine(small, EngineOptions(batch_size=2))(seeded.pictures(96))


@pytest.fixture
def counted_builds(monkeypatch):
    builds = []
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda tap: builds.append(tap) or build(tap))
    return builds


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("MobileNet", 96, "conv_pw_3_relu"),
        ("VGG16", 32, None),
        ("MobileNetV3Small", 96, "expanded_conv_3_project_bn"),
        ("ConvNeXtTiny", 32, "convnext_tiny_stage_1_block_0_identity"),
    ],
)
def test_features_equal_keras_own(cache, tmp_path, name, size, layer):
    """Networks with normalization tf and caffe, and two that bring their own; of deep ones the first blocks.

    test_lite_features_equal_keras_own has one that is deep.
    """
    keras = import_keras()
    network = seeded.network(name, input_shape=(size, size, 3))
    network.save_weights(tmp_path / "w.weights.h5")
    maps = network.get_layer(layer).output if layer else network.output
    reference = keras.Model(network.input, keras.layers.GlobalAveragePooling2D()(maps))
    module = getattr(keras.applications, table.TABLE[name].module)
    pictures = seeded.pictures(size)
    expected = reference(module.preprocess_input(pictures.astype("float32")), training=False).numpy()

    engine = open_engine(resolve(name, tmp_path / "w.weights.h5", layer, input_size=size), EngineOptions(batch_size=8))
    features = engine(pictures)
    assert features.dtype == np.float32 and features.shape == (6, engine.width) == expected.shape
    assert seeded.cosine(features, expected).min() >= 0.99999
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(engine(pictures[..., ::-1]) - expected).max() > 1e-2 * np.abs(expected).max()


def test_lite_features_equal_keras_own(cache):
    """Two engines on real weights, against the graph of pipelines/backbones/lite.py as Keras runs it."""
    from pipelines.backbones import lite

    keras = import_keras()
    backbone = table.TABLE["efficientnet-lite0"]
    graph = lite.graph(backbone, include_top=False, input_size=96)
    lite.load(graph, backbone.published(top=False))
    reference = keras.Model(graph.input, keras.layers.GlobalAveragePooling2D()(graph.output))
    pictures = seeded.pictures(96)
    expected = reference((pictures.astype("float32") - 127) / 128, training=False).numpy()
    for name in ENGINES:
        features = open_engine(resolve(input_size=96), EngineOptions(name, batch_size=4))(pictures)
        assert seeded.cosine(features, expected).min() >= 0.99999, name


def test_what_is_random_in_training_is_off(monkeypatch):
    """As the dropped blocks of EfficientNet: in a built network, however it is called, and in what engines run."""
    keras = import_keras()

    def network(_row, _top, side, _pooling="none"):
        pixels = keras.Input((side, side, 3))
        return keras.Model(pixels, keras.layers.Dropout(0.9)(keras.layers.Flatten()(pixels)))

    monkeypatch.setattr(Lite, "network", network)
    monkeypatch.setattr(Lite, "load", lambda *_: None)
    tap, pixels = resolve(input_size=32), np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = (pixels.reshape(2, -1) - 127.0) / 128.0
    for run in (networks.build(tap), graphs.traced(tap, None), graphs.traced(tap, 2)):
        np.testing.assert_array_equal(run(pixels), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_picture_does_not_see_its_neighbours(cache, small, engine):
    pictures = seeded.pictures(96)
    run = open_engine(small, EngineOptions(engine, batch_size=4))
    features = run(pictures)  # one full batch and one padded one
    for i, picture in enumerate(pictures):
        np.testing.assert_allclose(run(picture[None])[0], features[i], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(pictures[::-1])[::-1], features, rtol=1e-5, atol=1e-5)
    other = open_engine(small, EngineOptions(engine, batch_size=1), threads=0)(pictures)
    assert seeded.cosine(other, features).min() >= 0.99999


def test_a_run_changes_no_weight(cache, small, counted_builds, monkeypatch):
    models = []
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda tap: models.append(build(tap)) or models[-1])
    engine = open_engine(small, EngineOptions("tensorflow", batch_size=4))
    before = [weight.numpy() for weight in models[0].weights]
    first = engine(seeded.pictures(96))
    for weight, value in zip(models[0].weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    np.testing.assert_array_equal(engine(seeded.pictures(96)), first)


def test_threads_share_an_engine(cache, small):
    engine = open_engine(small, EngineOptions(batch_size=2))
    pictures = np.concatenate([seeded.pictures(96), seeded.pictures(96)[:, ::-1]])
    expected = engine(pictures)
    gate = threading.Barrier(4)

    def work(turn):
        gate.wait()
        return [engine(pictures[turn % 3 :]) for _ in range(5)]

    with ThreadPoolExecutor(4) as executor:
        for turn, results in enumerate(executor.map(work, range(4))):
            for result in results:
                np.testing.assert_allclose(result, expected[turn % 3 :], rtol=1e-5, atol=1e-5)


def test_results_are_the_callers_own(cache, small):
    engine = open_engine(small, EngineOptions(batch_size=6))
    first = engine(seeded.pictures(96))
    kept = first.copy()
    engine(255 - seeded.pictures(96))
    np.testing.assert_array_equal(first, kept)


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "threads", "message"),
    [
        ({"engine": "torch"}, 0, "Expected: --engine openvino or tensorflow or onnxruntime. Got: 'torch'"),
        ({"precision": "f16"}, 0, "Expected: --precision f32 or bf16. Got: 'f16'"),
        ({"batch_size": 0}, 0, "--batch-size"),
        ({}, -1, "threads"),
        ({"engine": "tensorflow", "precision": "bf16"}, 0, "engine tensorflow` computes in f32 only.*--precision f32"),
    ],
)
def test_impossible_options_are_refused(options, threads, message):
    with pytest.raises((UsageError, EngineError), match=message):
        open_engine(resolve(), EngineOptions(**options), threads)


def test_pixels_of_another_shape_are_refused(cache, small):
    engine = open_engine(small, EngineOptions(batch_size=2))
    for pixels in (np.zeros((1, 95, 96, 3), "u1"), np.zeros((1, 96, 96, 3), "f4"), np.zeros((0, 96, 96, 3), "u1")):
        with pytest.raises(EngineError, match=r"Expected: pixels uint8 \(n, 96, 96, 3\)"):
            engine(pixels)


class CPU:
    """A device that says what it can do."""

    def __init__(self, *capabilities):
        self.capabilities = list(capabilities)

    def get_property(self, device, name):
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities


def test_bf16_is_refused_where_it_is_emulated(cache, small, monkeypatch):
    monkeypatch.setattr(engines, "_has_native_bf16", lambda core: False)
    with pytest.raises(EngineError, match="only emulate bf16: use `--precision f32`"):
        open_engine(small, EngineOptions(precision="bf16"))


@pytest.mark.parametrize(
    ("capabilities", "features", "native"),
    [
        (["FP32", "BF16"], "flags : fpu avx512f avx512_bf16", True),
        (["FP32", "BF16"], "flags : fpu amx_bf16", True),
        (["FP32", "BF16"], "flags : fpu avx512f", False),
        (["FP32"], "flags : fpu avx512_bf16", False),
    ],
)
def test_native_bf16(monkeypatch, capabilities, features, native):
    monkeypatch.setattr(Path, "read_text", lambda self: features)
    assert engines._has_native_bf16(CPU(*capabilities)) is native


def test_bf16_is_close_to_f32_but_not_it(cache):
    if not engines._has_native_bf16(graphs.import_openvino().Core()):
        pytest.skip("this CPU has no native bf16; the refusal is tested above")
    pictures = seeded.pictures(224)
    exact, rounded = (
        open_engine(resolve(), EngineOptions(precision=p, batch_size=6))(pictures) for p in ("f32", "bf16")
    )
    cosine = seeded.cosine(exact, rounded)
    assert cosine.min() > 0.97 and cosine.max() < 0.999999


# --- the cache of graphs -----------------------------------------------------------------------------


def test_a_graph_is_converted_once(empty_cache, small, counted_builds):
    first = open_engine(small, EngineOptions(batch_size=2))(seeded.pictures(96))
    again = open_engine(small, EngineOptions(batch_size=3))(seeded.pictures(96))
    assert len(counted_builds) == 1
    assert seeded.cosine(first, again).min() >= 0.99999
    (folder,) = (empty_cache / "graphs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"graph.xml", "graph.bin", "sha256"}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "name"),
    [(flip, "graph.bin"), (cut, "graph.xml"), (flip, "sha256"), (Path.unlink, "sha256")],
)
def test_a_damaged_graph_is_rebuilt_not_served(empty_cache, converted, small, counted_builds, damage, name):
    whole, first = converted
    shutil.copytree(whole, empty_cache)
    np.testing.assert_array_equal(open_engine(small, EngineOptions(batch_size=2))(seeded.pictures(96)), first)
    assert len(counted_builds) == 0, "the copy is whole"
    damage(next(empty_cache.glob(f"graphs/*/{name}")))
    np.testing.assert_array_equal(open_engine(small, EngineOptions(batch_size=2))(seeded.pictures(96)), first)
    assert len(counted_builds) == 1
    open_engine(small, EngineOptions(batch_size=2))
    assert len(counted_builds) == 1


def test_every_part_of_the_tap_keys_the_graph(empty_cache, small, tmp_path):
    other = tmp_path / "other.weights.h5"
    table.TABLE[small.backbone].network(top=False, input_size=96).save_weights(other)
    changes = ({}, {"weights": str(other)}, {"input_size": 64}, {"layer": "conv1_relu"}, {"pooling": "max"})
    taps = [replace(small, **change) for change in changes]
    features = [open_engine(tap, EngineOptions(batch_size=1))(seeded.pictures(tap.input_size)) for tap in taps]
    assert len(list((empty_cache / "graphs").iterdir())) == len(taps)
    assert len({feature.tobytes() for feature in features}) == len(taps)


def test_another_process_was_faster(empty_cache, small, counted_builds, monkeypatch):
    """Two first starts at once: one converts and keeps its graph after the other has converted, before it keeps it."""
    others, put_in_place = [], graphs._put_in_place

    def late(fresh, folder):
        monkeypatch.setattr(graphs, "_put_in_place", put_in_place)
        others.append(open_engine(small, EngineOptions(batch_size=2))(seeded.pictures(96)))
        put_in_place(fresh, folder)

    monkeypatch.setattr(graphs, "_put_in_place", late)
    features = open_engine(small, EngineOptions(batch_size=2))(seeded.pictures(96))
    np.testing.assert_array_equal(features, others[0])
    assert len(counted_builds) == 2 and len(list((empty_cache / "graphs").iterdir())) == 1


def test_a_failed_build_leaves_no_graph(empty_cache, small):
    with pytest.raises(UsageError):
        open_engine(replace(small, layer="no_such_layer"))
    assert list((empty_cache / "graphs").iterdir()) == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PENULT_CACHE", "a")
    monkeypatch.setenv("XDG_CACHE_HOME", "b")
    monkeypatch.setenv("HOME", "c")
    assert graphs.cache_folder() == Path("a")
    monkeypatch.delenv("PENULT_CACHE")
    assert graphs.cache_folder() == Path("b/penult")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert graphs.cache_folder() == Path("c/.cache/penult")


START = """
import sys
from pathlib import Path
import numpy as np
import seeded
from pipelines.backbones.table import resolve
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import open_engine

weights = Path(sys.argv[1])
with seeded.small(weights.parent):
    engine = open_engine(resolve("small", weights, input_size=96), EngineOptions(batch_size=2))
print(engine(np.full((1, 96, 96, 3), 99, np.uint8)).sum())
print("tensorflow" in sys.modules, "openvino_telemetry.main" in sys.modules)
"""


def test_a_first_start_then_one_without_tensorflow_or_telemetry(empty_cache, small, tmp_path):
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-W", "error", "-c", START, small.weights]
    environment = os.environ | {"HOME": str(tmp_path / "home")}
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.stdout.split()[1:] == ["True", "False"]
    assert second.stdout.split()[1:] == ["False", "False"]
    assert first.stdout.split()[0] == second.stdout.split()[0]
    assert not (tmp_path / "home/intel").exists(), "telemetry keeps its client id there"
    assert first.stderr == second.stderr == "", "quiet"


def test_the_key_has_not_moved(cache):
    """A changed key orphans every user's cache: raise GRAPH_VERSION on purpose, move nothing by accident."""
    open_engine(resolve(input_size=96), EngineOptions(batch_size=1))
    identity = (
        '{"backbone": "efficientnet-lite0", "input_size": 96, "layer": "top_activation", "pooling": "avg", '
        f'"version": 1, "weights": "{resolve().weights_sha256}"}}'
    )
    assert (cache / "graphs" / hashlib.sha256(identity.encode()).hexdigest()).is_dir()


def test_an_engine_has_run_before_two_threads_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first inference of a process hangs now and then if two threads make it together."""
    forward, threads = engines.OpenVINOEngine._forward, []

    def noting(self: engines.OpenVINOEngine, batch: np.ndarray) -> np.ndarray:
        threads.append(threading.current_thread())
        return forward(self, batch)

    monkeypatch.setattr(engines.OpenVINOEngine, "_forward", noting)
    open_engine(resolve(input_size=96))
    assert threads == [threading.current_thread()]
