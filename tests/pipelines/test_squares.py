"""The square that a backbone sees, by each crop and each resize: against references that share no code with them."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from featurestore.errors import ImageError, UsageError
from featurestore.spec import CROPS, RESIZES, Preprocessing, crop_ratio
from pipelines.backbones.graphs import import_openvino
from pipelines.images import decoder, squares

SEEN = Preprocessing(32, "lite")
PILLOW = {
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
}
PLAIN = ("plain-bilinear", "plain-bicubic")
WHOLE = ("pillow-nearest", *PLAIN)  # for which a JPEG is decoded whole
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))  # width, height


def noise(width: int, height: int) -> np.ndarray:
    """Colours without any order, where a wrong pixel shows: uint8 (height, width, 3)."""
    return np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(sklearn.datasets.load_sample_image("china.jpg")).resize((width, height))


def file_of(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def decoded(image: Image.Image | np.ndarray, seen: Preprocessing) -> np.ndarray:
    return decoder.decode(file_of(image), seen).pixels.astype(int)


# --- how pixels are resized


def triangle(x: float) -> float:
    return max(0, 1 - abs(x))


def cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0


def lanczos(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0


def matrix(filter: Callable[[float], float], length: int, side: int) -> np.ndarray:
    """An antialiased resize of one axis, float (side, length): the filter is as wide as what becomes one pixel."""
    step = length / side
    wide = max(step, 1)
    found = np.array([[filter((i + 0.5 - (o + 0.5) * step) / wide) for i in range(length)] for o in range(side)])
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("resize", "filter"), [("pillow-bilinear", triangle), ("pillow-bicubic", cubic), ("pillow-lanczos", lanczos)]
)
@pytest.mark.parametrize("size", [(90, 40), (40, 91), (20, 30), (32, 64), (3, 5), (1, 1)])
def test_antialiased_resizes_are_their_filters(
    resize: str, filter: Callable[[float], float], size: tuple[int, int]
) -> None:
    pixels = noise(*size)
    across = np.einsum("ij,kjc->kic", matrix(filter, size[0], 32), pixels)
    across = np.floor(across + 0.5).clip(0, 255)  # between the axes there are 8 bits
    expected = np.einsum("ij,jkc->ikc", matrix(filter, size[1], 32), across).clip(0, 255)
    found = decoded(pixels, replace(SEEN, resize=resize))
    assert np.abs(found - expected).max() < 1.6  # of a sum that the first rounding may have moved by a bit


@settings(max_examples=40)
@given(sizes)
@example((64, 128))
def test_nearest_takes_the_pixel_in_which_a_centre_lies(size: tuple[int, int]) -> None:
    pixels, found = noise(*size), decoded(noise(*size), replace(SEEN, resize="pillow-nearest"))
    x, y = (((2 * np.arange(32) + 1) * length // 64) for length in size)
    exact = [(2 * np.arange(32) + 1) * length % 64 for length in size]  # 0: between two, and float may take either
    sure = (exact[1] > 0)[:, None] & (exact[0] > 0)
    assert (found == pixels[y][:, x])[sure].all()


def blended(pixels: np.ndarray, width: int, height: int, resize: str) -> np.ndarray:
    """What is said of the plain resizes, for one pixel after another: float (height, width, 3)."""

    def near(centre: float, length: int) -> list[tuple[int, float]]:
        steps = range(-1, 3) if resize == "plain-bicubic" else range(2)
        whole = math.floor(centre - 0.5)
        filter = (lambda x: cubic(x, -0.75)) if resize == "plain-bicubic" else triangle
        return [(min(max(whole + i, 0), length - 1), filter(centre - 0.5 - whole - i)) for i in steps]

    high, wide = pixels.shape[:2]
    found = np.zeros((height, width, 3))
    for y, x in product(range(height), range(width)):
        for row, down in near((y + 0.5) * high / height, high):
            for column, across in near((x + 0.5) * wide / width, wide):
                found[y, x] += down * across * pixels[row, column]
    return found.clip(0, 255)


@settings(max_examples=15)
@given(sizes, st.integers(1, 12), st.sampled_from(PLAIN))
@example((1, 1), 7, "plain-bicubic")
@example((90, 2), 12, "plain-bilinear")
def test_plain_resizes_blend_the_nearest_pixels(size: tuple[int, int], side: int, resize: str) -> None:
    pixels = noise(*size)
    found = decoded(pixels, replace(SEEN, input_size=side, resize=resize))
    assert np.abs(found - blended(pixels, side, side, resize)).max() < 0.501  # rounded to the nearest


@pytest.mark.parametrize("resize", PLAIN)
@pytest.mark.parametrize("size", [(90, 40), (20, 30), (500, 375), (3, 5), (1, 1)])
def test_plain_resizes_are_those_of_another_library(resize: str, size: tuple[int, int]) -> None:
    """OpenVINO's, which follows ONNX, which follows torch."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels, side = noise(*size), 48
    given = ops.parameter([1, 3, *pixels.shape[:2]], np.float32)
    resized = ops.interpolate(
        given, ops.constant(np.array([side, side])), "cubic" if resize == "plain-bicubic" else "linear_onnx", "sizes",
        coordinate_transformation_mode="half_pixel", cube_coeff=-0.75, axes=ops.constant(np.array([2, 3])),
    )  # fmt: skip
    compiled = openvino.compile_model(openvino.Model([resized], [given]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = compiled(pixels.transpose(2, 0, 1)[None].astype(np.float32))[0][0].transpose(1, 2, 0).clip(0, 255)
    assert np.abs(decoded(pixels, replace(SEEN, input_size=side, resize=resize)) - expected).max() < 0.51  # rounded


@pytest.mark.parametrize("resize", RESIZES)
def test_a_picture_of_the_size_is_left_alone_and_one_colour_stays(resize: str) -> None:
    pixels = noise(32, 32)
    for crop in CROPS:
        seen = replace(SEEN, crop=crop, resize=resize)
        assert (decoded(pixels, seen) == pixels).all()
        if crop != "pad":
            assert (decoded(np.full((50, 70, 3), (250, 128, 3), np.uint8), seen) == (250, 128, 3)).all()
        else:
            assert (decoded(np.zeros((50, 70, 3), np.uint8), replace(seen, fill="#fa8003"))[0] == (250, 128, 3)).all()


@pytest.mark.parametrize("resize", RESIZES)
def test_every_resize_follows_every_crop(resize: str) -> None:
    """What "center" and "pad" make of a picture is what "squash" makes of a square that is cut or filled up."""
    pixels = np.asarray(photo(96, 64))
    black = np.zeros((96, 96, 3), np.uint8)
    black[16:80] = pixels
    squash = replace(SEEN, resize=resize)
    pad = decoded(pixels, replace(squash, crop="pad", input_size=48))
    filled = decoded(black, replace(squash, input_size=48))
    assert (pad[12:36] == filled[12:36]).all() and not pad[:8].any() and not pad[40:].any()
    centre, cut = decoded(pixels, replace(squash, crop="center")), decoded(pixels[:, 16:80], squash)
    assert (centre[:, 4:-4] == cut[:, 4:-4]).all()  # at the edge of the cut, "center" knows the neighbours


# --- crop "shortest"


def torchvision(image: Image.Image, resized: int, side: int, resize: str) -> np.ndarray:
    """Resize and CenterCrop of torchvision for an image of Pillow."""
    width, height = image.size
    if width < height:
        image = image.resize((resized, int(resized * height / width)), PILLOW[resize])
    else:
        image = image.resize((int(resized * width / height), resized), PILLOW[resize])
    top, left = (math.floor(side_of / 2) + (side_of % 4 == 3) for side_of in (image.height - side, image.width - side))
    return np.asarray(image)[top : top + side, left : left + side]


@settings(max_examples=60)
@given(sizes, st.integers(32, 70), st.sampled_from(list(PILLOW)))
@example((35, 32), 32, "pillow-bicubic")  # margins of 3 and 1
@example((32, 33), 32, "pillow-lanczos")
def test_shortest_is_the_rule_of_torchvision(size: tuple[int, int], resized: int, resize: str) -> None:
    seen = replace(SEEN, crop="shortest", resize=resize, crop_ratio=crop_ratio(32, resized))
    assert seen.resized_side == resized
    pixels = noise(*size)
    assert (decoded(pixels, seen) == torchvision(Image.fromarray(pixels), resized, 32, resize)).all()


def cut_or_padded(image: Image.Image, side: int, fill: str) -> np.ndarray:
    """The central square of torchvision's CenterCrop, which pads first what is smaller, as timm's CenterCropOrPad."""
    before = [max(0, (side - length) // 2) for length in image.size]
    after = [max(0, (side - length + 1) // 2) for length in image.size]
    whole = Image.new("RGB", [sum(three) for three in zip(before, image.size, after, strict=True)], fill)
    whole.paste(image, tuple(before))
    left, top = (round((length - side) / 2) for length in whole.size)
    return np.asarray(whole)[top : top + side, left : left + side]


@settings(max_examples=60)
@given(sizes, st.integers(32, 70), st.sampled_from(list(PILLOW)))
@example((35, 32), 35, "pillow-bicubic")  # a margin of 3
@example((64, 48), 64, "pillow-bilinear")
def test_a_squash_that_is_cut_is_the_rule_of_torchvision(size: tuple[int, int], resized: int, resize: str) -> None:
    seen = replace(SEEN, resize=resize, crop_ratio=crop_ratio(32, resized))
    pixels = noise(*size)
    expected = cut_or_padded(Image.fromarray(pixels).resize((resized, resized), PILLOW[resize]), 32, "black")
    assert (decoded(pixels, seen) == expected).all()


@settings(max_examples=80)
@given(sizes, st.integers(32, 70), st.sampled_from(list(PILLOW)), st.sampled_from(["#7c7467", "#ffffff", "#000000"]))
@example((90, 33), 37, "pillow-bicubic", "#7c7467")  # cut on one axis, filled on the other
@example((64, 45), 32, "pillow-bilinear", "#010203")
def test_pad_is_the_rule_of_timm(size: tuple[int, int], resized: int, resize: str, fill: str) -> None:
    """Its crop_mode border: the longest side is resized, then the centre is cut, or filled up."""
    seen = replace(SEEN, crop="pad", resize=resize, crop_ratio=crop_ratio(32, resized), fill=fill)
    longest = max(length / resized for length in size)
    inner = [round(length / longest) for length in size]
    if min(inner) == 0:
        return  # timm cannot resize it
    pixels = noise(*size)
    expected = cut_or_padded(Image.fromarray(pixels).resize(inner, PILLOW[resize]), 32, fill)
    assert (decoded(pixels, seen) == expected).all()


@pytest.mark.parametrize("resize", PLAIN)
@pytest.mark.parametrize("crop", ["squash", "pad"])
def test_other_crops_cut_a_plain_resize_too(resize: str, crop: str) -> None:
    pixels = noise(50, 30)
    height = {"squash": 18, "pad": 11}[crop]  # 11 = round(18 * 30 / 50), and two rows are added above and below
    expected = blended(pixels, 18, height, resize)[:, 2:17]
    expected = expected[2:17] if crop == "squash" else np.pad(expected, ((2, 2), (0, 0), (0, 0)))
    found = decoded(pixels, Preprocessing(15, "", crop, resize, crop_ratio=crop_ratio(15, 18)))
    assert np.abs(found - expected).max() < 0.501


@pytest.mark.parametrize("crop", ["squash", "pad"])
@pytest.mark.parametrize("resize", list(PILLOW))
def test_what_is_cut_alone_is_resized_to_the_same(crop: str, resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, seen = photo(91, 50), replace(SEEN, crop=crop, resize=resize, crop_ratio=0.8, fill="#000000")
    whole = decoded(image, seen)
    monkeypatch.setattr(squares, "MAX_RESIZED", 0)
    off = np.abs(decoded(image, seen) - whole)
    assert (off > 0).mean() < 0.1 if resize == "pillow-nearest" else off.max() <= 1


def test_where_the_square_is_cut() -> None:
    """A picture that is not resized, whose pixels tell where they were."""
    for width, left in ((33, 0), (34, 1), (35, 2), (36, 2), (37, 2), (38, 3), (39, 4)):
        pixels = np.zeros((32, width, 3), np.uint8)
        pixels[..., 0] = np.arange(width)
        for upright in (pixels, pixels.swapaxes(0, 1)):
            found = decoded(upright, replace(SEEN, crop="shortest"))
            assert (found[0, 0, 0], found[-1, -1, 0]) == (left, left + 31)


@pytest.mark.parametrize(
    ("side", "ratio", "resized"),
    [(224, 0.875, 256), (224, 0.9, 248), (224, 0.95, 235), (224, 0.94, 238), (299, 0.875, 341), (384, 1.0, 384)],
)
def test_the_ratio_counts_as_timm_counts(side: int, ratio: float, resized: int) -> None:
    assert Preprocessing(side, "torch", "shortest", crop_ratio=ratio).resized_side == resized


@given(st.integers(1, 4096).flatmap(lambda side: st.tuples(st.just(side), st.integers(side, 10 * side))))
@example((33, 54))
@example((224, 232))
def test_there_is_a_ratio_for_every_size(pair: tuple[int, int]) -> None:
    ratio = crop_ratio(*pair)
    assert Preprocessing(pair[0], "", "shortest", crop_ratio=ratio).resized_side == pair[1]
    assert ratio == pytest.approx(pair[0] / pair[1], rel=1e-15)


@pytest.mark.parametrize("resize", PLAIN)
@pytest.mark.parametrize("size", [(50, 41), (20, 47), (31, 31)])
def test_shortest_cuts_a_plain_resize_too(resize: str, size: tuple[int, int]) -> None:
    pixels, short = noise(*size), min(size)
    width, height = int(18 * size[0] / short), int(18 * size[1] / short)
    left, top = round((width - 15) / 2), round((height - 15) / 2)
    expected = blended(pixels, width, height, resize)[top : top + 15, left : left + 15]
    found = decoded(pixels, Preprocessing(15, "", "shortest", resize, crop_ratio=crop_ratio(15, 18)))
    assert np.abs(found - expected).max() < 0.501


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(90, 50), (50, 91), (20, 300), (35, 31)])
def test_the_square_alone_is_resized_to_the_same(
    resize: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, seen = photo(*size), replace(SEEN, crop="shortest", resize=resize, crop_ratio=0.8)
    whole = decoded(image, seen)
    monkeypatch.setattr(squares, "MAX_RESIZED", 0)
    off = np.abs(decoded(image, seen) - whole)
    if resize == "pillow-nearest":  # a centre between two pixels falls to either
        assert (off > 0).mean() < 0.1
    else:
        assert off.max() <= (0 if resize in PLAIN else 1)


@pytest.mark.parametrize("resize", RESIZES)
def test_no_shape_takes_much_memory(resize: str) -> None:
    """In a process of its own: 60,000 pixels become 224 × 13 million, if they are resized as a whole."""
    code = f"""
import io, resource
from PIL import Image
from featurestore.spec import Preprocessing
from pipelines.images import decoder
for size in ((1, 60_000), (60_000, 1), (200, 200), (2, 300_000)):
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(file, "PNG")
    if size == (1, 60_000):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = decoder.decode(file.getvalue(), Preprocessing(224, "", "shortest", {resize!r}, crop_ratio=0.9)).pixels
    assert found.shape == (224, 224, 3) and (found == (9, 99, 199)).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.stderr and int(done.stdout) < 200  # MiB


@settings(max_examples=100)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)) | st.tuples(st.integers(1, 3), st.integers(1, 3000)),
    st.booleans(),
    st.sampled_from(CROPS),
    st.sampled_from(RESIZES),
    st.floats(0.1, 1),
    st.integers(1, 60),
)
def test_every_shape_becomes_a_square(
    size: tuple[int, int], lying: bool, crop: str, resize: str, ratio: float, side: int
) -> None:
    seen = Preprocessing(side, "", crop, resize, crop_ratio=ratio if crop != "center" else 1.0)
    picture = decoder.decode(file_of(Image.new("RGB", size[::-1] if lying else size, (9, 99, 199))), seen)
    assert picture.pixels.shape == (side, side, 3)
    if crop != "pad":
        assert (picture.pixels == (9, 99, 199)).all()
    else:
        assert (picture.pixels == (9, 99, 199)).any(axis=(0, 1)).all()


# --- turned pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", CROPS)
def test_a_turn_comes_first(crop: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size, ratio in product(((67, 40), (40, 71), (66, 41), (64, 96)), (1.0, 0.8)):
        data = file_of(noise(*size), exif=exif)
        first = file_of(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        for resize in RESIZES:
            seen = replace(SEEN, crop=crop, resize=resize, crop_ratio=ratio if crop != "center" else 1.0)
            found, expected = decoder.decode(data, seen), decoder.decode(first, seen)
            assert (found.width, found.height) == (expected.width, expected.height)
            off = np.abs(found.pixels.astype(int) - expected.pixels).max()
            late = resize == "pillow-bilinear" and crop != "shortest" and seen.crop_ratio == 1
            # An odd margin of "pad" is on the other side then, as it always was.
            if crop != "pad" or not late:
                assert off <= late, (size, resize)


# --- JPEGs that are decoded at a reduced size


@pytest.mark.parametrize(
    ("seen", "factor"),
    [
        (SEEN, 8),
        (replace(SEEN, crop="center", resize="pillow-lanczos"), 8),
        (replace(SEEN, crop="shortest", resize="pillow-bicubic"), 8),
        (replace(SEEN, crop="shortest", crop_ratio=0.5), 4),
        (replace(SEEN, crop="shortest", crop_ratio=0.25), 2),
        (replace(SEEN, crop="shortest", crop_ratio=0.12), 1),
        (replace(SEEN, crop="pad", input_size=64), 4),
        (replace(SEEN, crop_ratio=0.25), 2),
        *((replace(SEEN, resize=resize), 1) for resize in WHOLE),
        (replace(SEEN, crop="shortest", resize="plain-bilinear"), 1),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_as_small_as_the_rule_allows(seen: Preprocessing, factor: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(photo(723, 513), "JPEG", quality=95, exif=exif)
    image = Image.open(io.BytesIO(data))
    image.draft(None, (723 // factor, 513 // factor))
    assert image.size == (-(-723 // factor), -(-513 // factor))
    found = decoder.decode(data, seen).pixels.astype(int)
    turned = ImageOps.exif_transpose(image)
    if seen.crop == "shortest" and seen.resize in PILLOW:
        # the shape is that of the picture, not of its reduced one
        short = seen.resized_side
        size = (int(short * 723 / 513), short) if orientation == 1 else (short, int(short * 723 / 513))
        left, top = (round((length - 32) / 2) for length in size)
        expected = np.asarray(turned.resize(size, PILLOW[seen.resize]))[top : top + 32, left : left + 32]
    else:
        expected = decoded(turned, seen)
    assert np.abs(found - expected).max() <= (1 if orientation == 6 and seen.resize == "pillow-bilinear" else 0)


@pytest.mark.parametrize("resize", ["pillow-bilinear", "pillow-bicubic", "pillow-lanczos"])
def test_a_reduced_jpeg_is_near_the_whole_one(resize: str) -> None:
    data = file_of(photo(640, 427), "JPEG", quality=95)
    seen = replace(SEEN, input_size=64, crop="shortest", resize=resize, crop_ratio=0.9)
    reduced, whole = decoder.decode(data, seen).pixels.astype(int), decoded(Image.open(io.BytesIO(data)), seen)
    assert 0 < np.abs(reduced - whole).mean() < 2.5


# --- refused


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"crop": "middle"}, r"Expected: crop squash, center, pad, shortest\. Got: 'middle'"),
        ({"resize": "bilinear"}, r"Expected: resize pillow-bilinear, .*plain-bicubic\. Got: 'bilinear'"),
        ({"decode": "rgb8-v2"}, r"Expected: decode rgb8-v1\. Got: 'rgb8-v2'"),
        (
            {"crop": "center", "crop_ratio": 0.9},
            r'Expected: crop_ratio from 0\.1 to 1, and 1 with crop "center"\. Got: 0\.9',
        ),
        *(
            ({"crop": crop, "crop_ratio": ratio}, "Expected: crop_ratio from")
            for crop in ("shortest", "pad", "squash")
            for ratio in (0.0, 0.09, 1.01, -1.0, math.nan, math.inf)
        ),
        ({"crop": "pad", "fill": "grey"}, "Expected: fill #rrggbb, and #000000 without .*Got: 'grey'"),
        ({"fill": "#808080"}, "Expected: fill #rrggbb, and #000000 without .*Got: '#808080'"),
    ],
)
def test_what_there_is_not_is_refused(change: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        decoder.decode(file_of(noise(8, 8)), replace(SEEN, **change))
    with pytest.raises(ImageError):
        decoder.decode(b"", SEEN)
