"""Which page and which tags of a TIFF are decoded, what its samples are, and which kinds are refused by name."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import TiffTags

from featurestore.errors import ImageError
from hostile.craft import GREY_8, tiff
from pipelines.images import tiffs
from pipelines.images.containers import directory

# The tags that make the pixels, by the names of TIFF 6.0 and its supplements.
KEPT = {
    *("ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation", "FillOrder"),
    *("StripOffsets", "Orientation", "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "PlanarConfiguration"),
    *("T4Options", "T6Options", "Predictor", "ColorMap", "TileWidth", "TileLength", "TileOffsets", "TileByteCounts"),
    *("InkSet", "ExtraSamples", "SampleFormat", "SMinSampleValue", "SMaxSampleValue", "JPEGTables"),
    *("JPEGProc", "JPEGInterchangeFormat", "JPEGInterchangeFormatLength", "JPEGRestartInterval"),
    *("JPEGQTables", "JPEGDCTables", "JPEGACTables", "YCbCrCoefficients", "YCbCrSubSampling", "YCbCrPositioning"),
    *("ReferenceBlackWhite", "XMP"),
}
JPEG_XR = 0xBC01


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        tiffs.tiff(data)
    return f"{caught.value.error_type}: {caught.value}"


def tags(data: bytes) -> dict[int, tuple[int, int, int]]:
    """Type, number of values and the first four bytes, by tag, of the first directory."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return {tag.number: (tag.kind, tag.values, tag.begin) for tag in directory(data, at, order, big)}


def made(given: Mapping[int, Any], order: str = "<", big: bool = False, after: bytes = bytes(8)) -> bytes:
    """A TIFF of GREY_8 and other tags, whose values are lists of 16-bit numbers or (type, bytes)."""
    entries, values = [], b""
    start = (16 if big else 8) + 64
    every = {**{tag: [value] for tag, value in GREY_8.items()}, 273: [16 if big else 8], **given}
    number, inline = ("Q", 8) if big else ("I", 4)
    at = start + (8 if big else 2) + len(every) * (4 + 2 * inline) + len(after)
    for tag, value in sorted(every.items()):
        kind, body = (3, struct.pack(f"{order}{len(value)}H", *value)) if isinstance(value, list) else value
        count = len(body) // {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}[kind]
        place = struct.pack(order + number, at + len(values)) if len(body) > inline else body.ljust(inline, b"\0")
        values += body if len(body) > inline else b""
        entries.append(struct.pack(f"{order}HH{number}", tag, kind, count) + place)
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start))
    return (
        head + bytes(64) + struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries) + after + values
    )


# --- tags


def test_the_tags_that_make_the_pixels_are_kept_and_no_others() -> None:
    numbers = [*range(254, 900), *range(32_000, 35_000), JPEG_XR, JPEG_XR + 1, 50_000]
    kept = {number for number in numbers if number in tags(tiffs.tiff(made({number: [1]})).data)}
    named = {number for number in numbers if TiffTags.lookup(number).name in KEPT}
    assert kept - {700} == (named | {JPEG_XR, 519, 520, 521, 347}) - {700}
    assert {519, 520, 521} == {519, 520, 521} & kept


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_directory_is_written_anew_in_its_place(order: str, big: bool) -> None:
    data = made({270: (2, b"a description\0"), 34675: (7, b"a profile"), 700: (1, b"XMP packet"), 274: [6]}, order, big)
    found = tiffs.tiff(data)
    assert len(found.data) == len(data) and found.icc == b"a profile" and found.exif is None and found.xmp is None
    assert tags(found.data).keys() == {*GREY_8, 700, 274}
    start = (16 if big else 8) + 64
    assert found.data[:start] == data[:start]
    end = start + (8 if big else 2) + len(tags(found.data)) * (20 if big else 12)
    assert found.data[end : end + (8 if big else 4)] == bytes(8 if big else 4)  # there is no other directory
    assert found.data[end + (8 if big else 4) :] == data[end + (8 if big else 4) :]
    before = tags(data)
    for number, (kind, values, begin) in tags(found.data).items():
        size = values * {1: 1, 3: 2}[kind]
        there = before[number][2]
        assert found.data[begin : begin + size] == data[there : there + size], number


