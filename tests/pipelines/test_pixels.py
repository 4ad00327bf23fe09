"""Every kind of file that the kept encoders write: the right pixels, or "unsupported"; and what tags decide."""

import io
import struct
import warnings
import zlib

import decoding
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import pixels
from featurestore.errors import ImageError
from hostile.craft import chunk, encode, png
from pipelines.images import containers, decoder, samples

SIZE = (pixels.SIDE, pixels.SIDE)


@pytest.mark.parametrize(("container", "at_least"), [("png", 190), ("other", 70), ("odd tiff", 200), ("tiff", 500)])
def test_the_right_pixels_or_unsupported(container, at_least):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of encoders
        found, count = pixels.wrong(pixels.CONTAINERS[container](SIZE))
    assert not found, "\n".join(found)
    assert count >= at_least


def failure(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoding.decoded(data, 32)
    return f"{caught.value.error_type}: {caught.value}"


def decoded(data: bytes) -> np.ndarray:
    return decoding.decoded(data, pixels.SIDE).pixels


# --- refused by name


def test_sound_files_of_other_kinds_are_called_by_their_names():
    png_of_apple = png((8, 8), 8, 2, chunk(b"CgBI", b"P\0 \2"), chunk(b"IDAT", zlib.compress(bytes(200))))
    apple = png_of_apple[:8] + png_of_apple[33:49] + png_of_apple[8:33] + png_of_apple[49:]  # before IHDR
    for data in (apple, png_of_apple):
        assert failure(data).startswith("unsupported: Apple's kind of PNG (CgBI)")
    assert failure(b"II\xbc\1" + bytes(100)).startswith("unsupported: JPEG XR")
    values = pixels.scene(SIZE, 4, 1, "f4")
    case = pixels.tiff_case("", values, photometric="rgb", planarconfig="separate", extrasamples=("unassalpha",))
    inks = pixels.tiff_case(
        "", pixels.scene(SIZE, 4, 255, "u1"), photometric="separated", extratags=[(332, 3, 1, 2, True)]
    )
    assert failure(inks.data).startswith("unsupported: A TIFF of samples of this kind (4 × 8 bits, unsigned, inks)")
    said = failure(case.data)
    assert "(4 × 32 bits, floating-point, RGB, with extra samples or alpha, planar)" in said and "convert" in said


# --- tags that say how deep


def test_a_largest_value_is_a_depth_only_where_it_can_be_one():
    """TIFF calls MaxSampleValue a statistic: 4000 is one; 4095 is none, unless a sample is larger."""
    values = pixels.scene(SIZE, 1, 4000, "u2")
    for said, level in ((4095, values >> 4), (4000, values >> 8), (65535, values >> 8), (1023, values >> 8)):
        data = pixels.tiff_case("", values, photometric="minisblack", extratags=[(281, 3, 1, said, True)]).data
        np.testing.assert_array_equal(decoded(data), level.repeat(3, axis=2), err_msg=str(said))


def test_dark_png_with_significant_bits_stays_dark():
    """Scaled samples of few bits may all be small: their low bits are not set then."""
    values = pixels.scene(SIZE, 1, 255, "u2") << 4  # a twelfth part of the light, of 12 bits
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    for bits, shift in ((12, 8), (10, 8)):
        data = png(SIZE, 16, 0, chunk(b"sBIT", bytes([bits])), chunk(b"IDAT", zlib.compress(rows)))
        np.testing.assert_array_equal(decoded(data)[..., 0], (values >> shift)[..., 0])


def test_bands_change_nothing_of_deep_pictures(monkeypatch):
    for name in ("odd tiff", "png"):
        made = [make() for make in list(pixels.CONTAINERS[name](SIZE))[::7]]
        cases = [case for case in made if case and case.right is not None and case.must]
        whole = [decoded(case.data) for case in cases]
        with monkeypatch.context() as patch:
            patch.setattr(samples, "BAND_PIXELS", 5 * pixels.SIDE)
            for case, right in zip(cases, whole, strict=True):
                np.testing.assert_array_equal(decoded(case.data), right, err_msg=case.name)


def test_planes_without_a_tag_of_their_compression_are_plain() -> None:
    for dtype, top in (("u1", 255), ("u2", 65535)):
        values = pixels.scene(SIZE, 3, top, dtype)
        data = pixels.tiff_case("", values, photometric="rgb", planarconfig="separate").data
        entry = struct.pack("<HHIHH", 259, 3, 1, 1, 0)
        assert data.count(entry) == 1
        without = data.replace(entry, struct.pack("<HHIHH", 65000, 3, 1, 1, 0))
        np.testing.assert_array_equal(decoded(without), (values >> (8 if dtype == "u2" else 0)).astype(np.uint8))


# --- pages


def test_a_camera_file_is_not_its_thumbnail():
    """As a DNG: a small image that is marked so, and in a SubIFD the raw mosaic, which is refused."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        tiff.write(np.zeros((32, 32), np.uint16), photometric="cfa", subfiletype=0, metadata=None)
    assert "raw mosaic" in failure(file.getvalue()) and failure(file.getvalue()).startswith("unsupported")


def test_directories_that_go_in_circles_end():
    data = bytearray(
        pixels.tiff_case("", pixels.scene(SIZE, 1, 255, "u1"), photometric="minisblack", subfiletype=1).data
    )
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
        place = tiff.pages[0].offset
        (entries,) = struct.unpack_from("<H", data, place)
    struct.pack_into("<I", data, place + 2 + 12 * entries, place)
    assert decoder.measure(bytes(data)) == (*SIZE, "tiff")
    struct.pack_into("<I", data, place + 2 + 12 * entries, len(data) - 1)
    assert failure(bytes(data)).startswith("truncated")


# --- profiles


def profile(gamma: float | None, table: np.ndarray | None = None) -> bytes:
    """sRGB's, with other curves: a gamma, none (the identity), or a table."""
    base = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if table is not None:
        curve = b"curv" + bytes(4) + struct.pack(">I", len(table)) + table.astype(">u2").tobytes()
    elif gamma is None:
        curve = b"curv" + bytes(8)
    else:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    (count,) = struct.unpack_from(">I", base, 128)
    for at in range(132, 132 + 12 * count, 12):
        if base[at + 1 : at + 4] == b"TRC":
            struct.pack_into(">II", base, at + 4, len(base), len(curve))
    return bytes(base) + curve


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_linear_light_is_refused_and_other_profiles_are_ignored(format):
    image = Image.fromarray(pixels.scene(SIZE, 3, 255, "u1"))
    plain = decoded(encode(image, format))
    for icc in (
        profile(2.2),
        profile(1.8),
        profile(None)[:300],
        b"garbage",
        bytes(200),
        profile(0, np.arange(100) ** 2),
    ):
        np.testing.assert_array_equal(decoded(encode(image, format, icc_profile=icc)), plain)
    for icc in (profile(None), profile(1), profile(0, np.linspace(0, 65535, 1024).astype(int))):
        assert containers.is_linear(icc)
        assert failure(encode(image, format, icc_profile=icc)).startswith("unsupported: Its ICC profile says linear")
