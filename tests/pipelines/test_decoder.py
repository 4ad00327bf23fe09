import contextlib
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import sklearn.datasets
from decoding import decoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin

from featurestore.errors import ImageError, UsageError
from pipelines.images import containers, decoder, samples, signatures
from pipelines.images.decoder import thumbnail

PHOTOS = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(width: int = 400, height: int = 300) -> Image.Image:
    return Image.open(PHOTOS[0]).resize((width, height))


def ramp(dtype: str, top: float, low: float = 0) -> np.ndarray:
    return np.tile(np.linspace(low, top, 256), (64, 1)).astype(dtype)


def squashed(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def failure(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(data, 32)
    assert len(str(caught.value)) > 10
    return caught.value.error_type


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# --- right pixels


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_each_format_equals_pillow(format, options):
    data = encode(photo(), format, **options)
    picture = decoded(data, 96)
    assert (picture.width, picture.height, picture.format) == (400, 300, format.lower())
    assert picture.pixels.shape == (96, 96, 3) and picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels, squashed(Image.open(BytesIO(data)), 96))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("side", [60, 100, 224, 400])
def test_reduced_jpegs_equal_pillows_draft(path, side):
    data = path.read_bytes()  # 640×427: 1/2 at 100, 1/2 at 60 (1/4 would leave 107 < 120), whole at 224
    image = Image.open(BytesIO(data))
    factor = {60: 2, 100: 2, 224: 1, 400: 1}[side]
    image.draft(None, (640 // factor, 427 // factor))
    assert image.size == (640 // factor, -(-427 // factor))
    np.testing.assert_array_equal(decoded(data, side).pixels, squashed(image, side))


@pytest.mark.parametrize("size", [(3, 400), (400, 3), (1, 90), (7, 7), (3, 3), (5, 2), (17, 16)])
def test_narrow_and_tiny_jpegs_are_decoded_whole(size):
    data = encode(photo(*size), "JPEG", quality=95)
    np.testing.assert_array_equal(decoded(data, 16).pixels, squashed(Image.open(BytesIO(data)), 16))


def test_a_square_of_the_target_size_is_copied_out():
    files = [encode(photo(96, 96).rotate(angle), "JPEG") for angle in (0, 90)]
    first, second = (decoded(data, 96).pixels for data in files)
    for pixels, data in zip((first, second), files, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(BytesIO(data))))


def test_reduction_keeps_twice_the_target(monkeypatch):
    shapes = []
    real = simplejpeg.decode_jpeg

    def spy(*args, **options):
        pixels = real(*args, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    data = encode(photo(2000, 1601), "JPEG")
    for side in (500, 400, 200, 100, 7):
        decoded(data, side)
    assert shapes == [(1601, 2000), (801, 1000), (401, 500), (201, 250), (201, 250)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(photo(), format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    picture = decoded(data, 100)
    assert (picture.width, picture.height) == expected.size == ((400, 300) if orientation < 5 else (300, 400))
    assert difference(picture.pixels, squashed(expected, 100)) <= 1  # turned before or after the resize
    small = Image.open(BytesIO(thumbnail(data, 40)))
    assert small.size == ((40, 30) if orientation < 5 else (30, 40))


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(ramp("u2", 65535)), "PNG"),
        encode(Image.fromarray(ramp("u2", 65535)), "TIFF"),
        encode(Image.fromarray(ramp("i4", 65535)), "TIFF"),
        encode(Image.fromarray(ramp("i4", 2**31 - 1, -(2**31))), "TIFF"),
        encode(Image.fromarray(ramp("i4", 255)), "TIFF"),
        encode(Image.fromarray(ramp("f4", 1)), "TIFF"),
        encode(Image.fromarray(ramp("f4", 255)), "TIFF"),
        encode(Image.fromarray(ramp("f4", 65535)), "TIFF"),
        encode(Image.fromarray(ramp("f4", 5, -3)), "TIFF"),
        encode(Image.fromarray(ramp("u1", 255)), "PNG"),
    ],
    ids="png16 tiff16 tiff32 tiff32-full tiff32-bytes f-unit f-bytes f-words f-any png8".split(),  # noqa: SIM905
)
def test_a_ramp_stays_a_ramp(data):
    pixels = decoded(data, 256).pixels
    assert difference(pixels[0, :, 0], np.arange(256)) <= 1
    assert (pixels == pixels[:1, :, :1]).all()


def test_unsigned_32_bit_tiff_does_not_wrap():
    signed = encode(Image.fromarray(ramp("u4", 2**32 - 1).view("i4")), "TIFF")
    tag = struct.pack("<HHI", TiffImagePlugin.SAMPLEFORMAT, 3, 1)
    data = signed.replace(tag + b"\2", tag + b"\1")
    assert data != signed
    assert difference(decoded(data, 256).pixels[0, :, 0], np.arange(256)) <= 1


def test_constant_float_and_non_finite():
    assert (decoded(encode(Image.fromarray(np.full((8, 8), 7e9, "f4")), "TIFF"), 8).pixels == 0).all()
    values = np.zeros((8, 8), "f4")
    values[3, 3] = np.nan
    assert failure(encode(Image.fromarray(values), "TIFF")) == "unsupported"


def test_16_bit_rgb_png_keeps_its_high_byte():
    rows = ramp("u2", 65535)[:, :, None].repeat(3, axis=2).astype(">u2")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 256, 64, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(kind, part) for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    )
    assert difference(decoded(data, 256).pixels[0, :, 0], np.arange(256)) <= 1


def transparent_pictures():
    palette = Image.new("P", (16, 16), 3)
    palette.putpalette([0, 0, 255] * 8)
    red = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    yield "RGBA", encode(red, "PNG"), (255, 255, 255)
    yield "half", encode(Image.new("RGBA", (16, 16), (255, 0, 0, 128)), "PNG"), (255, 127, 127)
    yield "webp", encode(red, "WEBP", lossless=True), (255, 255, 255)
    yield "LA", encode(Image.new("LA", (16, 16), (0, 0)), "PNG"), (255, 255, 255)
    yield "P", encode(palette, "PNG", transparency=3), (255, 255, 255)
    yield "P bytes", encode(palette, "PNG", transparency=b"\xff\xff\xff\0"), (255, 255, 255)
    yield "GIF", encode(Image.new("P", (16, 16), 3), "GIF", transparency=3), (255, 255, 255)
    yield "RGB tRNS", encode(Image.new("RGB", (16, 16), "blue"), "PNG", transparency=(0, 0, 255)), (255,) * 3
    yield "L tRNS", encode(Image.new("L", (16, 16), 9), "PNG", transparency=9), (255, 255, 255)
    gray16 = Image.fromarray(np.full((16, 16), 300, "u2"))
    yield "I;16 tRNS", encode(gray16, "PNG", transparency=300), (255, 255, 255)
    yield "I;16 tRNS of another", encode(gray16, "PNG", transparency=301), (1, 1, 1)
    yield "TIFF", encode(red, "TIFF"), (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "color"), [pytest.param(data, color, id=name) for name, data, color in transparent_pictures()]
)
def test_alpha_is_composited_over_white(data, color):
    assert difference(decoded(data, 8).pixels, np.array(color)) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_small_modes_equal_pillow(mode, format):
    data = encode(photo().convert(mode), format)
    np.testing.assert_array_equal(decoded(data, 50).pixels, squashed(Image.open(BytesIO(data)), 50))


def test_gray_and_cmyk_jpeg():
    for mode in ("L", "CMYK"):
        data = encode(photo().convert(mode), "JPEG", quality=95)
        np.testing.assert_array_equal(decoded(data, 250).pixels, squashed(Image.open(BytesIO(data)), 250))
        assert np.abs(decoded(data, 250).pixels.astype(int) - squashed(photo().convert(mode), 250)).mean() < 3


def test_first_frame_of_a_gif_and_first_page_of_a_tiff():
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "lime")]
    for format in ("GIF", "TIFF", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        assert difference(decoded(data, 9).pixels, np.array((255, 0, 0))) <= 2


def test_extreme_aspect_and_single_pixel():
    for size in ((1, 60000), (60000, 1), (1, 1)):
        for format in ("PNG", "JPEG"):
            data = encode(Image.new("RGB", size, "red"), format)
            assert difference(decoded(data, 224).pixels, np.array((255, 0, 0))) <= 2
            assert max(Image.open(BytesIO(thumbnail(data))).size) == 160


def test_thumbnail_keeps_the_aspect():
    small = Image.open(BytesIO(thumbnail(PHOTOS[0].read_bytes())))
    assert small.format == "JPEG" and small.size == (160, 107)
    transparent = thumbnail(encode(Image.new("RGBA", (30, 60)), "PNG"), 20)
    assert Image.open(BytesIO(transparent)).getpixel((5, 5)) == (255, 255, 255)
    with pytest.raises(ImageError):
        thumbnail(b"text")


def test_unknown_crop_is_a_usage_error():
    with pytest.raises(UsageError, match="center"):
        decoded(PHOTOS[0].read_bytes(), 32, crop="middle")


def test_threads_give_the_same_pixels():
    files = [encode(photo(300 + i, 200), format) for i in range(8) for format in ("JPEG", "PNG")]
    expected = [decoded(data, 64).pixels for data in files]
    wrong = []

    def work():
        for data, pixels in zip(files, expected, strict=True):
            if not np.array_equal(decoded(data, 64).pixels, pixels):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- clean failures


def test_empty_text_and_noise():
    assert failure(b"") == "empty"
    assert failure(b"hello, world") == "not_an_image"
    assert failure(bytes(1000)) == "not_an_image"
    assert failure(b"RIFF\x24\0\0\0WAVEfmt ") == "not_an_image"


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("RGB", (64, 64)), "JPEG2000"),
        encode(Image.new("RGB", (64, 64)), "ICO"),
        encode(Image.new("RGB", (64, 64)), "EPS"),
        encode(Image.new("RGB", (64, 64)), "PPM"),
        encode(Image.new("RGB", (64, 64)), "PDF"),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"8BPS\0\1" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=lambda data: repr(data[:6]),
)
def test_other_picture_formats_are_unsupported(data):
    assert failure(data) == "unsupported"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(format):
    data = encode(photo(), format)
    for part in (0.3, 0.5, 0.95):
        assert failure(data[: int(len(data) * part)]) == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_a_zeroed_middle_of_a_jpeg_is_corrupt(path, progressive):
    data = encode(Image.open(path), "JPEG", quality=90, progressive=progressive)
    for start in np.linspace(0.2, 0.8, 10):
        at = int(len(data) * start)
        assert failure(data[:at] + bytes(4096) + data[at + 4096 :]) == "corrupt"