def test_the_xmp_says_how_a_picture_is_turned_where_no_tag_does() -> None:
    for kind, expected in ((1, b"XMP packet"), (7, b"XMP packet"), (2, None), (3, None)):
        found = tiffs.tiff(made({700: (kind, b"XMP packet"), 34675: (kind, b"XMP packet")}))
        assert (found.xmp, found.icc) == (expected, expected)
        assert (700 in tags(found.data)) == (expected is not None)
    assert tiffs.tiff(made({700: (1, b"XMP packet"), 274: [3]})).xmp is None
    cut = made({700: (1, b"XMP packet")})
    assert tiffs.tiff(cut).xmp and tiffs.tiff(cut[:-1]).xmp is None
    cut = made({34675: (7, b"a profile")})
    assert tiffs.tiff(cut).icc and tiffs.tiff(cut[:-1]).icc is None


def test_values_that_are_not_there_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made({273: [8, 9, 10]})
    assert tiffs.tiff(data) and refused(data[:-1]).startswith("truncated")
    monkeypatch.setattr(tiffs, "MAX_PARTS", 3)
    assert tiffs.tiff(data)
    assert refused(made({273: [8, 9, 10, 11]})).startswith("too_large")
    assert tiffs.tiff(made({700: (1, b"long XMP")})).xmp == b"long XMP"


def test_tiles_are_not_larger_than_a_picture_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiffs, "MAX_PIXELS", 24)
    for side, other in ((6, 4), (4, 6)):
        assert tiffs.tiff(made({322: [side], 323: [other], 324: [8], 325: [64]}))
    assert refused(made({322: [5], 323: [5]})) == "too_large: Tiles of 5×5 pixels are more than the limit of 24."
    assert tiffs.tiff(made({322: [25]})) and tiffs.tiff(made({323: [25]}))


# --- pages


def pages(*kinds: Mapping[int, Any]) -> tuple[bytes, list[int]]:
    """Directories one after the other, told apart by their widths 1, 2, …; and where each begins."""
    data, places = bytearray(b"II*\0" + bytes(4)), []
    at = 4
    for width, kind in enumerate(kinds, start=1):
        struct.pack_into("<I", data, at, len(data))
        places.append(len(data))
        every = sorted({**{tag: [value] for tag, value in GREY_8.items()}, 256: [width], **kind}.items())
        body = b"".join(struct.pack("<HHI4s", tag, 3, len(v), struct.pack(f"<{len(v)}H", *v)) for tag, v in every)
        data += struct.pack("<H", len(every)) + body + bytes(4)
        at = len(data) - 4
    return bytes(data), places


def width(data: bytes) -> int:
    found = tiffs.tiff(data).data
    return int(struct.unpack_from("<H", found, tags(found)[256][2])[0])


WHOLE: dict[int, Any] = {}
REDUCED, PAGE, MASK, OLD_REDUCED, OLD_WHOLE = {254: [1]}, {254: [2]}, {254: [4]}, {255: [2]}, {255: [1]}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((WHOLE, WHOLE), 1), ((REDUCED, WHOLE), 2), ((MASK, WHOLE, WHOLE), 2), ((OLD_REDUCED, WHOLE), 2),
        ((PAGE, WHOLE), 1), ((OLD_WHOLE, WHOLE), 1), (({255: [3]}, WHOLE), 1), (({254: [3]}, WHOLE), 2),
        (({254: [5]}, MASK, PAGE), 3), ((REDUCED, MASK, OLD_REDUCED), 1), (({254: [8]}, WHOLE), 1),
        ((REDUCED | OLD_WHOLE, WHOLE), 2), ((REDUCED,), 1),
    ],
)  # fmt: skip
def test_the_first_page_that_is_not_marked_as_less(kinds: tuple[Mapping[int, Any], ...], expected: int) -> None:
    assert width(pages(*kinds)[0]) == expected


def test_pages_in_a_page_come_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    data, places = pages(REDUCED | {330: [0]}, WHOLE, REDUCED, WHOLE)
    at = places[0] + 2 + 12 * (len(GREY_8) + 1) + 8  # the value of the SubIFDs' tag
    for inner, expected in ((3, 4), (2, 2), (1, 2)):
        linked = bytearray(data)
        struct.pack_into("<H", linked, at, places[inner])
        if inner == 3:
            linked[places[1] - 4 : places[1]] = bytes(4)  # and there is no next
        if inner == 2:
            struct.pack_into("<I", linked, places[3] - 4, 0)
        assert width(bytes(linked)) == expected, inner
    unlinked = bytearray(data)
    struct.pack_into("<I", unlinked, places[1] - 4, 3)  # within the header: no directory
    assert width(bytes(unlinked)) == 1
    struct.pack_into("<I", unlinked, places[1] - 4, places[0])  # a circle
    assert width(bytes(unlinked)) == 1


