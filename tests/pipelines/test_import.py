"""Networks of timm and transformers, exported with their proof: `make test-import`, where torch is; errors without."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import json_of, penult

HAS_TORCH = importlib.util.find_spec("torch") is not None
with_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: make test-import")
without_torch = pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
FILES = ["model.onnx", "model.onnx.data", "ref.npy", "ref.png", "spec.toml"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# -- without torch


@without_torch
@pytest.mark.parametrize(("source", "packages"), [("timm:resnet18", "timm"), ("hf:some/vit", "transformers")])
def test_what_to_install_is_said(tmp_path: Path, source: str, packages: str) -> None:
    refused = penult("backbones", "import", source, "--to", tmp_path / "out")
    assert refused.returncode == 1
    assert f"{source} needs torch, torchvision, {packages}, onnxscript: run `pip install torch" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["resnet18", "timm:", "keras:ResNet50", ""])
def test_a_source_that_is_none_is_refused(tmp_path: Path, source: str) -> None:
    refused = penult("backbones", "import", source, "--to", tmp_path / "out")
    assert refused.returncode == 2 and "Expected: timm:NAME, or hf:ID" in refused.stderr


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    refused = penult("backbones", "import", "timm:resnet18", "--to", tmp_path)
    assert refused.returncode == 2 and f"{tmp_path} exists already" in refused.stderr


# -- with torch, tiny networks with random weights


def of_timm(folder: Path, architecture: str, model: dict[str, Any] | None = None, **config: Any) -> str:
    """A folder as timm has them on the hub, for one of its tiny models."""
    folder.mkdir()
    usual = {
        "input_size": [3, 160, 160],
        "fixed_input_size": "vit" in architecture,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
    }
    told = {"architecture": architecture, "model_args": model or {}, "pretrained_cfg": {**usual, **config}}
    (folder / "config.json").write_text(json.dumps(told))
    return f"timm:local-dir:{folder}"


VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SQUARE = {"size": {"height": 64, "width": 64}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CROP = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True}
CROP |= {"resample": 3, "image_mean": MEAN, "image_std": STD}


def of_transformers(folder: Path, kind: str, processor: str, seen: dict[str, Any], **model: Any) -> str:
    """A folder as transformers writes them, without weights."""
    folder.mkdir()
    sizes = {"image_size": 64, "patch_size": 16} if kind != "convnext" else {}
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **sizes, **model}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": processor, **seen}))
    return f"hf:{folder}"


CASES = {
    "batch norms": lambda to: of_timm(to, "test_resnet", crop_pct=0.95),
    "attention over tokens": lambda to: of_timm(to, "test_vit3", interpolation="bilinear"),
    "cls and registers": lambda to: of_timm(to, "test_vit", {"reg_tokens": 4}),
    "the mean of tokens": lambda to: of_timm(to, "test_vit", {"global_pool": "avg"}, mean=[0.5] * 3, std=[0.5] * 3),
    "a squash that is cut": lambda to: of_timm(to, "test_convnext", crop_mode="squash"),
    "a border": lambda to: of_timm(to, "test_convnext", crop_mode="border", crop_pct=1.0),
    "a border that is cut": lambda to: of_timm(to, "test_resnet", crop_mode="border"),
    "ViT": lambda to: of_transformers(to, "vit", "ViTImageProcessor", SQUARE, **VIT),
    "DINOv2": lambda to: of_transformers(to, "dinov2_with_registers", "BitImageProcessor", CROP, **VIT),
    "CLIP": lambda to: of_transformers(
        to, "clip", "CLIPImageProcessor", CROP,
        vision_config={**VIT, "image_size": 64, "patch_size": 16},
        text_config={**VIT, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "SigLIP": lambda to: of_transformers(to, "siglip_vision_model", "SiglipImageProcessor", SQUARE, **VIT),
    "ConvNeXT": lambda to: of_transformers(
        to, "convnext", "ConvNextImageProcessor", {**SQUARE, "size": {"shortest_edge": 64}, "crop_pct": 0.8},
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
    ),
}  # fmt: skip


def imported(tmp_path: Path, source: str, *options: str) -> tuple[dict[str, Any], tuple[str | Path, ...]]:
    """What the command said, and the options that add the network."""
    to = tmp_path / "out"
    told = json_of(penult("backbones", "import", source, "--to", to, "--random", "--json", *options))
    assert sorted(path.name for path in to.iterdir()) == FILES
    return told, (to / "model.onnx", "--spec", to / "spec.toml", "--store", tmp_path / "store")


@with_torch
@pytest.mark.parametrize("case", CASES)
def test_it_is_proved_and_embeds(tmp_path: Path, case: str) -> None:
    told, add = imported(tmp_path, CASES[case](tmp_path / "a.b"))
    spec = (tmp_path / "out" / "spec.toml").read_text()
    assert 'pooling = "none"' in spec and "random: for trials only" in spec
    assert told["command"] == f"penult backbones add a.b {add[0]} --spec {add[2]}"
    added = json_of(penult("backbones", "add", told["name"], *add, "--json"))
    assert added["cosine"] > 0.99999 and added["batch"] is None and added["width"] == told["width"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(corpus / f"{number}.png")
    done = json_of(penult("embed", corpus, "--backbone", told["name"], *add[3:], "--json"))
    assert (done["embedded"], done["failed"]) == (3, 0)


@with_torch
@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ('channels = "RGB"', 'channels = "BGR"'),
        (f"mean = {MEAN}", "mean = [0.5, 0.5, 0.5]"),
        ("crop_ratio = 0.875", "crop_ratio = 1.0"),
        ('resize = "squash"', 'resize = "crop"'),
    ],
)
def test_a_spec_that_is_changed_is_refused(tmp_path: Path, said: str, wrong: str) -> None:
    _, add = imported(tmp_path, CASES["a squash that is cut"](tmp_path / "a"))
    spec = tmp_path / "out" / "spec.toml"
    assert spec.read_text().count(said) == 1
    spec.write_text(spec.read_text().replace(said, wrong))
    refused = penult("backbones", "add", "a", *add)
    assert refused.returncode == 1 and "does not give the vector" in refused.stderr and said in refused.stderr


@with_torch
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_last_norm_is_inside(tmp_path: Path, pool: str) -> None:
    """The classic fault is a network cut before it: a norm without trained weights leaves mean 0 and deviation 1."""
    imported(tmp_path, of_timm(tmp_path / "a", "test_vit", {"global_pool": pool}))
    vector = np.load(tmp_path / "out" / "ref.npy")
    assert vector.mean() == pytest.approx(0, abs=1e-5) and vector.std() == pytest.approx(1, abs=1e-3)


@with_torch
def test_random_weights_are_the_same_each_time(tmp_path: Path) -> None:
    vectors = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        imported(tmp_path / name, of_timm(tmp_path / name / "a", "test_convnext"))
        vectors.append(np.load(tmp_path / name / "out" / "ref.npy"))
    np.testing.assert_array_equal(*vectors)


@with_torch
def test_what_a_type_leaves_open_is_asked_for(tmp_path: Path) -> None:
    source = of_transformers(tmp_path / "a", "beit", "BeitImageProcessor", CROP, **VIT)
    refused = penult("backbones", "import", source, "--to", tmp_path / "out", "--random")
    assert refused.returncode == 2
    assert "Expected: --pooling cls, avg, pooler" in refused.stderr and "type beit" in refused.stderr
    vectors = []
    for pooling in ("cls", "avg", "pooler"):
        (tmp_path / pooling).mkdir()
        _, add = imported(tmp_path / pooling, source, "--pooling", pooling)
        vectors.append(np.load(tmp_path / pooling / "out" / "ref.npy"))
        assert json_of(penult("backbones", "add", pooling, *add, "--json"))["cosine"] > 0.99999
    cls, average, pooler = vectors
    np.testing.assert_allclose(pooler, (average - average.mean()) / average.std(), atol=1e-3)  # BEiT's is a norm of it
    assert np.abs(cls - average).max() > 0.1


@with_torch
@pytest.mark.parametrize(
    ("source", "options", "code", "said"),
    [
        ("timm:resnet81", (), 2, "timm has no model 'resnet81': the nearest names are resnet"),
        ("timm:resnet18.nothing", (), 2, "timm has no model 'resnet18.nothing': the nearest names are resnet18"),
        ("timm:resnet18", ("--pooling", "avg"), 2, "has its own pooling: leave --pooling avg out"),
        ("hf:./nowhere/at/all", (), 1, "cannot be had"),
        ("hf:{vit}", ("--pooling", "mean"), 2, "Expected: --pooling cls, avg, pooler. Got: 'mean'"),
        ("hf:{weightless}", (), 1, "cannot be had"),
        ("{oblong}", ("--random",), 2, "a square of three channels"),
        ("hf:{padded}", ("--random",), 1, "no spec can say it"),
        ("hf:{masked}", ("--random", "--pooling", "cls"), 1, "one that draws at random"),
        ("hf:{larger}", ("--random",), 1, "does not run on a picture of its own transform"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, source: str, options: tuple[str, ...], code: int, said: str
) -> None:
    of_transformers(tmp_path / "vit", "vit", "ViTImageProcessor", SQUARE, **VIT)
    of_transformers(tmp_path / "weightless", "vit", "ViTImageProcessor", SQUARE, **VIT)
    of_transformers(tmp_path / "larger", "vit", "ViTImageProcessor", SQUARE, **{**VIT, "image_size": 96})
    of_transformers(tmp_path / "masked", "vit_mae", "ViTImageProcessor", SQUARE, **VIT)
    of_transformers(
        tmp_path / "padded", "dinov2", "BitImageProcessor", CROP | {"do_pad": True, "pad_size": CROP["crop_size"],
        "size": {"longest_edge": 72, "shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}, **VIT,
    )  # fmt: skip
    names = {name: str(tmp_path / name) for name in ("vit", "weightless", "padded", "masked", "larger")}
    names["oblong"] = of_timm(tmp_path / "oblong", "test_resnet", input_size=[3, 160, 96])
    before = sorted(tmp_path.rglob("*"))
    refused = penult("backbones", "import", source.format(**names), "--to", tmp_path / "out", *options)
    assert refused.returncode == code and re.search(r"^penult: .*" + re.escape(said), refused.stderr, re.M)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left"
