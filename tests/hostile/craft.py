"""Image files made byte by byte: valid ones of every kind, and the means to make odd ones of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = SIZE = 96, 64


@lru_cache
def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth, colourful, and different in every corner, so that any turn of it shows."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    planes = (255 * x, 255 * y, 85 * (x * y + np.sin(9 * x) * np.cos(5 * y) + 1))
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """Save to bytes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@lru_cache
def seeds() -> dict[str, bytes]:
    """A small valid file of every format and of its main kinds, by a name that ends in its extension."""
    rgb, grey = scene(), scene().convert("L")
    frames = {"save_all": True, "append_images": [rgb.rotate(180)]}
    alpha = rgb.copy()
    alpha.putalpha(grey)
    return {
        "plain.jpg": encode(rgb, "JPEG", quality=95),
        "progressive.jpg": encode(rgb, "JPEG", quality=95, progressive=True),
        "grey.jpg": encode(grey, "JPEG"),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "restarts.jpg": encode(rgb, "JPEG", restart_marker_rows=1, subsampling=0),
        "plain.png": encode(rgb, "PNG"),
        "palette.png": encode(rgb.quantize(32), "PNG", transparency=bytes(range(0, 256, 8))),
        "deep.png": encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
        "animated.png": encode(rgb, "PNG", **frames),
        "interlaced.png": interlaced_png(rgb),
        "plain.webp": encode(rgb, "WEBP"),
        "lossless.webp": encode(alpha, "WEBP", lossless=True),
        "animated.webp": encode(rgb, "WEBP", lossless=True, **frames),
        "plain.gif": encode(rgb.quantize(64), "GIF"),
        "animated.gif": encode(rgb, "GIF", **frames),
        "plain.bmp": encode(rgb, "BMP"),
        "runs.bmp": bmp(SIZE, 8, b"\x40\1\x20\2\0\0" * HEIGHT + b"\0\1", compression=1),
        "plain.tif": encode(rgb, "TIFF"),
        "lzw.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(alpha, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(rgb, "TIFF", compression="jpeg", quality=95),
        "fax.tif": encode(rgb.convert("1"), "TIFF", compression="group4"),
        "float.tif": encode(Image.fromarray(np.asarray(grey) / np.float32(255)), "TIFF"),
        "big.tif": encode(rgb, "TIFF", big_tiff=True),
    }


def patched(data: bytes, at: int, value: bytes) -> bytes:
    """Some bytes overwritten."""
    return data[:at] + value + data[at + len(value) :]


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(size: tuple[int, int], depth: int, colour: int, *chunks: bytes, interlace: int = 0) -> bytes:
    """A PNG of a header, the chunks and an end."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND")


def zeros(count: int) -> bytes:
    """So many zeros, deflated."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(min(2**22, count - at))) for at in range(0, count, 2**22)]
    return b"".join(parts) + deflate.flush()


def flat_png(size: tuple[int, int], depth: int = 8, colour: int = 0, *chunks: bytes) -> bytes:
    """A black, or clear, PNG."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = size[1] * (1 + -(-size[0] * samples * depth // 8))
    return png(size, depth, colour, *chunks, chunk(b"IDAT", zeros(rows)))


def interlaced_png(image: Image.Image) -> bytes:
    """Adam7, which Pillow does not write."""
    pixels, data = np.asarray(image), b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        data += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx])
    return png(image.size, 8, 2, chunk(b"IDAT", zlib.compress(data)), interlace=1)


def with_chunks(*chunks: bytes) -> bytes:
    """The plain PNG with chunks after its header."""
    data = seeds()["plain.png"]
    return data[:33] + b"".join(chunks) + data[33:]


def segment(marker: int, body: bytes = b"") -> bytes:
    """A JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(*segments: bytes, name: str = "plain.jpg") -> bytes:
    """A JPEG with segments after its first marker."""
    data = seeds()[name]
    return data[:2] + b"".join(segments) + data[2:]