def test_of_very_many_pages_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert width(pages(*[REDUCED] * 63, WHOLE)[0]) == 64
    assert width(pages(*[REDUCED] * 64, WHOLE)[0]) == 1
    entries = len(GREY_8) + 1
    for most, word in ((2 * entries - 1, ""), (2 * entries - 2, "too_large")):
        monkeypatch.setattr(tiffs, "MAX_PARTS", most)
        data, _ = pages(REDUCED, WHOLE)
        assert refused(data).startswith(word) if word else width(data) == 2, most


def test_a_page_after_the_first_is_written_where_it_lies() -> None:
    data, places = pages(REDUCED, WHOLE)
    found = tiffs.tiff(data).data
    assert struct.unpack_from("<I", found, 4) == (places[1],) and len(found) == len(data)
    assert found[8 : places[1]] == data[8 : places[1]] and found[:4] == data[:4]
    for order, big, header in (
        ("<", False, b"II*\0" + (77).to_bytes(4, "little")),
        (">", False, b"MM\0*" + (77).to_bytes(4, "big")),
        ("<", True, b"II+\0\x08\0\0\0" + (77).to_bytes(8, "little")),
    ):
        assert tiffs._header(order, big, 77) == header


# --- what the samples are


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        *(({258: [16], 281: [2**n - 1]}, n) for n in range(9, 16)),
        ({258: [16], 281: [255]}, 16),
        ({258: [16], 281: [65535]}, 16),
        ({258: [16], 281: [4000]}, 16),
        ({258: [16]}, 16),
        ({258: [8], 281: [1023]}, 16),
        ({258: [16] * 3, 277: [3], 262: [2], 281: [1023] * 3}, 10),
        ({258: [16] * 3, 277: [3], 262: [2], 281: [1023, 1023, 511]}, 16),
        ({258: [16, 16, 8], 277: [3], 262: [2], 281: [1023] * 3}, 16),
        ({258: [16], 281: [1023], 339: [1]}, 10),
        ({258: [16], 281: [1023], 339: [2]}, 16),
    ],
)
def test_a_largest_value_says_how_many_bits_are_used(given: dict[int, list[int]], bits: int) -> None:
    assert tiffs.tiff(made(given)).bits == bits


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_zero_is_white_in_many_bits_is_told_and_written_as_black(order: str, big: bool) -> None:
    for photometric, bits, inverted in ((0, 16, True), (0, 9, True), (0, 8, False), (1, 16, False)):
        found = tiffs.tiff(made({262: [photometric], 258: [bits]}, order, big))
        kind, values, begin = tags(found.data)[262]
        assert found.inverted is inverted and (kind, values) == (3, 1)
        assert struct.unpack_from(order + "H", found.data, begin)[0] == (1 if inverted else photometric)


PHOTOMETRICS = {
    **{0: "grey, zero is white", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "inks", 6: "YCbCr", 8: "CIELab"},
    **{9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv", 32803: "a camera's raw mosaic"},
    **{34892: "a camera's raw samples", 7: "photometric 7"},
}
FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "of an unknown format", 5: "complex", 6: "complex"}


def test_the_kind_of_samples_in_words() -> None:
    def kind(**given: list[int]) -> str:
        numbers = {"bits": 258, "samples": 277, "photometric": 262, "format": 339, "extra": 338, "planar": 284}
        told = tiffs.tiff(made({numbers[name]: value for name, value in given.items()})).kind
        start, end = "A TIFF of samples of this kind (", ")"
        assert told.startswith(start) and told.endswith(end)
        return told[len(start) : -len(end)]

    for number, word in PHOTOMETRICS.items():
        assert kind(photometric=[number]) == f"1 × 8 bits, unsigned, {word}"
    for number, word in FORMATS.items():
        assert kind(format=[number]) == f"1 × 8 bits, {word}, grey"
    assert kind(bits=[16, 8, 16], samples=[3], photometric=[2]) == "3 × 8/16 bits, unsigned, RGB"
    assert kind(extra=[2], bits=[8, 8], samples=[2]) == "2 × 8 bits, unsigned, grey, with extra samples or alpha"
    assert kind(planar=[2], bits=[8] * 3, samples=[3], photometric=[2]) == "3 × 8 bits, unsigned, RGB, planar"
    assert kind(planar=[1]) == "1 × 8 bits, unsigned, grey"
    first = kind(bits=[8, 16], samples=[1, 3], photometric=[1, 2], format=[1, 2])
    assert first == "1 × 8/16 bits, unsigned, grey"  # of more values than there are to be, the first counts
    assert tiffs.tiff(made({259: [5, 1234]}))
    bare = made(dict.fromkeys((258, 262, 277, 339), (2, b"x\x00")))  # texts say nothing
    assert tiffs.tiff(bare).kind.endswith("(1 × 1 bits, unsigned, grey, zero is white)")


