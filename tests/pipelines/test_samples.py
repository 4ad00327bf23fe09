"""Samples of every depth as 8-bit levels: exact values, on squares that no resize touches."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from decoding import decoded
from PIL import Image

from featurestore.errors import ImageError
from hostile.craft import chunk, encode, png
from pipelines.images import decoder, samples, signatures
from pipelines.images.samples import _is_unscaled

SIDE = 4


def square(*values: float, dtype: str) -> np.ndarray:
    """The values in the first pixels, the first of them in all others."""
    pixels = np.full(SIDE * SIDE, values[0], dtype)
    pixels[: len(values)] = values
    return pixels.reshape(SIDE, SIDE)


def levels(data: bytes) -> np.ndarray:
    pixels = decoded(data, SIDE).pixels
    assert (pixels == pixels[..., :1]).all()  # grey
    return pixels[..., 0].reshape(-1)


def failure(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(data, SIDE)
    return f"{caught.value.error_type}: {caught.value}"


def expected(values: tuple[float, ...], low: float, high: float) -> list[int]:
    return [int(np.rint((value - low) * (255 / (high - low)))) for value in values]


@pytest.mark.parametrize(
    ("dtype", "values", "low", "high"),
    [
        ("f4", (0, 0.1, 0.5, 0.999, 1), 0, 1),
        ("f4", (0, 0.5), 0, 1),
        ("f4", (0, 1.001, 100), 0, 255),
        ("f4", (0, 13.5, 255), 0, 255),
        ("f4", (0, 255.5, 1000), 0, 65535),
        ("f4", (0, 65535, 300), 0, 65535),
        ("f4", (0, 65536, 300), 0, 65536),
        ("f4", (-0.5, 0.5, 0), -0.5, 0.5),
        ("f4", (100, 70_000, 300), 100, 70_000),
        ("i4", (0, 1, 128, 255), 0, 255),
        ("i4", (0, 1), 0, 255),
        ("i4", (0, 256, 1000, 40_000), 0, 65535),
        ("i4", (0, 65535, 1000), 0, 65535),
        ("i4", (0, 65536, 1000), 0, 65536),
        ("i4", (-1, 0, 254), -1, 254),
        ("i4", (2**31 - 1, -(2**31), 0), -(2**31), 2**31 - 1),
    ],
)
def test_the_smallest_range_that_holds_all_values_becomes_all_levels(
    dtype: str, values: tuple[float, ...], low: float, high: float
) -> None:
    found = levels(encode(Image.fromarray(square(*values, dtype=dtype)), "TIFF"))
    wanted = expected(values, low, high)
    assert found[: len(values)].tolist() == wanted and (found[len(values) :] == wanted[0]).all()


def test_8_bits_are_what_they_are_and_signed_ones_are_scaled() -> None:
    values = square(0, 1, 127, 128, 255, dtype="u1")
    for format in ("PNG", "TIFF", "BMP"):
        assert levels(encode(Image.fromarray(values), format)).tolist() == values.reshape(-1).tolist()
    data = encode(Image.fromarray(values), "TIFF", tiffinfo={339: 2})
    signed = (0, 1, 127, -128, -1)
    assert levels(data)[:5].tolist() == expected(signed, -128, 127)


def test_a_picture_of_one_value_outside_all_ranges_is_black() -> None:
    for value in (-5, 1e6):
        assert not levels(encode(Image.fromarray(square(value, dtype="f4")), "TIFF")).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_is_refused_wherever_it_is(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "BAND_PIXELS", SIDE)
    for place in (0, 7, 15):
        pixels = square(0.5, dtype="f4")
        pixels.reshape(-1)[place] = value
        assert failure(encode(Image.fromarray(pixels), "TIFF")) == (
            "unsupported: The image holds NaN or infinity: replace them by numbers."
        )


# --- 16 bits, and fewer of them


@pytest.mark.parametrize(
    ("used", "bits", "png_says", "unscaled"),
    [
        (0x0FFF, 12, False, True), (0x0FFF, 12, True, True), (0x1000, 12, False, False), (0x0010, 12, False, True),
        (0x0010, 12, True, False),  # scaling up leaves no bit below 2**4 … but repeats the high bits there
        (0x0001, 12, True, False), (0x000F, 12, True, True), (0x0002, 12, True, True), (0x0FF0, 12, True, False),
        (0x0FF8, 12, True, True), (0x7FFF, 15, False, True), (0x8000, 15, False, False), (0x0000, 12, False, True),
        (0x00FF, 8, False, True), (0x00FF, 7, False, False), (0x00FF, 16, False, False), (0x0100, 8, True, False),
        (0x007F, 7, False, False), (0x00FF, 17, False, False), (0x0040, 8, True, True),
        (0x0080, 8, True, True), (0x0001, 8, True, False),
    ],
)  # fmt: skip
def test_whether_samples_were_scaled_up(used: int, bits: int, png_says: bool, unscaled: bool) -> None:
    parts = [np.array([[0, used & 0xFF00]], np.uint16), np.array([[used & 0x00FF]], np.uint16)]
    assert _is_unscaled(parts, bits, png_says) is unscaled


def deep_png(values: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png((SIDE, SIDE), 16, colour, *chunks, chunk(b"IDAT", zlib.compress(rows)))


def test_a_clear_colour_of_16_bits_is_compared_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.full((SIDE, SIDE, 3), (0x1234, 0x5678, 0x9ABC), np.uint16)
    values[1, 2] = (0x1234, 0x5678, 0x9ABD)
    values[3, 3] = (0x1334, 0x5678, 0x9ABC)
    clear = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    right = np.full((SIDE, SIDE, 3), 255, np.uint8)
    right[1, 2], right[3, 3] = (0x12, 0x56, 0x9A), (0x13, 0x56, 0x9A)
    for band in (2**22, SIDE):
        monkeypatch.setattr(samples, "BAND_PIXELS", band)
        assert (decoded(deep_png(values, 2, clear), SIDE).pixels == right).all()
    grey = square(300, 301, 556, dtype="u2")[..., None]
    found = levels(deep_png(grey, 0, chunk(b"tRNS", struct.pack(">H", 300))))
    assert found[:3].tolist() == [255, 1, 2] and (found[3:] == 255).all()


def test_rgb_of_fewer_bits_keeps_the_high_8_of_them() -> None:
    values = np.full((SIDE, SIDE, 3), (0x0123, 0x0456, 0x0FFF), np.uint16)
    said = chunk(b"sBIT", b"\x0c\x0c\x0c")
    assert (decoded(deep_png(values, 2, said), SIDE).pixels == (0x12, 0x45, 0xFF)).all()
    assert (decoded(deep_png(values, 2), SIDE).pixels == (0x01, 0x04, 0x0F)).all()


# --- bands


@pytest.mark.parametrize("band", [1, SIDE - 1, SIDE, SIDE + 1, 2 * SIDE, 3 * SIDE, 15, 16, 17, 2**22])
def test_bands_of_any_height_put_every_row_in_its_place(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    real = samples._rows
    monkeypatch.setattr(samples, "_rows", lambda image, rows: sizes.append(rows) or real(image, rows))
    monkeypatch.setattr(samples, "BAND_PIXELS", band)
    rgba = np.arange(SIDE * SIDE * 4, dtype=np.uint8).reshape(SIDE, SIDE, 4)
    rgba[..., 3] = 255
    assert (decoded(encode(Image.fromarray(rgba), "PNG"), SIDE).pixels == rgba[..., :3]).all()
    rows = max(1, band // SIDE)
    assert sizes == [(top, min(top + rows, SIDE)) for top in range(0, SIDE, rows)]


def test_what_needs_no_conversion_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_rows", lambda image, band: pytest.fail("converted"))
    decoded(encode(Image.new("RGB", (SIDE, SIDE), "red"), "PNG"), SIDE)


# --- tables of images.py

KNOWN = {
    b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF\1\2\3\4WEBP": "webp", b"GIF87a": "gif",
    b"GIF89a": "gif", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff",
}  # fmt: skip
OTHERS = {
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000", b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL", b"II\xbc": "JPEG XR", b"\0\0\1\0": "ICO", b"8BPS": "PSD", b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS", b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "SVG", b"DDS ": "DDS", b"qoif": "QOI",
    b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"\0\0\0\x18ftypheic": "HEIC",
    b"\0\0\0\x18ftypavif": "AVIF", b"\0\0\0\x18ftypmp42": "MP42",
    **{b"P%d%c" % (number, space): "PNM" for number in range(1, 7) for space in b"\n\r\t "},
}  # fmt: skip


def test_formats_are_known_by_their_first_bytes() -> None:
    for magic, name in KNOWN.items():
        assert signatures.format_of(magic) == signatures.format_of(magic + b" and more") == name
        assert failure(magic[:-1]).startswith(("empty", "not_an_image", "unsupported: JPEG XR"))
    for magic, name in OTHERS.items():
        said = f"unsupported: {name} is not supported: convert it to JPEG, PNG, WebP or TIFF."
        assert failure(magic) == failure(magic + b" and more") == said
    for data in (b"P0\n", b"P7\n", b"P1x", b"hello, world", b"RIFF\1\2\3\4WAVE"):
        assert failure(data) == f"not_an_image: The file begins with {data[:8]!r}, which no image format does."
    assert failure(b"") == "empty: The file is empty."


def test_files_of_just_the_limit_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (SIDE, SIDE)), "PNG")
    monkeypatch.setattr(signatures, "MAX_FILE_BYTES", len(data))
    decoded(data, SIDE)
    assert failure(data + b"x") == f"too_large: {len(data) + 1} bytes are more than the limit of {len(data)}."
    monkeypatch.setattr(decoder, "MAX_PIXELS", 16)
    decoded(data, SIDE)
    monkeypatch.setattr(decoder, "MAX_SIDE", 4)
    decoded(data, SIDE)
    for size in ((5, 1), (1, 5)):
        assert failure(encode(Image.new("RGB", size), "PNG")) == (
            f"too_large: {size[0]}×{size[1]} pixels are more than the limit of 16, or 4 per side."
        )
    monkeypatch.setattr(decoder, "MAX_PIXELS", 15)
    assert failure(data).startswith("too_large: 4×4 pixels")


@pytest.mark.parametrize(
    ("size", "target", "factor"),
    [
        ((160, 160), 10, 8), ((160, 159), 10, 8), ((160, 153), 10, 8), ((160, 152), 10, 4), ((152, 1000), 10, 4),
        ((77, 77), 10, 4), ((76, 76), 10, 2), ((39, 50), 10, 2), ((38, 50), 10, 1), ((5, 5), 10, 1),
    ],
)  # fmt: skip
def test_a_jpeg_is_reduced_but_not_below_twice_the_target(size: tuple[int, int], target: int, factor: int) -> None:
    assert decoder._reduction(size, target) == factor


def test_what_libjpeg_warns_of_is_damage_or_not() -> None:
    run = bytes(32)
    for warning, scan, damage in (
        ("Premature end of JPEG file", b"", "truncated"),
        ("Corrupt JPEG data: premature end of data segment", b"", "corrupt"),
        ("Corrupt JPEG data: bad Huffman code", b"", "corrupt"),
        ("Inconsistent progression sequence for component 0", b"", "corrupt"),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", b"pixels", None),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", b"pix" + run + b"els\xff\xd9", "corrupt"),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", b"pix" + run[1:] + b"els\xff\xd9", None),
        ("Corrupt JPEG data: 4 extraneous bytes before marker 0xd9", b"pixels" + run + b"\xff\xd9", None),
        ("Invalid SOS parameters", run + b"x", None),
    ):
        assert decoder._jpeg_damage(warning, scan) == damage, warning


@pytest.mark.parametrize(
    ("error", "word", "text"),
    [
        (MemoryError(), "too_large", "The image is too large to decode (MemoryError)."),
        (Image.DecompressionBombError("big"), "too_large", "The image is too large to decode (big)."),
        (EOFError("no more"), "truncated", "The image ends too early (no more)."),
        *(
            (OSError(f"x {said} y"), "truncated", f"The image ends too early (x {said} y).")
            for said in ("Truncated", "incomplete", "unpack", "End of file", "not enough")
        ),
        (NotImplementedError("x"), "unsupported", "This kind of image is not supported (x)."),
        *(
            (ValueError(said), "unsupported", f"This kind of image is not supported ({said}).")
            for said in ("unsupported", "cannot handle it", "Unknown pixel mode")
        ),
        (ValueError("x" * 300), "corrupt", f"The image is damaged ({'x' * 200})."),
        (ImageError("empty", "It is empty."), "empty", "It is empty."),
    ],
)
def test_whatever_decoders_raise_has_a_word(error: Exception, word: str, text: str) -> None:
    found = decoder._image_error(error)
    assert (found.error_type, str(found)) == (word, text)


def test_a_jpeg_of_four_colours_keeps_them() -> None:
    values = np.arange(16 * 16 * 4, dtype=np.uint32).reshape(16, 16, 4) % 251
    data = encode(Image.fromarray(values.astype(np.uint8), "CMYK"), "JPEG", quality=100)
    right = 255 - simplejpeg.decode_jpeg(data, colorspace="CMYK")
    assert (decoded(data, 16).pixels == np.asarray(Image.fromarray(right, "CMYK").convert("RGB"))).all()


def test_a_thumbnail_is_a_jpeg_of_its_quality() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8))
    assert decoder.thumbnail(encode(image, "PNG")) == encode(image, "JPEG", quality=85)
    small = Image.open(io.BytesIO(decoder.thumbnail(encode(image, "PNG"), 50)))
    assert small.size == (50, 28)
    assert Image.open(io.BytesIO(decoder.thumbnail(encode(image.resize((500, 1)), "PNG"), 50))).size == (50, 1)


def test_the_filter_of_warnings_is_added_once() -> None:
    data = encode(Image.new("RGB", (SIDE, SIDE)), "PNG")
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for _ in range(3):
            decoded(data, SIDE)
        assert [(one[0], one[3].pattern) for one in warnings.filters] == [("ignore", r"PIL\.")]
