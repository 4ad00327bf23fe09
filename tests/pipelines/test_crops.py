"""How a rectangle becomes a square: the pixels of each rule, and that embedding, canaries and predictions follow it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decoding import decoded
from PIL import Image

from conftest import CountingEngine
from featurestore import canary as kept
from featurestore.errors import EngineError, UsageError
from featurestore.spec import CROPS, DTYPES
from featurestore.store import FeatureStore
from heads import artifact
from pipelines import commands
from pipelines import predict as predicting
from pipelines.backbones import canary
from pipelines.backbones.engine_options import PRECISIONS, EngineOptions
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.options import EmbedOptions, TrainOptions
from pipelines.predict import predict
from pipelines.training import train_head

SHAPES = ((90, 40), (40, 91), (37, 38), (200, 30), (64, 64))  # of images: width, height


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours that differ from edge to edge, with some noise: uint8 (height, width, 3)."""
    draw = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(a * x + b * y + c) for a, b, c in draw.uniform(1, 9, (3, 3))]
    return np.clip(128 + 90 * np.stack(waves, axis=2) + draw.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def file_of(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


# --- an independent model of the rules: Pillow's documented filter as matrices, in numpy


def weights(side: int, start: float, length: float, size: int) -> np.ndarray:
    """Antialiased bilinear from ``length`` pixels at ``start``, of an axis of ``size``, to ``side``: (side, size)."""
    step = length / side
    reach = max(step, 1)  # a triangle as wide as what becomes one pixel, and never narrower than its neighbours
    centres = start + (np.arange(side) + 0.5) * step
    found = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / reach)
    return found / found.sum(axis=1, keepdims=True)


def model(pixels: np.ndarray, side: int, crop: str) -> np.ndarray:
    """Float (side, side, 3) of uint8 (height, width, 3)."""
    height, width = pixels.shape[:2]
    rows, columns, at_y, at_x, high, wide = side, side, 0.0, 0.0, height, width
    if crop == "center":
        high = wide = min(height, width)
        at_y, at_x = (height - high) / 2, (width - wide) / 2
    elif crop == "pad":
        rows, columns = (round(length * side / max(height, width)) for length in (height, width))
    elif crop == "shortest":
        rows, columns = (int(side * length / min(height, width)) for length in (height, width))
    down, across = weights(rows, at_y, high, height), weights(columns, at_x, wide, width)
    if crop == "shortest":
        down, across = (axis[round((len(axis) - side) / 2) :][:side] for axis in (down, across))
        rows = columns = side
    square = np.zeros((side, side, 3))
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = np.einsum(
        "ijc,kj->ikc", np.einsum("ij,jkc->ikc", down, pixels), across
    )
    return square


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [32, 48])
def test_the_square_is_that_of_the_rule(crop: str, shape: tuple[int, int], side: int) -> None:
    pixels = picture(*shape)
    found = decoded(file_of(pixels), side, crop).pixels
    expected = model(pixels, side, crop)
    assert np.abs(found - expected).max() < 1.5  # Pillow rounds twice
    same = {"center", "shortest"}  # within a pixel
    others = [model(pixels, side, other) for other in CROPS if other != crop and {crop, other} != same]
    assert abs(shape[0] - shape[1]) <= 1 or all(np.abs(found - other).max() > 50 for other in others)


def test_exact_pixels_of_two_blocks() -> None:
    """Twice as wide as high, without any resize but by whole blocks: each rule in numbers one can count."""
    red, blue, grey = (200, 0, 0), (0, 0, 100), (60, 60, 60)
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:48], pixels[:, 48:] = red, grey, blue
    centre = decoded(file_of(pixels), 32, "center").pixels
    assert (centre == grey).all()
    pad = decoded(file_of(pixels), 64, "pad").pixels
    assert (pad[16:48] == pixels).all() and not pad[:16].any() and not pad[48:].any()
    upright = decoded(file_of(pixels.swapaxes(0, 1)), 64, "pad").pixels
    assert (upright == pad.swapaxes(0, 1)).all()
    squashed = decoded(file_of(pixels), 32, "squash").pixels
    assert [tuple(squashed[9, x]) for x in (0, 6, 9, 16, 22, 25, 31)] == [red, red, grey, grey, grey, blue, blue]


@pytest.mark.parametrize("crop", ["squash", "center", "pad"])
def test_a_turned_picture_is_turned_after_the_rule(crop: str) -> None:
    pixels, exif = picture(90, 41), Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned = decoded(file_of(pixels, exif=exif), 32, crop)
    assert (turned.width, turned.height) == (41, 90)
    assert (turned.pixels == np.rot90(decoded(file_of(pixels), 32, crop).pixels, -1)).all()


