"""What the walkers keep of a file, take out of it and refuse, byte by byte."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator

import pytest

from featurestore.errors import ImageError
from hostile.craft import bmp, chunk, exif, patched, png, seeds, segment
from pipelines.images import containers
from pipelines.images.containers import Container, directory, integer, is_linear, orientation

TURNED = exif(6)[6:]  # a directory whose orientation is 6
XMP = b'<x tiff:Orientation="3"/>'


def refused(walk: Callable[[bytes], object], data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        walk(data)
    return f"{caught.value.error_type}: {caught.value}"


def cuts(walk: Callable[[bytes], object], data: bytes, whole: int) -> None:
    """Cut before ``whole`` bytes the file is "truncated", from there on it is not."""
    for length in range(8, whole):
        assert refused(walk, data[:length]) == "truncated: The image is shorter than its header says.", length
    for length in range(whole, len(data) + 1):
        walk(data[:length])


# --- PNG

IDAT = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
PALETTE = chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", b"\7")


def small(*chunks: bytes) -> bytes:
    return png((8, 8), 8, 0, *chunks, IDAT)


def text(key: bytes, value: bytes) -> bytes:
    return chunk(b"tEXt", key + b"\0" + value)


def deflated(key: bytes, value: bytes) -> bytes:
    return chunk(b"zTXt", key + b"\0\0" + zlib.compress(value))


def international(key: bytes, value: bytes, packed: bool) -> bytes:
    body = zlib.compress(value) if packed else value
    return chunk(b"iTXt", key + b"\0" + bytes([packed, 0]) + b"en\0Schl\xc3\xbcssel\0" + body)


def raw_profile(data: bytes) -> bytes:
    """As ImageMagick writes it: lines of 36 bytes in hexadecimal, after a line of the name and one of the length."""
    digits = data.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return b"\nexif\n%8d\n" % len(data) + lines.encode() + b"\n"


def test_a_png_keeps_the_chunks_that_make_its_pixels() -> None:
    dropped = [
        chunk(b"gAMA", b"\0\0\xb1\x8f"),
        text(b"Comment", b"x"),
        chunk(b"prVt", b"secret"),
        chunk(b"acTL", bytes(8)),
    ]
    found = containers.png(small(dropped[0], *PALETTE, *dropped[1:]) + b"trailing")
    assert found == Container(small(*PALETTE)) and found.bits == 16


@pytest.mark.parametrize(("said", "bits"), [(b"\5", 5), (b"\5\7\6", 7), (b"", 16), (b"\x0c\1", 12)])
def test_a_png_says_how_many_bits_it_uses(said: bytes, bits: int) -> None:
    assert containers.png(small(chunk(b"sBIT", said))).bits == bits


@pytest.mark.parametrize(
    ("chunks", "exif", "xmp", "icc"),
    [
        ([chunk(b"eXIf", TURNED)], TURNED, None, None),
        ([text(b"Raw profile type exif", raw_profile(TURNED))], TURNED, None, None),
        ([deflated(b"Raw profile type exif", raw_profile(TURNED * 3))], TURNED * 3, None, None),
        ([text(b"Raw profile type exif", b"\nexif\n  4\nnot hexadecimal\n")], None, None, None),
        ([text(b"Raw profile type exif", b"\nexif\n")], b"", None, None),
        ([text(b"exif", b"in a text")], b"in a text", None, None),
        ([deflated(b"Raw profile type exif", raw_profile(b"old")), chunk(b"eXIf", b"new")], b"new", None, None),
        ([chunk(b"eXIf", b"first"), chunk(b"eXIf", b"second")], b"second", None, None),
        ([international(b"XML:com.adobe.xmp", XMP, packed=False)], None, XMP, None),
        ([international(b"XML:com.adobe.xmp", XMP, packed=True)], None, XMP, None),
        ([text(b"XML:com.adobe.xmp", XMP)], None, XMP, None),
        ([text(b"XML:com.adobe.xmp.", XMP), text(b"xml:com.adobe.xmp", XMP)], None, None, None),
        ([chunk(b"iCCP", b"a name\0\0" + zlib.compress(b"profile"))], None, None, b"profile"),
        ([chunk(b"iCCP", b"a name\0\0not deflated")], None, None, None),
        ([chunk(b"iCCP", b"no end")], None, None, b""),
        ([chunk(b"tEXt", b"XML:com.adobe.xmp")], None, b"", None),
        ([chunk(b"eXIf", TURNED), text(b"XML:com.adobe.xmp", XMP), chunk(b"iCCP", b"\0\0" + zlib.compress(b"p"))],
         TURNED, XMP, b"p"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_a_png_gives_its_metadata(
    chunks: list[bytes], exif: bytes | None, xmp: bytes | None, icc: bytes | None
) -> None:
    assert containers.png(small(*chunks)) == Container(small(), exif, xmp, icc)


def test_a_text_that_inflates_to_more_than_a_real_one_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_TEXT_BYTES", 1000)
    for count in (1000, 1001):
        found = containers.png(small(deflated(b"XML:com.adobe.xmp", bytes(count))))
        assert found.xmp == (bytes(1000) if count == 1000 else None)


def test_a_png_is_cut_a_damaged_or_of_too_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small(*PALETTE)
    cuts(containers.png, data, len(data) - 4)  # the end's own checksum holds no pixels
    at = data.index(b"PLTE") - 4
    for place in (at + 4, at + 8, at + 11, at + 14):
        assert refused(containers.png, patched(data, place, bytes([data[place] ^ 1]))) == (
            f"corrupt: The checksum of the PNG chunk at byte {at:,} is wrong."
        )
    monkeypatch.setattr(containers, "MAX_PARTS", 5)
    assert containers.png(data).data == data
    assert refused(containers.png, small(*PALETTE, text(b"a", b""))) == (
        "too_large: The image comes in more than 5 parts."
    )
    apple = "Apple's kind of PNG (CgBI) is not supported: pngcrush -revert-iphone-optimizations converts it."
    assert refused(containers.png, small(chunk(b"CgBI", bytes(4)))) == f"unsupported: {apple}"


# --- JPEG


def parts(data: bytes) -> Iterator[tuple[int, int]]:
    """The segments of a JPEG before its first scan: where each begins and ends."""
    at = 2
    while data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield at, end
        at = end


def test_a_jpeg_loses_comments_and_application_segments_before_its_scan() -> None:
    data = seeds()["cmyk.jpg"]  # with APP14, which says what the colours are
    assert b"Adobe" in data
    inserted = [
        segment(0xFE, b"comment"),
        *(segment(marker, b"x" * 9) for marker in range(0xE1, 0xF0) if marker != 0xEE),
    ]
    at = [begin for begin, _ in parts(data)]
    found = containers.jpeg(
        data[: at[1]] + b"".join(inserted[:5]) + data[at[1] : at[3]] + b"".join(inserted[5:]) + data[at[3] :]
    )
    assert found == Container(data)
    kept = segment(0xE0, b"JFIF\0") + segment(0xEE, b"Adobe")
    assert containers.jpeg(data[:2] + kept + data[2:]).data == data[:2] + kept + data[2:]
    after = data[:-2] + segment(0xFE, b"comment") + data[-2:]
    assert containers.jpeg(after).data == after


def test_a_jpeg_gives_its_metadata() -> None:
    data = seeds()["plain.jpg"]
    name = b"http://ns.adobe.com/xap/1.0/\0"
    profile = b"ICC_PROFILE\0"
    segments = [
        segment(0xE1, b"Exif\0\0" + TURNED[:5]),
        segment(0xE1, name + XMP),
        segment(0xE2, profile + b"\1\2first"),
        segment(0xE2, profile + b"\2\2second"),
        segment(0xE1, b"Exif\0\0" + TURNED[5:]),
        segment(0xE1, b"Exif\1\0wrong"),
        segment(0xE2, name + b"wrong"),
        segment(0xE3, b"Exif\0\0wrong"),
    ]
    found = containers.jpeg(data[:2] + b"".join(segments) + data[2:])
    assert found == Container(data, TURNED, XMP, b"first")


def frame(width: int, height: int, marker: int = 0xC2, cut: int | None = None) -> bytes:
    return segment(marker, (struct.pack(">BHH", 8, height, width) + b"\1\1\x11\0")[:cut])


SCAN = segment(0xDA, b"\1\1\0\0\x3f\0") + b"pixels"
START, END = b"\xff\xd8", b"\xff\xd9"


def test_a_jpeg_of_too_many_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_SCAN_PIXELS", 60)
    for count in range(1, 5):
        data = START + frame(5, 4) + SCAN * count + END + SCAN * 9
        if count < 4:
            assert containers.jpeg(data) == Container(data)
        else:
            assert refused(containers.jpeg, data) == (
                "too_large: 20 pixels in 4 scans or more take too long to decode."
            )
    cut = START + frame(5, 4) + SCAN + b"\xff\xda" * 9  # which are none: their segments end beyond the file
    assert containers.jpeg(cut + b"\xff\xda\xff").data == cut + b"\xff\xda\xff"


def test_the_size_of_a_jpeg_is_in_a_whole_frame_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_SCAN_PIXELS", 0)
    for cut in range(5):
        containers.jpeg(START + frame(5, 4, cut=cut) + SCAN + END)
    for cut in (5, 6, None):
        assert refused(containers.jpeg, START + frame(5, 4, cut=cut) + SCAN + END).startswith(
            "too_large: 20 pixels in 1 "
        )
    for marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA):
        assert refused(containers.jpeg, START + frame(5, 4, marker) + SCAN + END).startswith("too_large")
    for marker in (0xC4, 0xCC, 0xDB):  # tables
        containers.jpeg(START + frame(5, 4, marker) + SCAN + END)


def test_a_jpeg_of_many_segments_after_its_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_SCAN_PIXELS", 0)
    monkeypatch.setattr(containers, "MAX_PARTS", 4)
    monkeypatch.setattr(containers, "_check_scans", lambda data, at, pixels: None)
    head = START + frame(5, 4)
    assert containers.jpeg(head + segment(0xFE) * 2 + SCAN + END)
    assert refused(containers.jpeg, head + segment(0xFE) * 3 + SCAN + END).startswith("too_large: The image comes in")
    monkeypatch.undo()
    monkeypatch.setattr(containers, "MAX_PARTS", 4)
    containers._check_scans(segment(0xFE) * 3 + END, 0, 1)
    assert refused(lambda data: containers._check_scans(data, 0, 1), segment(0xFE) * 4 + END).startswith("too_large")


def test_jpegs_of_other_kinds_are_called_by_their_names() -> None:
    said = "JPEG-LS is not supported: convert it to PNG, which is lossless too."
    data = START + segment(0xF7, b"\x08\0\4\0\5\1\1\x11\0") + SCAN + END
    assert refused(containers.jpeg, data.replace(b"\xff\xf7\0\x0b", b"\xff\xf7")) == f"unsupported: {said}"
    containers.jpeg(START + b"\xff\xf7" + frame(5, 4) + SCAN + END)
    for marker in range(0xC0, 0xD0):
        data = START + frame(5, 4, marker) + SCAN + END
        if marker in (0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF):
            said = f"JPEG process SOF{marker - 192} is not supported: save it as a baseline JPEG."
            assert refused(containers.jpeg, data) == f"unsupported: {said}"
        else:
            containers.jpeg(data)


def test_a_jpeg_is_cut_before_the_end_of_its_first_scans_header() -> None:
    data = START + frame(5, 4) + segment(0xE1, b"Exif\0\0x") + SCAN + END
    for length in range(3, data.index(b"pixels")):
        assert refused(containers.jpeg, data[:length]).startswith("truncated"), length
    assert containers.jpeg(data[: data.index(b"pixels")])


@pytest.mark.parametrize("length", [0, 1, 2])
def test_the_length_of_a_segment_counts_itself(length: int) -> None:
    odd = b"\xff\xe1" + struct.pack(">H", length)
    assert containers.jpeg(START + odd + frame(5, 4) + SCAN + END).data == START + frame(5, 4) + SCAN + END


def test_markers_without_a_length_and_bytes_between_segments() -> None:
    """Restarts, stuffed and fill bytes are no segments; a few markers have no body."""
    for odd in (b"\xff\xd0", b"\xff\xd7", b"\xff\0", b"\xff\xff\xff", b"junk", b"\xff\x01", b"\xff\x02", b"\xff\xbf"):
        data = START + odd + frame(5, 4) + SCAN + END
        assert containers.jpeg(data).data == data
    for marker in (*range(0xF0, 0xFE), 0xC8, 0xD8, 0xD9):
        found = containers.jpeg(START + bytes((0xFF, marker)) + segment(0xFE, b"comment") + frame(5, 4) + SCAN + END)
        assert found.data == START + bytes((0xFF, marker)) + frame(5, 4) + SCAN + END, hex(marker)


# --- GIF

SCREEN = b"GIF89a" + struct.pack("<HH", 3, 2)
FRAME = b"," + struct.pack("<HHHHB", 0, 0, 3, 2, 0) + b"\2\2L\1\0;"
CONTROL = b"!\xf9\4\1\0\0\0\0"


@pytest.mark.parametrize("flags", [0, 0x80, 0x81, 0x87, 0x07, 0x91])
def test_a_gif_keeps_its_palette_its_controls_and_its_frames(flags: int) -> None:
    palette = bytes(range(256)) * 3
    head = SCREEN + bytes([flags, 0, 0]) + (palette[: 3 * 2 ** ((flags & 7) + 1)] if flags & 0x80 else b"")
    comment, application = b"!\xfe\3abc\2de\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"
    data = head + comment + CONTROL + b"stray" + application + CONTROL + FRAME + comment
    assert containers.gif(data) == Container(head + CONTROL + CONTROL + FRAME + comment)


def test_a_gif_is_cut_without_a_frame_or_of_too_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SCREEN + bytes(3)
    data = head + b"!\xfe\3abc\0" + CONTROL + FRAME
    cuts(containers.gif, data, data.index(FRAME) + 1)
    assert refused(containers.gif, head + CONTROL + b";" + FRAME) == "corrupt: The GIF ends before its first frame."
    monkeypatch.setattr(containers, "MAX_PARTS", 5)
    for blocks in (b"!\xfe" + b"\1a" * 3 + b"\0", b"abcd", CONTROL * 2):  # four parts each: an extension and its blocks
        assert containers.gif(head + blocks + FRAME)
        assert refused(containers.gif, head + blocks + b"x" + FRAME) == (
            "too_large: The image comes in more than 5 parts."
        )


# --- WebP and BMP


def test_a_webp_is_as_long_as_it_says() -> None:
    data = seeds()["plain.webp"]
    assert containers.webp(data) == Container(data) and containers.webp(data + b"more").data == data + b"more"
    assert refused(containers.webp, data[:-1]).startswith("truncated")


def test_a_run_length_bmp_is_not_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_RUN_LENGTH_PIXELS", 24)
    monkeypatch.setattr(containers, "MAX_RUN_LENGTH_WIDTH", 12)

    def said(size: tuple[int, int], compression: int = 1, pixels: bytes = b"\0\1", header: int = 40) -> str | None:
        data = bmp(size, 8, pixels, compression, header)
        try:
            assert containers.bmp(data) == Container(data)
        except ImageError as error:
            return f"{error.error_type}: {error}"
        return None

    for size in ((3, 2), (6, 4), (6, -4), (-6, 4), (12, 2)):
        for compression in (1, 2):
            assert said(size, compression) is None
    for size in ((5, 5), (13, 1), (5, -5), (-13, 1)):
        text = f"{size[0]}×{abs(size[1])} pixels are more than the limit for a run-length BMP."
        for compression, expected in ((0, None), (1, f"too_large: {text}"), (2, f"too_large: {text}"), (3, None)):
            assert said(size, compression) == expected
    assert said((5, 5), header=124) is not None
    assert containers.bmp(bmp((50, 50), 8, b"", header=12))
    room = 4 * 24 + 2**20 - len(bmp((6, 4), 8, b""))
    assert said((6, -4), pixels=bytes(room)) is None and said((6, -4), 0, bytes(room + 1)) is None
    assert said((6, -4), pixels=bytes(room + 1)) == "corrupt: 1,048,673 bytes are more than 6×4 pixels can take."
    assert said((6, -4), 2, bytes(room + 1)) is not None
    assert refused(containers.bmp, bmp((6, 4), 8, b"")[:33]).startswith("truncated")
    assert refused(containers.bmp, b"BM" + bytes(15)).startswith("truncated")


# --- directories of EXIF and TIFF

# By the number of its type: the name that TIFF 6.0 or BigTIFF gives it, and the bytes of a value.
TYPES = {
    **{1: ("BYTE", 1), 2: ("ASCII", 1), 3: ("SHORT", 2), 4: ("LONG", 4), 5: ("RATIONAL", 8), 6: ("SBYTE", 1)},
    **{7: ("UNDEFINED", 1), 8: ("SSHORT", 2), 9: ("SLONG", 4), 10: ("SRATIONAL", 8), 11: ("FLOAT", 4)},
    **{12: ("DOUBLE", 8), 13: ("IFD", 4), 16: ("LONG8", 8), 18: ("IFD8", 8)},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_the_entries_of_a_directory(order: str, big: bool) -> None:
    number, inline = ("Q", 8) if big else ("I", 4)
    entries = [(100 + kind, kind, count, 1000) for kind in range(20) for count in (0, 1, 2, 3, 8, 9)]
    body = b"".join(struct.pack(f"{order}HH{number}{number}", *entry) for entry in entries)
    data = b"before" + struct.pack(order + ("Q" if big else "H"), len(entries)) + body
    expected, first = [], 6 + (8 if big else 2)
    for index, (tag, kind, count, offset) in enumerate(entries):
        place = first + index * (4 + 2 * inline)
        if kind in TYPES:
            size = count * TYPES[kind][1]
            begin = offset if size > inline else place + 4 + inline
            expected.append((tag, kind, count, place, begin, begin + size))
    assert [tuple(tag) for tag in directory(data, 6, order, big)] == expected
    with pytest.raises(ImageError, match="shorter"):
        list(directory(data[:-1], 6, order, big))
    with pytest.raises(ImageError, match="shorter"):
        list(directory(data[: first - 1], 6, order, big))


def test_a_directory_of_impossibly_many_entries() -> None:
    for count, word in (
        (2**16, "truncated: "),
        (2**16 + 1, "corrupt: The TIFF directory says that it has 65,537 tags."),
    ):
        data = struct.pack("<Q", count) + bytes(100)
        assert refused(lambda data: list(directory(data, 0, "<", big=True)), data).startswith(word)


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_integer_is_one_value_of_a_type_of_integers(order: str) -> None:
    data = bytes(range(0xF0, 0x100))
    name = "little" if order == "<" else "big"
    for kind, (word, size) in TYPES.items():
        if size <= 8:
            tag = containers.Tag(1, kind, 1, 0, 3, 3 + size)
            whole = int.from_bytes(
                data[3 : 3 + size], name, signed=word.startswith("S") and "SHORT LONG".find(word) < 0
            )  # type: ignore[arg-type]
            integers = ("SHORT", "LONG", "SBYTE", "SSHORT", "SLONG", "IFD", "LONG8", "IFD8")
            assert integer(data, tag, order) == (whole if word in integers else 0), word
            assert integer(data, tag._replace(values=2), order) == integer(data, tag._replace(values=0), order) == 0


def test_a_place_beyond_any_memory_is_beyond_the_end() -> None:
    for at in (16, 2**31, 2**63, 2**64, 2**70):
        assert refused(lambda data: containers.unpack("<I", data, at), bytes(19)).startswith("truncated")  # noqa: B023
    assert containers.unpack("<I", bytes(19), 15) == (0,)


# --- how an image is turned


@pytest.mark.parametrize(
    ("exif_says", "xmp_says", "expected"),
    [
        (None, None, 1),
        (TURNED, None, 6),
        (b"Exif\0\0" + TURNED, None, 6),
        (b"Exif\0\0" * 2 + TURNED, None, 6),
        (None, XMP, 3),
        (None, b"<tiff:Orientation>8</tiff:Orientation>", 8),
        (None, b"<tiff:Orientation>x</tiff:Orientation>", 1),
        (None, b"tiff:Orientation='6'", 1),
        (TURNED, XMP, 6),  # EXIF has the last word …
        (exif(1)[6:], XMP, 1),
        (b"garbage", XMP, 1),
        (b"II", XMP, 1),
        (b"", XMP, 3),  # … where there is one
        (b"Exif\0\0", XMP, 3),
        (patched(TURNED, 10, b"\x13"), XMP, 3),
        (patched(TURNED, 14, b"\0"), XMP, 3),  # a tag of no values
        (patched(TURNED, 12, b"\2"), XMP, 0),  # a text
        (TURNED[:12], XMP, 3),  # cut off
        (b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 274, 3, 1, 5, 0), XMP, 5),
        (b"MM*\0" + struct.pack(">IHHHIHH", 8, 1, 274, 3, 1, 5, 0), XMP, 5),
        (b"II+\0" + TURNED[4:], XMP, 1),
    ],
    ids=itertools.count(),
)
def test_exif_and_xmp_say_how_a_picture_is_turned(
    exif_says: bytes | None, xmp_says: bytes | None, expected: int
) -> None:
    assert orientation(exif_says, xmp_says) == expected


# --- profiles


def profile(*curves: tuple[bytes, bytes], tags: int | None = None, first: int = 0) -> bytes:
    """A profile of tags and nothing else; ``first`` other tags come before."""
    count = first + len(curves)
    entries, bodies, at = b"", b"", 132 + 12 * count
    for name, body in [(b"desc", b"")] * first + list(curves):
        entries += struct.pack(">4sII", name, at + len(bodies), len(body))
        bodies += body
    return bytes(128) + struct.pack(">I", count if tags is None else tags) + entries + bodies


def curve(*values: int) -> bytes:
    return b"curv" + bytes(4) + struct.pack(f">I{len(values)}H", len(values), *values)


def power(function: int, gamma: int) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HHI", function, 0, gamma)


STRAIGHT = [65535 * n // 999 for n in range(1000)]
RED, GREEN, BLUE, GREY = b"rTRC", b"gTRC", b"bTRC", b"kTRC"


@pytest.mark.parametrize(
    ("icc", "linear"),
    [
        (profile((GREY, curve())), True),
        (profile((GREY, curve(0x100))), True),
        (profile((GREY, curve(0x101))), False),
        (profile((GREY, curve(0))), False),
        (profile((GREY, curve(0, 65535))), True),
        (profile((GREY, curve(0, 65535 - 255))), True),
        (profile((GREY, curve(0, 65535 - 256))), False),
        (profile((GREY, curve(256, 65535))), False),
        (profile((GREY, curve(*STRAIGHT))), True),
        (profile((GREY, curve(*STRAIGHT[:500], STRAIGHT[500] + 300, *STRAIGHT[501:]))), False),
        (profile((GREY, curve(*STRAIGHT)[:-1])), False),  # cut off
        (profile((GREY, power(0, 0x10000))), True),
        (profile((GREY, power(0, 0x10001))), False),
        (profile((GREY, power(1, 0x10000))), False),
        (profile((GREY, b"mft2" + curve()[4:])), False),
        *((profile((name, curve())), True) for name in (RED, GREEN, BLUE)),
        (profile((b"desc", curve())), False),
        (profile(), False),
        *((profile((RED, curve()), (GREEN, curve()), (BLUE, curve(*last))), not last) for last in ((), (0x233,))),
        (profile((RED, curve(0x233)), (GREEN, curve())), False),
        (profile((GREY, curve()), first=99), True),
        (profile((GREY, curve()), first=100), False),
        (profile((GREY, curve()), tags=0), False),
        (profile((GREY, curve()), tags=2**32 - 1), False),
        (profile((GREY, b"curv" + bytes(4) + struct.pack(">I", 2**16 + 1) + bytes(2**18))), False),
        (bytes(131), False),
    ],
    ids=itertools.count(),
)
def test_linear_light(icc: bytes, linear: bool) -> None:
    assert is_linear(icc) is linear


def test_tables_are_looked_at_up_to_a_size() -> None:
    for count in (2**16, 2**16 + 1):
        icc = profile((GREY, curve(*(65535 * n // (count - 1) for n in range(count)))))
        assert is_linear(icc) == (count == 2**16)