# --- refused by name

READ = {*range(1, 9), 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000}
NAMED = {
    **{34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG of a DNG", 34933: "PNG", 34934: "JPEG XR"},
    **{22610: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 34661: "JBIG"},
}


def test_compressions_that_are_not_read_are_called_by_their_names() -> None:
    assert tiffs.tiff(made({259: [0]}))
    near = {number + step for number in READ | NAMED.keys() for step in (-1, 0, 1)}
    for number in sorted(near - {0}):
        if number in READ:
            assert tiffs.tiff(made({259: [number]})), number
        else:
            name = NAMED.get(number, "unknown to penult")
            assert refused(made({259: [number]})) == (
                f"unsupported: TIFF compression {number} ({name}) is not supported: convert it to Deflate or LZW."
            )


PLANES, ALPHA, OTHER = {284: [2]}, 2, 0
SIXTEEN = {258: [16] * 4, 277: [4], 262: [2], 281: [1023] * 4}


@pytest.mark.parametrize(
    ("given", "sound"),
    [
        *(({258: [8] * 2, 277: [2], 262: [kind], 338: [ALPHA], **PLANES}, False) for kind in (0, 1, 3)),
        ({258: [8] * 4, 277: [4], 262: [2], 338: [ALPHA], **PLANES}, True),
        ({258: [8] * 2, 277: [2], 262: [1], 338: [OTHER], **PLANES}, True),
        ({258: [8] * 2, 277: [2], 262: [1], 338: [ALPHA]}, True),
        ({258: [8], 277: [4], 262: [2], 338: [ALPHA], **PLANES}, False),
        ({258: [8], 277: [4], 262: [2], 338: [ALPHA]}, True),
        ({258: [8], 277: [4], 262: [2], **PLANES}, True),
        ({258: [8] * 3, 277: [3], 262: [6]}, True),
        ({258: [8] * 4, 277: [4], 262: [6]}, False),
        ({258: [8] * 4, 277: [4], 262: [5], 332: [2]}, False),
        ({258: [8] * 4, 277: [4], 262: [5], 332: [1]}, True),
        ({258: [8] * 4, 277: [4], 262: [2], 332: [2]}, True),
        (SIXTEEN | PLANES, False),
        (SIXTEEN | {338: [1]}, False),
        (SIXTEEN | {338: [2]}, True),
        (SIXTEEN, True),
        (SIXTEEN | {281: [65535] * 4} | PLANES, True),
        ({258: [16], 281: [1023], **PLANES}, True),
    ],
)
def test_samples_that_would_be_decoded_wrong_are_refused(given: dict[int, list[int]], sound: bool) -> None:
    data = made(given)
    if sound:
        assert tiffs.tiff(data)
    else:
        kind = tiffs._kind({tag: tuple(value) for tag, value in given.items()})
        end = "is not supported: convert it to grey or RGB of 8 bits, without planes."
        assert refused(data) == f"unsupported: {kind} {end}"


def test_a_directory_may_be_anywhere() -> None:
    """At byte 43, say, whose number is the mark of a BigTIFF."""
    data, _ = pages(WHOLE, WHOLE)
    for at in (9, 42, 43, 100):
        moved = data[:4] + struct.pack("<I", at) + bytes(at - 8) + data[8:]
        assert width(moved) == 1


def test_big_endian_bigtiff_is_refused() -> None:
    said = "unsupported: Big-endian BigTIFF is not supported: convert it to a plain TIFF."
    assert refused(made({}, ">", big=True)) == said
    assert tiffs.tiff(tiff({}, order=">"))