def test_a_zeroed_or_flipped_png_is_corrupt():
    data = encode(photo(), "PNG")
    at = len(data) // 2
    assert failure(data[:at] + bytes(512) + data[at + 512 :]) == "corrupt"
    assert failure(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) == "corrupt"


def test_pixels_that_cannot_be_inflated_are_not_served_as_black():
    header = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    for pixels in (b"not deflated at all", zlib.compress(b"\7" * 64 * 65)):  # the checksums are right
        chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
        assert failure(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)) == "corrupt"


def test_measuring_decodes_no_pixels(monkeypatch):
    files = {format.lower(): encode(photo(), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    for format, data in files.items():
        assert decoder.measure(data) == (400, 300, format)


def test_decoders_print_nothing(capfd):
    data = encode(photo(), "TIFF", compression="tiff_lzw")
    at = len(data) // 2
    with contextlib.suppress(ImageError):
        decoded(data[:at] + bytes(99) + data[at + 99 :], 32)
    assert failure(encode(photo(), "TIFF", compression="tiff_deflate").replace(b"\x78\x9c", b"\xff\xff")) == "corrupt"
    assert capfd.readouterr() == ("", "")


def test_threads_share_the_room_for_pixels(monkeypatch):
    """Together they never hold more pixels than there is room for, and a large image is not passed for ever."""
    monkeypatch.setattr(decoder, "_room", decoder._Room(400 * 300 * 2))
    files = [encode(photo(400, 300), "PNG"), encode(photo(800, 300), "PNG")]
    held, most, lock = [0], [0], threading.Lock()
    real = samples.to_rgb

    def spy(image, *more):
        with lock:
            held[0] += image.width * image.height
            most[0] = max(most[0], held[0])
        time.sleep(0.01)
        with lock:
            held[0] -= image.width * image.height
        return real(image, *more)

    monkeypatch.setattr(samples, "to_rgb", spy)
    with ThreadPoolExecutor(4) as pool:
        widths = [picture.width for picture in pool.map(lambda data: decoded(data, 32), files * 8)]
    assert widths == [400, 800] * 8
    assert most[0] == 400 * 300 * 2


def test_bands_of_rows_change_nothing(monkeypatch):
    alpha = photo().convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(400) % 256, (300, 1)).astype(np.uint8)))
    files = [encode(alpha, "PNG"), encode(alpha.quantize(), "PNG"), encode(photo().convert("CMYK"), "TIFF")]
    files += [
        encode(Image.fromarray(ramp(dtype, top)), "TIFF") for dtype, top in (("u2", 65535), ("i4", 1e6), ("f4", 9))
    ]
    whole = [decoded(data, 96).pixels for data in files]
    monkeypatch.setattr(samples, "BAND_PIXELS", 7 * 400)
    for data, pixels in zip(files, whole, strict=True):
        np.testing.assert_array_equal(decoded(data, 96).pixels, pixels)


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("layout", ["<", ">"])
def test_orientation_is_what_pillow_reads(number, layout):
    mark = {"<": b"II*\0", ">": b"MM\0*"}[layout]
    for entries in (
        [(0x112, 3, 1, number)],
        [(0x112, 4, 1, number)],
        [(0x112, 3, 1, 6), (0x112, 3, 1, number)],  # the last one counts
        [(0x10F, 2, 99, 2**20), (0x112, 3, 1, number)],  # a value that is not there ends it
        [(0x10F, 99, 9, 9), (0x112, 3, 1, number)],  # a type that does not exist is passed over
    ):
        body = b"".join(
            struct.pack(layout + "HHI", tag, kind, count)
            + struct.pack(layout + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value]))
            for tag, kind, count, value in entries
        )
        exif = mark + struct.pack(layout + "IH", 8, len(entries)) + body + bytes(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(BytesIO(encode(photo(16, 16), "JPEG", exif=b"Exif\0\0" + exif)))
            expected = picture.getexif().get(0x112, 1)
        assert containers.orientation(exif, None) == expected


def test_harmless_junk_in_a_jpeg_still_decodes():
    data = encode(photo(), "JPEG")
    tables = data.index(b"\xff\xdb")
    before_tables = data[:tables] + b"junk" + data[tables:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(before_tables)
    padding = bytes(100)
    before_end = data[:-2] + padding + data[-2:]
    for side in (100, 50):  # whole and reduced by 1/2
        expected = decoded(data, side).pixels
        for harmless in (before_tables, before_end, data + b"trailing" + bytes(100)):
            np.testing.assert_array_equal(decoded(harmless, side).pixels, expected)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    side = 20_000
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(kind, part) for kind, part in ((b"IHDR", header), (b"IDAT", b"x"), (b"IEND", b""))
    )
    assert failure(data) == "too_large"
    photo_data = encode(photo(), "JPEG")
    monkeypatch.setattr(decoder, "MAX_PIXELS", 400 * 300 - 1)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **options: pytest.fail("decoded"))
    assert failure(photo_data) == "too_large"