@pytest.mark.parametrize("crop", CROPS)
def test_a_jpeg_that_is_decoded_small_follows_the_rule_too(crop: str) -> None:
    pixels = np.asarray(Image.fromarray(picture(90, 40)).resize((720, 320), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    found = decoded(file.getvalue(), 32, crop).pixels
    assert np.abs(found - model(pixels, 32, crop)).mean() < 2


# --- what is embedded, and what is predicted


class PreciseEngine(CountingEngine):
    """A counting engine whose numbers depend on the precision, as those of a real one do."""

    def __init__(self, precision: str) -> None:
        super().__init__(batch_size=8)
        self.precision = precision

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        vectors = super().__call__(pixels)
        if self.precision == "bf16":
            vectors = (vectors.view(np.uint32) & 0xFFFF0000).view(np.float32)
        return vectors


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines that are opened, in this process, give numbers of their precision."""

    def opened(_tap: object, asked: EngineOptions, *_: object) -> PreciseEngine:
        return PreciseEngine(asked.precision)

    for module in (worker, predicting):
        monkeypatch.setattr(module, "open_engine", opened)
    worker.engine_for.cache_clear()
    yield
    worker.engine_for.cache_clear()


@pytest.fixture
def rectangles(tmp_path: Path) -> Path:
    """Forty images of two classes, none of them square."""
    for number in range(40):
        path = tmp_path / "corpus" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of(picture(*SHAPES[number % 2], seed=number)))
    return tmp_path / "corpus"


def copy_of(path: Path, folder: Path) -> Path:
    """Other bytes, the same pixels."""
    folder.mkdir(exist_ok=True)
    copy = folder / path.name
    copy.write_bytes(file_of(np.asarray(Image.open(path)), compress_level=1))
    assert copy.read_bytes() != path.read_bytes()
    return copy


def agree(store: Path, corpus: Path, folder: Path, options: EmbedOptions) -> None:
    """Copies are predicted as what is stored is, to the last digit, and as their features in a new store are."""
    known = [str(path) for path in sorted(corpus.rglob("*.png"))[::13]]
    copies = [str(copy_of(Path(path), folder)) for path in known]
    run = train_head(store, TrainOptions("ncm"))["run_id"]
    told = [one.top for one in predict([*known, *copies], store, run)]
    assert told[: len(known)] == told[len(known) :]
    head, meta = artifact.load(store / "runs" / run)
    other = folder / "store"
    assert embed(str(folder), other, options).feature_set == meta["feature_set"]
    stored = FeatureStore(other).to_arrow()
    keys = {row["sha256"]: row["vector"] for row in stored.to_pylist()}
    uris = {r["uri"]: r["sha256"] for r in FeatureStore(other).catalog.read(["uri", "sha256"]).to_pylist()}
    X = np.array([keys[uris[Path(copy).as_uri()]] for copy in copies], np.float32)
    for top, row in zip(told[len(known) :], head.probabilities(X), strict=True):
        assert top == sorted(zip(head.classes.tolist(), row.tolist(), strict=True), key=lambda item: -item[1])


PAIRS = [  # each rule with each precision, and either with each stored type
    (crop, precision, DTYPES[(i + j) % 2]) for i, crop in enumerate(CROPS) for j, precision in enumerate(PRECISIONS)
]


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize(("crop", "precision", "dtype"), PAIRS)
def test_an_unknown_copy_is_predicted_as_what_is_stored(
    rectangles: Path, tmp_path: Path, crop: str, precision: str, dtype: str
) -> None:
    options = EmbedOptions(crop=crop, engine=EngineOptions(precision=precision), dtype=dtype, input_size=32)
    name = embed(str(rectangles), tmp_path / "store", options).feature_set
    opened = FeatureStore(tmp_path / "store")
    spec = opened.spec(name)
    assert (spec.preprocessing.crop, spec.precision, spec.dtype) == (crop, precision, dtype)
    agree(tmp_path / "store", rectangles, tmp_path / "copies", options)
    data = opened.dataset(name)
    for row, uri in list(zip(data.X, data.uris, strict=True))[:6]:
        pixels = np.asarray(Image.open(uri.removeprefix("file://")))
        expected = model(pixels, 32, crop).reshape(2, 16, 2, 16, 3).mean(axis=(1, 3)).reshape(-1) / 255
        assert np.abs(row - expected).max() < (0.01 if precision == "bf16" else 0.003)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_real_engine_agrees_with_itself(rectangles: Path, tmp_path: Path, precision: str) -> None:
    """As far as this CPU goes."""
    worker.engine_for.cache_clear()
    options, store = EmbedOptions(crop="pad", engine=EngineOptions(precision=precision)), tmp_path / "store"
    try:
        embed(str(rectangles), store, options)
    except EngineError:
        pytest.skip("this CPU only emulates bf16")
    agree(store, rectangles, tmp_path / "copies", options)


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("crop", CROPS)
def test_the_canary_is_cropped_as_the_set_is(rectangles: Path, tmp_path: Path, crop: str) -> None:
    name = embed(str(rectangles), tmp_path / "store", EmbedOptions(crop=crop, input_size=32)).feature_set
    found = kept.read(tmp_path / "store" / "features" / f"{name}.lance")
    assert found is not None
    for file in canary.PICTURES:
        square = decoded((Path(canary.__file__).parent / file).read_bytes(), 32, crop).pixels
        assert np.array_equal(found.vectors[file], CountingEngine(8)(square[None])[0])


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize(
    ("option", "crop"), [(None, "squash"), ("--squash", "squash"), ("--center-crop", "center"), ("--pad", "pad")]
)
def test_each_option_is_the_rule_of_its_name(
    rectangles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str | None, crop: str
) -> None:
    store = tmp_path / "store"
    arguments = ["embed", str(rectangles), "--store", str(store), "--input-size", "32", *([option] if option else [])]
    monkeypatch.setattr("sys.argv", ["penult", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert not ended.value.code
    opened = FeatureStore(store)
    assert opened.spec(opened.resolve()).preprocessing.crop == crop
    assert opened.runs()[0].parameters["crop"] == crop
    data = opened.dataset()
    pixels = np.asarray(Image.open(data.uris[0].removeprefix("file://")))
    expected = model(pixels, 32, crop).reshape(2, 16, 2, 16, 3).mean(axis=(1, 3)).reshape(-1) / 255
    assert np.abs(data.X[0] - expected).max() < 0.003


def test_one_rule_at_a_time(rectangles: Path, tmp_path: Path) -> None:
    for given in (["--pad", "--center-crop"], ["--squash", "--pad"], ["--squash", "--center-crop"]):
        with pytest.raises(UsageError, match="one of --squash"):
            commands.app(["embed", str(rectangles), "--store", str(tmp_path / "s"), *given], standalone_mode=False)
