"""Networks that users added, exported with a head: whatever their file is like, the model says what penult says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_foreign_tuning import ZOO, draw_pictures, trained

from command import json_of, penult
from featurestore.store import FeatureStore
from heads import artifact
from pipelines import joined_graphs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
SIDE, CHANNELS = 64, 6
PLAIN = {"size": SIDE, "layout": "NCHW", "channels": "BGR", "mean": [104, 117, 123], "std": [58, 57, 59]}


def network(path: Path, kind: str = "") -> Path:
    """A convolution, NCHW → "map" (n, 6, 8, 8) and, as tokens, "tokens" (n, 65, 6); a classifier lies behind them."""
    draw = np.random.default_rng(0)
    version = {"old": 7, "nine": 9, "new": 22}.get(kind, 13)
    batch: Any = 1 if kind in ("fixed", "one", "long") else "n"

    def numbers(name: str, *shape: int) -> Any:
        return onnx.numpy_helper.from_array(draw.normal(0, 0.05, shape).astype(np.float32), name)

    def whole(name: str, *values: int) -> Any:
        return onnx.numpy_helper.from_array(np.array(values, np.int64), name)

    def half(one: Any) -> Any:
        return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(one).astype(np.float16), one.name)

    conv = helper.make_node("Conv", ["pixels", "kernel"], ["raw"], strides=[8, 8], kernel_shape=[8, 8])
    nodes = [conv, helper.make_node("Tanh", ["raw"], ["map"])]
    if kind == "mixing":
        nodes.insert(1, helper.make_node("ReduceMean", ["raw"], ["level"], axes=[0], keepdims=1))
        nodes.insert(2, helper.make_node("Sub", ["raw", "level"], ["apart"]))
        nodes[3].input[0] = "apart"
    if kind == "branch":  # a graph in a node, which reads what lies around it
        then = helper.make_graph([helper.make_node("Add", ["raw", "bias"], ["a"])], "then", [], [untyped("a")])
        other = helper.make_graph([helper.make_node("Identity", ["kernel"], ["b"])], "else", [], [untyped("b")])
        nodes.insert(1, helper.make_node("If", ["yes"], ["biased"], then_branch=then, else_branch=other))
        nodes[2].input[0] = "biased"
    rows = 1 if kind == "one" else 0
    nodes += [
        helper.make_node("Reshape", ["map", "row"], ["long"]),
        helper.make_node("MatMul", ["long", "dense"], ["fc"]),
        helper.make_node("Reshape", ["map", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["patches"], ["cls"], axes=[1], keepdims=1),
        helper.make_node("Concat", ["cls", "patches"], ["tokens"], axis=1),
        helper.make_node("ReduceMean", ["tokens"], ["probabilities"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["probabilities", "classifier"], ["logits"]),
    ]
    if kind == "long":
        nodes[-1].input[0] = "fc"  # what no output needs, OpenVINO drops
    if kind == "new":
        nodes[6] = helper.make_node("ReduceMax", ["patches", "axis"], ["cls"], keepdims=1)
        nodes[8] = helper.make_node("ReduceMean", ["tokens", "axis"], ["probabilities"], keepdims=0)
    constants = [
        numbers("kernel", CHANNELS, 3, 8, 8),
        numbers("bias", CHANNELS, 1, 1),
        numbers("classifier", CHANNELS, 5000),
        whole("rows", rows, CHANNELS, 64),
        whole("axis", 1),
        whole("row", 1 if kind == "long" else 0, CHANNELS * 64),  # OpenVINO reads 1 before a product as any number
        onnx.numpy_helper.from_array(np.repeat(np.eye(CHANNELS, dtype=np.float32), 64, axis=0) / 64, "dense"),
        onnx.numpy_helper.from_array(np.array(True), "yes"),
    ]
    element = FLOAT
    if kind == "half":
        element = onnx.TensorProto.FLOAT16
        constants = [half(one) if one.data_type == FLOAT else one for one in constants]
    given = [helper.make_tensor_value_info("pixels", element, [batch, 3, SIDE, SIDE])]
    if kind == "listed":  # as in files of ONNX's first years, where constants are inputs with a default
        given += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in constants]
    out = [helper.make_tensor_value_info("logits", element, [batch, 5000])]
    graph = helper.make_graph(nodes, "net", given, out, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    model.ir_version = 3 if kind == "listed" else 8
    onnx.save(model, path)
    return path


def untyped(name: str) -> Any:
    return helper.make_tensor_value_info(name, FLOAT, None)


def spec(folder: Path, **values: Any) -> Path:
    path = folder / "given.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in {**PLAIN, **values}.items()))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("drawn"), 24)


def store_of(folder: Path, model: Path, corpus: Path, **values: Any) -> Path:
    """A store with a network, and a head on its features of the corpus."""
    store = folder / "store"
    add = ("backbones", "add", "mine", model, "--spec", spec(folder, **values), "--unproved")
    for call in (add, ("embed", corpus, "--backbone", "mine", "--dtype", "float32"), ("train", "--head", "logreg")):
        done = penult(*call, "--store", store)
        assert done.returncode == 0, done.stderr
    return store


def exported(store: Path, to: Path, format: str = "onnx") -> dict[str, Any]:
    return dict(json_of(penult("export", "--store", store, "--format", format, "--to", to, "--json")))


def head_of(store: Path) -> Any:
    (run,) = (run for run in FeatureStore(store).runs() if run.kind == "train")
    head, _ = artifact.load(store / "runs" / run.run_id)
    return head


def squares(corpus: Path, count: int = 5) -> np.ndarray:
    """Pixels, squashed by Pillow."""
    found = [Image.open(path).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for path in sorted(corpus.rglob("*.png"))]
    return np.stack([np.asarray(image) for image in found[:count]])


KINDS = ("", "old", "nine", "new", "fixed", "one", "long", "mixing", "branch", "listed", "half")


@pytest.mark.parametrize("kind", KINDS)
def test_any_onnx_file_is_joined(kind: str, tmp_path: Path, corpus: Path) -> None:
    model = network(tmp_path / "net.onnx", kind)
    tapped = {"one": "patches", "long": "fc"}.get(kind, "map")  # all have the same mean over positions
    store = store_of(tmp_path, model, corpus, output=tapped)
    told = exported(store, tmp_path / "out")
    operations = {node.op_type for node in onnx.load(told["path"]).graph.node}
    assert ("Scan" in operations) == (kind in ("one", "long", "mixing"))
    assert told["parity"]["max_difference"] < (1e-3 if kind == "half" else 1e-5)
    assert told["bytes"] < 5000 * CHANNELS * 4, "what lies behind the tap is left out"

    pixels = squares(corpus)
    given = (pixels[..., ::-1].astype(np.float32) - np.float32(PLAIN["mean"])) / np.float32(PLAIN["std"])
    given = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
    source = onnx.load(model)
    source.graph.output.append(helper.make_empty_tensor_value_info("map"))
    session = onnxruntime.InferenceSession(source.SerializeToString())
    if kind == "half":
        given = given.astype(np.float16)
    maps = np.concatenate([session.run(["map"], {"pixels": one[None]})[0] for one in given]).astype(np.float32)
    wanted = head_of(store).probabilities(maps.mean(axis=(2, 3)))
    limit = 5e-3 if kind == "half" else 1e-4
    run = onnxruntime.InferenceSession(told["path"])
    assert [one.name for one in run.get_inputs()] == ["pixels"]
    np.testing.assert_allclose(run.run(["probabilities"], {"pixels": pixels})[0], wanted, atol=limit)
    assert run.run(None, {"pixels": pixels[:1]})[0].shape == (1, 2)


POOLINGS: tuple[dict[str, Any], ...] = (
    {"output": "map", "pooling": "max"},
    {"output": "map", "pooling": "none"},
    {"output": "map", "pooling": "avg", "l2": True},
    {"output": "map", "pooling": "avg", "output_layout": "NHWC"},
    {"output": "tokens", "pooling": "cls"},
    {"output": "tokens", "pooling": "avg", "prefix_tokens": 1},
    {"output": "tokens", "pooling": "max"},
    {"output": "tokens", "pooling": "cls+avg", "prefix_tokens": 1, "l2": True},
    {"output": "tokens", "pooling": "none"},
)


@pytest.mark.parametrize("values", POOLINGS, ids=lambda values: "-".join(map(str, values.values())))
def test_every_pooling_is_in_the_model(values: dict[str, Any], tmp_path: Path, corpus: Path) -> None:
    store = store_of(tmp_path, network(tmp_path / "net.onnx"), corpus, **values)
    assert exported(store, tmp_path / "out")["parity"]["max_difference"] < 1e-5


def test_large_numbers_lie_beside_the_model(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_graphs, "WHOLE_BYTES", 0)  # else it would take a gigabyte
    store = store_of(tmp_path, network(tmp_path / "net.onnx"), corpus, output="map")
    told = exported(store, tmp_path / "out")
    beside = tmp_path / "out" / "model.onnx.data"
    assert beside.stat().st_size >= CHANNELS * 3 * 64 * 4
    assert told["bytes"] > beside.stat().st_size


# -- by the file that a network was added from

CAN = {
    "net.keras": ("keras", "saved_model", "onnx", "openvino", "litert"),
    "net.h5": ("keras", "saved_model", "onnx", "openvino", "litert"),
    "net.onnx": ("onnx", "openvino"),
    "external.onnx": ("onnx", "openvino"),
    "net.tflite": ("onnx", "openvino"),
    "saved_model": ("onnx", "openvino"),
    "net.xml": ("openvino",),
}
WHY = {
    "net.onnx": "mine was added as ONNX, which is frozen and exported as onnx or openvino alone",
    "external.onnx": "mine was added as ONNX, which is frozen and exported as onnx or openvino alone",
    "net.tflite": "mine was added as LiteRT, which is frozen and exported as onnx or openvino alone",
    "saved_model": "mine was added as a SavedModel, which has no layers to unfreeze",
    "net.xml": "add the .onnx or .keras file that it was made from",
}


@pytest.mark.parametrize("file", CAN)
def test_what_a_file_can_become(file: str, tmp_path: Path, corpus: Path) -> None:
    store = trained(tmp_path, file, corpus=corpus)
    for format in CAN["net.keras"]:
        if format in CAN[file]:
            assert exported(store, tmp_path / format, format)["parity"]["max_difference"] < 1e-5
        else:
            refused = penult("export", "--store", store, "--format", format, "--to", tmp_path / format)
            assert refused.returncode == 1 and WHY[file] in refused.stderr, refused.stderr
            assert not (tmp_path / format).exists()
    if file in WHY:
        refused = penult("finetune", "--unfreeze-from", "features", "--store", store)
        assert refused.returncode == 1 and WHY[file] in refused.stderr


def test_a_litert_file_of_integers_is_no_onnx(tmp_path: Path, corpus: Path) -> None:
    values = {key: [0.0] * 3 if key == "mean" else [255.0] * 3 for key in ("mean", "std")}
    store = store_of(tmp_path, ZOO / "uint8.tflite", corpus, layout="NHWC", **values)
    refused = penult("export", "--store", store, "--format", "onnx", "--to", tmp_path / "out")
    assert refused.returncode == 1 and "uint8.tflite takes or gives integers" in refused.stderr, refused.stderr
    assert exported(store, tmp_path / "out", "openvino")["parity"]["pictures"] > 0
