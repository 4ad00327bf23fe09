"""Added networks as the libraries run them that they were made for: what comes out is what OpenVINO gives."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_foreign import SIDE, draw_picture, written

from command import json_of, penult
from conftest import ROOT
from featurestore.canary import deviation
from featurestore.errors import BackboneError, EngineError
from featurestore.store import FeatureStore
from pipelines.backbones import addition, foreign
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import Engine, open_engine
from pipelines.backbones.foreign import Foreign
from pipelines.backbones.graphs import import_openvino
from pipelines.backbones.table import resolve
from pipelines.embedding import worker

ZOO = ROOT / "tests" / "golden" / "models"
ABLE = {
    "net.onnx": "onnxruntime",
    "external.onnx": "onnxruntime",
    "net.keras": "tensorflow",
    "net.h5": "tensorflow",
    "saved_model": "tensorflow",
}
TOLERANCE = 1e-5  # docs/backbones.md states it
INSIDE = {"output": "functional_1_1/features_1/Tanh:0", "output_layout": "NCHW"}  # of net.onnx: no output of the file
PLAIN = {"crop_ratio": None, "resize": "squash"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    worker.engine_for.cache_clear()
    yield
    worker.engine_for.cache_clear()


def added(folder: Path, model: Path, **values: Any) -> Foreign:
    if model.suffix in (".keras", ".h5"):
        values = {"output": "features"} | values
    return addition.add(folder / "store", "mine", model, written(folder, None, **values), unproved=True).backbone


def both(backbone: Foreign, engine: str, **options: Any) -> tuple[Engine, Engine]:
    return open_engine(backbone.tap(), EngineOptions()), open_engine(backbone.tap(), EngineOptions(engine, **options))


def check_equal(backbone: Foreign, engine: str, images: int = 11, **options: Any) -> Engine:
    pixels = np.random.default_rng(0).integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)
    one, other = both(backbone, engine, **options)
    wanted, got = one(pixels), other(pixels)
    assert got.shape == wanted.shape == (images, other.width) and got.dtype == np.float32
    assert max(deviation(*pair) for pair in zip(wanted, got, strict=True)) < TOLERANCE
    return other


@pytest.mark.parametrize("change", [{}, {"channels": "BGR"}, {"pooling": "max"}, {"pooling": "none"}, {"l2": True}])
@pytest.mark.parametrize("file", ABLE)
def test_every_format_gives_what_openvino_gives(tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    check_equal(added(tmp_path, ZOO / file, **change), ABLE[file])


@pytest.mark.parametrize("file", ABLE)
def test_every_format_gives_what_keras_gave(tmp_path: Path, file: str) -> None:
    engine = open_engine(added(tmp_path, ZOO / file).tap(), EngineOptions(ABLE[file]), threads=0)
    picture = addition.decoder.decode((ZOO / "ref.png").read_bytes(), engine.tap.preprocessing).pixels
    assert deviation(np.load(ZOO / "ref.npy"), engine(picture[None])[0]) < TOLERANCE


@pytest.mark.parametrize("file", ["net.onnx", "external.onnx"])
def test_a_tensor_inside_an_onnx_file_is_tapped(tmp_path: Path, file: str) -> None:
    before = (ZOO / file).read_bytes()
    check_equal(added(tmp_path, ZOO / file, **INSIDE), "onnxruntime")
    assert (ZOO / file).read_bytes() == before


@pytest.mark.parametrize("layer", ["first", "features", "gap", "top", "output"])
def test_every_layer_of_keras_is_tapped(tmp_path: Path, layer: str) -> None:
    check_equal(added(tmp_path, ZOO / "net.keras", output=layer), "tensorflow")


# -- files of ONNX with tokens, another layout, and a batch of their own


def drawn(path: Path, kind: str = "any", count: int | str = "n", type_: str = "FLOAT") -> Path:
    """NCHW → tokens (n, 1 + 4, 3): a mean per quarter of the picture, and first the greatest of these."""
    import onnx
    from onnx import helper, numpy_helper

    node, half = helper.make_node, SIDE // 2
    numbers = {
        "quartered": np.array([-1, 3, 2, half, 2, half]),
        "rows": np.array([-1, 3, 4]),
        "one": np.array([1]),
        "both": np.array([3, 5]),
        "zero": np.array([0]),
        "share": np.array([0.5], np.float32),
    }
    nodes = [
        node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
        node("Reshape", ["floats", "quartered"], ["q"]),
        node("ReduceMean", ["q", "both"], ["means"], keepdims=0),
        node("Reshape", ["means", "rows"], ["r"]),
        node("Transpose", ["r"], ["tokens"], perm=[0, 2, 1]),
        node("ReduceMax", ["tokens", "one"], ["cls"], keepdims=1),
        node("Concat", ["cls", "tokens"], ["all" if kind == "mixing" else "last_hidden_state"], axis=1),
    ]
    if kind == "mixing":  # as a normalisation in training mode does
        nodes += [
            node("ReduceMean", ["all", "zero"], ["middle"], keepdims=1),
            node("Mul", ["middle", "share"], ["less"]),
            node("Sub", ["all", "less"], ["last_hidden_state"]),
        ]
    given = helper.make_tensor_value_info("pixels", getattr(onnx.TensorProto, type_), [count, 3, SIDE, SIDE])
    gives = helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, [count, 5, 3])
    constants = [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "tokens", [given], [gives], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling": "cls"},
        {"pooling": "avg"},
        {"pooling": "avg", "prefix_tokens": 1},
        {"pooling": "max", "prefix_tokens": 2},
        {"pooling": "cls+avg", "prefix_tokens": 1},
        {"pooling": "none"},
    ],
)
@pytest.mark.parametrize("l2", [False, True])
def test_tokens_are_pooled_as_the_spec_says(tmp_path: Path, pooling: dict[str, Any], l2: bool) -> None:
    """What OpenVINO gives is compared with formulas in test_foreign.py."""
    values = {"layout": "NCHW", "channels": "BGR", "l2": l2, **PLAIN, **pooling}
    check_equal(added(tmp_path, drawn(tmp_path / "t.onnx"), **values), "onnxruntime")


def test_a_file_for_one_number_of_images_gets_that_number(tmp_path: Path) -> None:
    """OpenVINO takes any number in spite of what the file says."""
    model = drawn(tmp_path / "t.onnx", count=3)
    backbone = added(tmp_path, model, layout="NCHW", **PLAIN)
    assert check_equal(backbone, "onnxruntime", images=7).batch_size == 3
    assert check_equal(backbone, "onnxruntime", images=7, batch_size=5).batch_size == 3


def test_a_network_that_mixes_a_batch_runs_one_image_at_a_time(tmp_path: Path) -> None:
    backbone = added(tmp_path, drawn(tmp_path / "t.onnx", "mixing"), layout="NCHW", **PLAIN)
    assert backbone.batch == 1 and check_equal(backbone, "onnxruntime").batch_size == 1


def test_a_file_whose_number_of_images_gives_others_than_one_alone_is_refused(tmp_path: Path) -> None:
    backbone = added(tmp_path, drawn(tmp_path / "t.onnx", "mixing", 4), layout="NCHW", **PLAIN)
    said = r"takes 4 images at once, but it has to run by 1: use `--engine openvino`\."
    with pytest.raises(BackboneError, match=said):
        open_engine(backbone.tap(), EngineOptions("onnxruntime"))


def test_asked_for_sizes_of_batches_and_threads_change_nothing(tmp_path: Path) -> None:
    backbone = added(tmp_path, ZOO / "net.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)
    made = [
        open_engine(backbone.tap(), EngineOptions("onnxruntime", batch_size=size), threads)
        for size, threads in ((None, 0), (4, 1), (1, 2))
    ]
    assert [engine.batch_size for engine in made] == [8, 4, 1]
    for engine in made[1:]:
        np.testing.assert_allclose(engine(pixels), made[0](pixels), rtol=1e-5, atol=1e-6)


# -- what an engine cannot run


@pytest.mark.parametrize(
    ("file", "engine", "said"),
    [
        ("net.onnx", "tensorflow", "Expected: --engine openvino or onnxruntime for mine, which was made from net.onnx"),
        ("net.keras", "onnxruntime", "Expected: --engine openvino or tensorflow for mine, which was made from net.ker"),
        ("net.h5", "onnxruntime", "Expected: --engine openvino or tensorflow for mine, which was made from net.h5"),
        ("saved_model", "onnxruntime", "--engine openvino or tensorflow for mine, which was made from a SavedModel"),
        ("net.tflite", "onnxruntime", "Expected: --engine openvino for mine, which was made from net.tflite. Got: --"),
        ("net.tflite", "tensorflow", "Expected: --engine openvino for mine, which was made from net.tflite. Got: --"),
        ("net.xml", "onnxruntime", "only the graph of this network, for `--engine openvino`"),
        ("net.xml", "tensorflow", "only the graph of this network, for `--engine openvino`"),
    ],
)
def test_a_format_of_another_engine_is_refused(tmp_path: Path, file: str, engine: str, said: str) -> None:
    backbone = added(tmp_path, ZOO / file)
    with pytest.raises(BackboneError) as refused:
        open_engine(backbone.tap(), EngineOptions(engine))
    assert said in str(refused.value)


def test_a_backbone_of_the_table_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"onnxruntime` runs no ResNet50, but .* added: use `--engine openvino`"):
        open_engine(resolve("ResNet50"), EngineOptions("onnxruntime"))


@pytest.mark.parametrize("file", ABLE)
def test_it_computes_in_float32_alone(tmp_path: Path, file: str) -> None:
    backbone = added(tmp_path, ZOO / file)
    with pytest.raises(EngineError, match=f"`--engine {ABLE[file]}` computes in f32 only: use `--precision f32`"):
        open_engine(backbone.tap(), EngineOptions(ABLE[file], "bf16"))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("net.onnx", "net.onnx has no tensor 'pixels', which OpenVINO alone gives: use `--engine openvino`."),
        ("saved_model", "TensorFlow gives no tensor 'pixels' of a SavedModel, but outputs of a SavedModel and of"),
        ("net.keras", "TensorFlow gives no tensor 'pixels' of net.keras, but outputs of a SavedModel and of"),
    ],
)
def test_a_tensor_that_openvino_alone_has_is_refused(tmp_path: Path, file: str, said: str) -> None:
    backbone = added(tmp_path, ZOO / file, output="pixels")
    with pytest.raises(BackboneError) as refused:
        open_engine(backbone.tap(), EngineOptions(ABLE[file]))
    assert said in str(refused.value)


def test_pixels_of_another_type_are_refused(tmp_path: Path) -> None:
    backbone = added(tmp_path, drawn(tmp_path / "t.onnx", type_="FLOAT16"), layout="NCHW", **PLAIN)
    with pytest.raises(BackboneError, match=r"t\.onnx takes tensor\(float16\), and ONNX Runtime converts nothing: use"):
        open_engine(backbone.tap(), EngineOptions("onnxruntime"))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = added(tmp_path, ZOO / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as Python says of what cannot be imported
    with pytest.raises(EngineError, match=r"`--engine onnxruntime` needs onnxruntime: run `pip install 'penult\[exp"):
        open_engine(backbone.tap(), EngineOptions("onnxruntime"))


def test_what_the_library_refuses_is_one_sentence(tmp_path: Path) -> None:
    """An operation that OpenVINO has and ONNX Runtime lacks."""
    import onnx

    model = onnx.load(drawn(tmp_path / "t.onnx"))
    model.graph.node.append(
        onnx.helper.make_node("Swish", ["last_hidden_state"], ["swish"], domain="org.openvinotoolkit")
    )
    model.opset_import.append(onnx.helper.make_opsetid("org.openvinotoolkit", 1))
    model.graph.output[0].name = "swish"
    onnx.save(model, tmp_path / "t.onnx")
    backbone = added(tmp_path, tmp_path / "t.onnx", layout="NCHW", **PLAIN)
    with pytest.raises(BackboneError, match=r"mine cannot be run by `--engine onnxruntime`: .*Swish") as refused:
        open_engine(backbone.tap(), EngineOptions("onnxruntime"))
    assert "\n" not in str(refused.value)


def test_a_saved_model_without_the_usual_signature_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    network = tf.saved_model.load(ZOO / "saved_model")
    other = {"other": network.signatures["serving_default"]}
    tf.saved_model.save(network, tmp_path / "other", signatures=other)
    backbone = replace(added(tmp_path, ZOO / "saved_model"), original=str(tmp_path / "other"))
    files = addition.models.files_of(tmp_path / "other")
    backbone = replace(backbone, sha256=addition.models.digest_of(files))
    with pytest.raises(BackboneError, match="Expected: a SavedModel with the signature serving_default"):
        open_engine(backbone.tap(), EngineOptions("tensorflow"))


# -- in a store


@pytest.mark.everywhere
@pytest.mark.parametrize("file", ["external.onnx", "saved_model"])
def test_a_set_grows_by_another_engine(place: Path, tmp_path: Path, file: str) -> None:
    corpus, store = tmp_path / "corpus", ("--store", place)
    pictures = [draw_picture(corpus / "ab"[number % 2] / f"{number}.png", number, 90, 70) for number in range(12)]
    spec = written(tmp_path, ZOO)
    assert penult("backbones", "add", "mine", ZOO / file, "--spec", spec, *store).returncode == 0
    embed = ("embed", corpus, *store, "--backbone", "mine", "--dtype", "float32", "--json")
    first = json_of(penult(*embed))
    for number in range(12, 16):
        pictures.append(draw_picture(corpus / "ab"[number % 2] / f"{number}.png", number, 90, 70))
    worker.engine_for.cache_clear()
    more = json_of(penult(*embed, "--engine", ABLE[file]))
    assert more["feature_set"] == first["feature_set"] and (first["embedded"], more["embedded"]) == (12, 4)

    data = FeatureStore(place).dataset(first["feature_set"])
    wanted = open_engine(foreign.find(place, "mine"), EngineOptions())
    by_uri = dict(zip(data.uris, data.X, strict=True))
    assert len(by_uri) == 16
    for path in pictures:
        square = addition.decoder.decode(path.read_bytes(), wanted.tap.preprocessing).pixels
        assert deviation(wanted(square[None])[0], by_uri[path.as_uri()]) < TOLERANCE

    json_of(penult("train", *store, "--head", "ncm", "--json"))
    new = draw_picture(tmp_path / "new.png", 99, 90, 70)
    told = [json_of(penult("predict", new, *store, "--json", *more))[0] for more in ((), ("--engine", ABLE[file]))]
    assert told[0]["label"] == told[1]["label"]
    assert told[0]["probability"] == pytest.approx(told[1]["probability"], abs=1e-4)


def test_a_set_grows_by_numbers_like_its_own_alone(tmp_path: Path) -> None:
    """The canary guards it, whichever engine runs: here the graph gives other numbers than the file."""
    corpus, store = tmp_path / "corpus", ("--store", tmp_path / "store")
    draw_picture(corpus / "a" / "0.png", 0, 90, 70)
    model = drawn(tmp_path / "t.onnx")
    spec = written(tmp_path, None, layout="NCHW", **PLAIN)
    add = ("backbones", "add", "mine", model, "--spec", spec, *store, "--unproved")
    assert penult(*add).returncode == 0
    embed = ("embed", corpus, *store, "--backbone", "mine", "--json")
    json_of(penult(*embed))
    other = import_openvino().Core().read_model(drawn(tmp_path / "o.onnx", "mixing"))
    content = addition.models.as_content(other)
    kept = foreign.find(tmp_path / "store", "mine").network
    assert isinstance(kept, Foreign)
    folder = tmp_path / "store" / "backbones" / "models"
    foreign.put(folder, replace(kept, graph_sha256=foreign.digest_of_graph(content)), content)
    draw_picture(corpus / "a" / "1.png", 1, 90, 70)
    worker.engine_for.cache_clear()
    refused = penult(*embed)
    assert refused.returncode == 1 and "canary" in refused.stderr
    worker.engine_for.cache_clear()
    assert json_of(penult(*embed, "--engine", "onnxruntime"))["embedded"] == 1


def test_a_worker_in_another_folder_finds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    add = ("backbones", "add", "mine", ZOO / "net.onnx", "--spec", ZOO / "net.toml", "--store", "s")
    assert penult(*add).returncode == 0
    sent = pickle.dumps(foreign.find(Path("s"), "mine"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_equal(pickle.loads(sent).network, "onnxruntime")


def test_a_model_that_was_left_where_it_lies_is_run_there_and_only_as_it_was(tmp_path: Path) -> None:
    import onnx

    model = drawn(tmp_path / "t.onnx")
    spec = written(tmp_path, None, layout="NCHW", **PLAIN)
    backbone = addition.add(tmp_path / "store", "mine", model, spec, unproved=True, copy=False).backbone
    check_equal(backbone, "onnxruntime")
    changed = onnx.load(model)
    changed.doc_string = "changed"
    onnx.save(changed, model)
    with pytest.raises(BackboneError, match=r"t\.onnx as it was added"):
        open_engine(backbone.tap(), EngineOptions("onnxruntime"))