def with_frame(at: int, value: bytes) -> bytes:
    """The plain JPEG with bytes of its frame header changed: precision, height, width, components …"""
    data = seeds()["plain.jpg"]
    return patched(data, data.index(b"\xff\xc0") + 4 + at, value)


def without(data: bytes, kind: int) -> bytes:
    """A JPEG without its segments of a kind."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        kept += data[at:end] if data[at + 1] != kind else b""
        at = end
    return kept + data[at:]


def more_scans(count: int, size: tuple[int, int]) -> bytes:
    """A grey progressive JPEG whose last scan, of a few bytes, comes so many times."""
    data = encode(Image.new("L", size), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]


def frame_of(data: bytes) -> int:
    """Where a GIF's first frame begins."""
    return data.index(b",", 13 + (3 << (data[10] & 7) + 1))


def gif_with(extensions: bytes) -> bytes:
    """The plain GIF with extensions before its first frame."""
    data = seeds()["plain.gif"]
    return data[: frame_of(data)] + extensions + data[frame_of(data) :]


def bmp(
    size: tuple[int, int], bits: int, pixels: bytes, compression: int = 0, header: int = 40, more: bytes = b""
) -> bytes:
    """A BMP; with 8 bits or fewer its palette is of reds."""
    width, height = size
    if header == 12:
        info, step = struct.pack("<IHHHH", 12, width, height, 1, bits), 3
    else:
        info, step = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0), 4
        info = struct.pack("<I", header) + info[4:] + more + bytes(max(0, header - 40 - len(more)))
    palette = b"".join(bytes((0, 0, level)).ljust(step, b"\0") for level in range(2**bits)) if bits <= 8 else b""
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + info + palette + pixels


TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}
GREY_8 = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}  # 8 by 8, one strip at byte 8


def tiff(
    tags: Mapping[int, Any],
    data: bytes = bytes(64),
    order: str = "<",
) -> bytes:
    """A TIFF of GREY_8 and other tags; data is at byte 8.

    A tag is a number, or a type and its values, or a type, a count and an offset that need not be true.
    """
    data += bytes(len(data) % 2)
    entries, values = b"", b""
    tags = {**GREY_8, **tags}
    at = 8 + len(data)
    values_at = at + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        if isinstance(value, int):
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
            continue
        kind, count, place = value if len(value) == 3 else (value[0], len(value[1]), 0)
        if len(value) == 2:
            packed = struct.pack(f"{order}{count}{TIFF_TYPES[kind]}", *value[1])
            if len(packed) <= 4:
                entries += struct.pack(order + "HHI4s", tag, kind, count, packed)
                continue
            place = values_at + len(values)
            values += packed
        entries += struct.pack(order + "HHII", tag, kind, count, place)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return (
        mark + struct.pack(order + "I", at) + data + struct.pack(order + "H", len(tags)) + entries + bytes(4) + values
    )


def exif(number: int, *more: bytes) -> bytes:
    """EXIF with an orientation, and more entries."""
    entries = [struct.pack("<HHII", 0x112, 3, 1, number), *more]
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of chunks."""
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def flat_webp(size: tuple[int, int]) -> bytes:
    """A lossless WebP of one colour: no bits a pixel, so its size can be anything."""
    data = encode(Image.new("RGB", (16, 16), "red"), "WEBP", lossless=True)
    at = data.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", data, at)
    return patched(data, at, struct.pack("<I", bits >> 28 << 28 | size[1] - 1 << 14 | size[0] - 1))


def in_canvas(*chunks: tuple[bytes, bytes]) -> bytes:
    """The lossless WebP in the extended form, and chunks after its frame."""
    data = seeds()["lossless.webp"]
    at = data.index(b"VP8L")
    frame = (b"VP8L", data[at + 8 : at + 8 + struct.unpack_from("<I", data, at + 4)[0]])
    canvas = struct.pack("<I", 0x10) + (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    return riff((b"VP8X", canvas), frame, *chunks)