def test_large_files_are_refused(monkeypatch):
    data = encode(photo(), "JPEG")
    monkeypatch.setattr(signatures, "MAX_FILE_BYTES", len(data) - 1)
    assert failure(data) == "too_large"


def test_memory_errors_become_image_errors(monkeypatch):
    def full(*args, **options):
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    assert failure(encode(photo(), "JPEG")) == "too_large"


def test_pillows_warnings_do_not_leak():
    data = encode(photo(), "TIFF")
    odd = data.replace(struct.pack("<HHI", 277, 3, 1), struct.pack("<HHI", 277, 3, 2))  # a tag of two values
    palette = encode(Image.new("P", (16, 16), 1), "PNG", transparency=b"\xff\0")
    exif = encode(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for picture in (odd, palette, exif):
            with contextlib.suppress(ImageError):
                decoded(picture, 32)
    assert not seen
    decoded(exif, 32)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"II"])
def test_garbled_exif_does_not_fail_a_picture(exif):
    data = encode(photo(), "JPEG", exif=exif)
    np.testing.assert_array_equal(decoded(data, 100).pixels, decoded(encode(photo(), "JPEG"), 100).pixels)


def test_pillows_global_switches_stay_as_they_are():
    def switches():
        return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK

    before = switches()
    decoded(encode(photo(), "PNG"), 32)
    assert switches() == before


SMALL = [
    encode(Image.open(PHOTOS[1]).resize((60, 40)), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
]


@settings(max_examples=300)
@given(st.sampled_from(SMALL), st.data())
def test_damaged_bytes_decode_or_fail_cleanly(data, draw):
    start = draw.draw(st.integers(0, len(data) - 1))
    patch = draw.draw(st.binary(max_size=40))
    keep = draw.draw(st.integers(0, len(data)))
    try:
        assert decoded((data[:start] + patch + data[start + len(patch) :])[:keep], 16).pixels.shape == (16, 16, 3)
    except ImageError as error:
        assert error.error_type in {
            "empty",
            "not_an_image",
            "truncated",
            "corrupt",
            "too_large",
            "unsupported",
        }


@given(st.binary(max_size=200))
def test_any_bytes_fail_cleanly(data):
    with pytest.raises(ImageError):
        decoded(data, 16)
