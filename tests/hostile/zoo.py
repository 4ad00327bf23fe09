"""The zoo: hostile images, names and places, each with the outcome that penult owes it.

``images()`` are contents: decoded, each gives (width, height) or the word of a failure, and the pixels of another
where it says which. ``build`` lays them out in a folder, beside odd names and things that are no files.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from hostile.craft import (
    GREY_8,
    HEIGHT,
    SIZE,
    WIDTH,
    bmp,
    chunk,
    encode,
    exif,
    flat_png,
    flat_webp,
    frame_of,
    gif_with,
    in_canvas,
    more_scans,
    patched,
    png,
    riff,
    scene,
    seeds,
    segment,
    tiff,
    with_chunks,
    with_frame,
    with_segments,
    without,
    zeros,
)

Outcome = tuple[int, int] | str
LARGE = 9400, 9400  # just below the limit of 89,478,485 pixels


class Animal(NamedTuple):
    """An image file, or what makes it, and what decoding it must give."""

    data: bytes | Callable[[], bytes]
    expected: Outcome
    like: str | None = None  # a seed of the same pixels …
    within: float = 0  # … but for so many levels of 255, on average

    def file(self) -> bytes:
        """Its bytes."""
        return self.data if isinstance(self.data, bytes) else self.data()


Kind = Iterator[tuple[Any, ...]]  # a name, and the fields of an Animal


@lru_cache
def pictures() -> dict[str, Animal]:
    """All contents, by file name."""
    kinds = (cut, zeroed, strangers, bombs, extremes, depths, turned, profiles, jpegs, pngs, gifs, bmps, tiffs, webps)
    named = [(name, Animal(*fields)) for kind in kinds for name, *fields in kind()]
    found = dict(named)
    assert len(found) == len(named), "two animals have one name"
    return found


# --- damage


FORMATS = (
    *("plain.jpg", "progressive.jpg", "plain.png", "plain.webp", "lossless.webp"),
    *("plain.gif", "plain.bmp", "plain.tif", "lzw.tif"),
)


def cut(tenths: Sequence[int] = range(1, 10)) -> Kind:
    """Every format, cut at every tenth, and without its last byte."""
    for name in FORMATS:
        for tenth in tenths:
            yield f"cut-{tenth}0-{name}", seeds()[name][: len(seeds()[name]) * tenth // 10], "truncated"
        whole = name in ("plain.png", "plain.gif")  # they have all their pixels and nearly all of an end
        yield f"cut-1-{name}", seeds()[name][:-1], SIZE if whole else "truncated"


def zeroed() -> Kind:
    """Every format, an eighth of it in the middle zeroed. Where nothing sums the pixels, nothing can notice."""
    for name in FORMATS:
        data = seeds()[name]
        begin, count = len(data) * 7 // 16, len(data) // 8
        summed = name.endswith((".jpg", ".png", ".gif")) or name == "lzw.tif"
        yield f"zeroed-{name}", data[:begin] + bytes(count) + data[begin + count :], "corrupt" if summed else SIZE


def zipped() -> bytes:
    """A zip with an image in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.jpg"), seeds()["plain.jpg"])
    return file.getvalue()


def strangers() -> Kind:
    """Things that are no images, or images of other formats, under an image's name."""
    yield "empty.jpg", b"", "empty"
    for name, data in {
        "zero": b"\0",
        "zeros": bytes(1000),
        "text": b"This is not the image you are looking for.\n",
        "html": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
        "json": b'{"error": "not found"}',
        "xml": b"<html xmlns='http://www.w3.org/1999/xhtml'/>",
        "gzip": gzip.compress(b"picture", mtime=0),
        "elf": b"\x7fELF\2\1\1" + bytes(100),
        "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        "tga": bytes((0, 0, 2, *[0] * 9, 8, 0, 8, 0, 24, 0)) + bytes(192),
        "utf16": "\ufeffpicture".encode("utf-16-le"),
        "newline": b"\n" + b"\xff\xd8\xff",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    }.items():
        yield f"stranger-{name}.jpg", data, "not_an_image"
    yield "stranger-zip.jpg", zipped(), "not_an_image"
    for name, data in {
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>",
        "psd": b"8BPS\0\1" + bytes(100),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(100),
        "jxl": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20),
        "qoi": b"qoif\0\0\0\x08\0\0\0\x08\3\0" + bytes(20),
        "exr": b"\x76\x2f\x31\x01\2\0\0\0" + bytes(20),
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n",
    }.items():
        yield f"other-{name}.jpg", data, "unsupported"
    for format in ("JPEG2000", "AVIF", "ICO", "PDF", "EPS", "PPM", "DDS"):
        yield f"other-{format.lower()}.jpg", encode(scene(), format), "unsupported"
    yield "other-j2k.jpg", encode(scene(), "JPEG2000", no_jp2=True), "unsupported"
    for name in FORMATS:
        yield f"magic-{name}", seeds()[name][:8], "not_an_image" if name.endswith(".webp") else "truncated"


def bombs() -> Kind:
    """Little files that ask for a lot. Those that are images of a lawful size are decoded."""
    yield "large-bits.png", partial(flat_png, LARGE, 1), LARGE  # 11 kB → 88 MP
    yield "large-rgba16.png", partial(flat_png, LARGE, 16, 6), LARGE
    clear = chunk(b"sBIT", b"\x0c" * 3) + chunk(b"tRNS", b"\0\1" * 3)
    yield "large-rgb16-clear.png", partial(flat_png, LARGE, 16, 2, clear), LARGE
    colours = chunk(b"PLTE", bytes(range(6))) + chunk(b"tRNS", b"\x80")
    yield "large-palette.png", partial(flat_png, LARGE, 8, 3, colours), LARGE
    yield "bomb-over.png", partial(flat_png, (9460, 9460), 1), "too_large"
    yield "bomb-declared.png", lambda: png((2**31 - 1, 2**31 - 1), 8, 0, chunk(b"IDAT", b"x")), "too_large"
    yield "bomb-tall.png", partial(flat_png, (1, 2**20 + 1)), "too_large"
    yield "bomb-long-data.png", lambda: png((8, 8), 8, 0, chunk(b"IDAT", zeros(2**28))), (8, 8)
    text = zeros(2**28)
    yield "bomb-ztxt.png", lambda: with_chunks(chunk(b"zTXt", b"k\0\0" + text)), SIZE, "plain.png"
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0"
    yield "bomb-xmp.png", lambda: with_chunks(chunk(b"iTXt", xmp + text)), SIZE, "plain.png"
    raw = b"Raw profile type exif\0\0"
    yield "bomb-exif.png", lambda: with_chunks(*[chunk(b"zTXt", raw + text)] * 50), SIZE, "plain.png"
    yield "bomb-iccp.png", lambda: with_chunks(chunk(b"iCCP", b"k\0\0" + text)), SIZE, "plain.png"
    yield "bomb-texts.png", lambda: with_chunks(*[chunk(b"tEXt", b"key\0" + bytes(2**17))] * 600), SIZE, "plain.png"
    yield "bomb-chunks.png", lambda: with_chunks(chunk(b"IDAT") * 2**18), "too_large"
    gif = seeds()["plain.gif"]
    yield "bomb-canvas.gif", patched(gif, 6, b"\xff" * 4), "too_large"
    yield "bomb-frame.gif", patched(gif, frame_of(gif) + 5, b"\xff" * 4), "too_large"
    yield "bomb-comments.gif", lambda: gif_with(b"!\xfe" + b"\1a" * 200_000 + b"\0"), SIZE, "plain.gif"
    yield "bomb-more-comments.gif", lambda: gif_with(b"!\xfe" + b"\1a" * 2**18 + b"\0"), "too_large"
    yield "large-grey.jpg", lambda: encode(Image.new("L", LARGE), "JPEG", progressive=True), LARGE
    yield "bomb-scans.jpg", lambda: more_scans(2000, (8000, 8000)), "too_large"
    yield "bomb-declared.jpg", lambda: with_frame(1, b"\xff" * 4), "too_large"
    yield "bomb-comments.jpg", lambda: with_segments(segment(0xFE) * 200_000), SIZE, "plain.jpg"
    yield "bomb-more-comments.jpg", lambda: with_segments(segment(0xFE) * 2**18), "too_large"
    yield "bomb-exif-parts.jpg", lambda: with_segments(segment(0xE1, b"Exif\0\0x") * 200_000), SIZE, "plain.jpg"
    overlap = [struct.pack("<HHII", 0xC000 + i, 7, 0xC000, 8) for i in range(4000)]
    yield "bomb-exif-tags.jpg", with_segments(segment(0xE1, exif(1, *overlap) + bytes(4000))), SIZE, "plain.jpg"
    tags = {0xA000 + i: (7, 2**20, 8) for i in range(4000)}  # 1 MB → 4 GB
    yield "bomb-tags.tif", lambda: tiff(tags, bytes(2**20)), (8, 8)
    yield "bomb-sub-directory.tif", sub_directory_bomb, (8, 8)
    yield "bomb-pages.tif", pages_bomb, "too_large"
    yield "bomb-strips.tif", lambda: tiff({273: (4, 2**32 - 1, 8)}), "truncated"
    yield "bomb-strip-list.tif", lambda: tiff({273: (4, [8] * (2**18 + 1))}), "too_large"
    yield "bomb-tile.tif", lambda: tiff({322: 2**15, 323: 2**15, 324: 8, 325: 1000, 259: 8}, zeros(2**20)), "too_large"
    yield "bomb-tile-raw.tif", lambda: tiff({322: 2**31, 323: 2**31, 324: 8, 325: 64}), "too_large"
    yield "bomb-rows.tif", lambda: tiff({278: 2**32 - 1}), (8, 8)
    yield "bomb-samples.tif", lambda: tiff({277: 2**31}), "corrupt"
    yield "bomb-size.tif", lambda: tiff({256: 2**32 - 1, 257: 2**32 - 1}), "too_large"
    flat = Image.new("F", LARGE, 0.5)
    yield "large-float.tif", lambda: encode(flat, "TIFF", compression="tiff_adobe_deflate"), LARGE
    yield "bomb-runs.bmp", lambda: bmp((9000, 9000), 8, b"\1\0\0\0" * 9000, compression=1), "too_large"
    yield "bomb-delta.bmp", lambda: bmp((2**22, 1), 8, b"\0\2\0\xff" * 9, compression=1), "too_large"
    yield "bomb-idle.bmp", lambda: bmp((8, 8), 8, bytes(2**21), compression=1), "corrupt"
    yield "bomb-colours.bmp", lambda: patched(bmp((8, 8), 8, bytes(64)), 46, b"\xff" * 4), "unsupported"
    yield "bomb-declared.bmp", lambda: bmp((2**31 - 1, 2**31 - 1), 24, b""), "too_large"
    yield "large-flat.webp", partial(flat_webp, (16383, 5461)), (16383, 5461)
    yield "bomb-over.webp", partial(flat_webp, (16383, 5462)), "too_large"
    yield "bomb-chunks.webp", lambda: in_canvas(*[(b"ABCD", b"")] * 300_000), SIZE, "lossless.webp"


def sub_directory_bomb() -> bytes:
    """A TIFF whose EXIF directory has 4,000 tags of the same megabyte."""
    entries = b"".join(struct.pack("<HHII", 0x9000 + i, 7, 2**20, 8) for i in range(4000))
    blob = bytes(2**20) + struct.pack("<H", 4000) + entries + bytes(4)
    return tiff({34665: 8 + 2**20}, blob)


def pages_bomb() -> bytes:
    """A TIFF of pages that all say that they are reduced, each of as many tags as there can be, one over the other."""
    entries = 65535
    data = bytearray(b"II*\0\x08\0\0\0" + bytes(12 * (entries + 64)))
    for page in range(60):
        at = 8 + 12 * page
        struct.pack_into("<HHHII", data, at, entries, 254, 3, 1, 1)
        struct.pack_into("<I", data, at + 2 + 12 * entries, at + 12)
    return bytes(data)


# --- lawful but odd


def extremes() -> Kind:
    """One pixel, one row, one column."""
    for size in ((1, 1), (1, 60000), (60000, 1), (1, 2), (3, 1)):
        formats = ["PNG", "JPEG", "TIFF", "BMP", "GIF"] + (["WEBP"] if max(size) < 2**14 else [])
        for format in formats:
            name = f"size-{size[0]}x{size[1]}.{format.lower()}"
            yield name, encode(scene(*size), format), size
    for name, size in {"png": (0, 5), "bmp": (5, 0)}.items():
        make = partial(flat_png, size) if name == "png" else partial(bmp, size, 24, b"")
        yield f"size-none.{name}", make, "corrupt"
    yield "size-none.jpg", with_frame(1, b"\0\0"), "corrupt"
    yield "size-none.tif", tiff({256: 0}), "corrupt"
    yield "size-none.gif", patched(seeds()["plain.gif"], 6, b"\0\0"), SIZE, "plain.gif"


def depths() -> Kind:
    """Bits, samples and colours of every kind."""
    rgb, grey = scene(), scene().convert("L")
    values = np.asarray(grey)
    deep = np.asarray(rgb).astype(">u2") * 257
    for name, colour, samples in (
        ("rgb16", 2, deep),
        ("rgba16", 6, np.dstack([deep, np.full_like(deep[..., 0], 65535)])),
    ):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
        yield f"depth-{name}.png", png(SIZE, 16, colour, chunk(b"IDAT", zlib.compress(rows))), SIZE, "plain.png"
    for name in ("palette.png", "interlaced.png", "animated.png", "lossless.webp", "animated.webp", "animated.gif"):
        yield f"depth-{name}", seeds()[name], SIZE
    yield "depth-interlaced-like.png", seeds()["interlaced.png"], SIZE, "plain.png"
    yield "depth-first-frame.png", seeds()["animated.png"], SIZE, "plain.png"
    yield "depth-first-frame.webp", seeds()["animated.webp"], SIZE, "plain.png"
    yield "depth-first-frame.gif", seeds()["animated.gif"], SIZE, "plain.png", 6
    yield "depth-deep.png", seeds()["deep.png"], SIZE, "grey.jpg", 2
    yield "depth-big.tif", seeds()["big.tif"], SIZE, "plain.png"
    yield "depth-motorola.tif", tiff({}, bytes(range(64)), ">"), (8, 8)
    yield "depth-float.tif", seeds()["float.tif"], SIZE, "grey.jpg", 2
    wide = Image.fromarray(values.astype(np.float32) * 1000 - 3e5)
    yield "depth-float-wide.tif", encode(wide, "TIFF"), SIZE
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        broken = values.astype(np.float32).copy()
        broken[3, 3] = value
        yield f"depth-{name}.tif", encode(Image.fromarray(broken), "TIFF"), "unsupported"
    yield "depth-int32.tif", encode(Image.fromarray(values.astype(np.int32) * 257), "TIFF"), SIZE, "grey.jpg", 2
    yield "depth-16.tif", encode(Image.fromarray(values.astype(np.uint16) * 257), "TIFF"), SIZE, "grey.jpg", 2
    for format in ("PNG", "BMP", "TIFF", "GIF"):
        yield f"depth-1.{format.lower()}", encode(rgb.convert("1"), format), SIZE, "fax.tif", 0.5
        yield f"depth-8.{format.lower()}", encode(grey, format), SIZE, "grey.jpg", 2
    for bits in (1, 2, 4):
        yield f"depth-grey{bits}.png", flat_png(SIZE, bits), SIZE
    opaque, clear = grey.copy(), Image.new("LA", SIZE, (0, 0))
    opaque.putalpha(255)
    yield "depth-la.png", encode(opaque, "PNG"), SIZE, "grey.jpg", 2
    yield "depth-clear.png", encode(clear, "PNG"), SIZE
    yield "depth-clear.gif", encode(rgb.quantize(64), "GIF", transparency=3), SIZE
    yield "depth-cmyk-adobe.jpg", seeds()["cmyk.jpg"], SIZE, "plain.png", 6
    yield "depth-cmyk-plain.jpg", without(seeds()["cmyk.jpg"], 0xEE), SIZE, "cmyk.jpg"
    yield "depth-ycck.jpg", patched(seeds()["cmyk.jpg"], seeds()["cmyk.jpg"].index(b"Adobe") + 11, b"\2"), SIZE
    yield "depth-cmyk.tif", encode(rgb.convert("CMYK"), "TIFF"), SIZE, "plain.png", 3
    yield "depth-lab.tif", encode(lab(rgb), "TIFF"), SIZE, "plain.png", 3


def lab(image: Image.Image) -> Image.Image:
    """CIE L*a*b*."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    converted = ImageCms.applyTransform(image, to_lab)
    assert converted is not None
    return converted


UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned() -> Kind:
    """EXIF's eight ways, from the EXIF or from XMP, on the image turned back: all are the upright one."""
    xmp = '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'

    def stored(number: int) -> Image.Image:
        undo = UNDO[number]
        return scene() if undo is None else scene().transpose(undo)

    def save(format: str, number: int, **options: Any) -> bytes:
        return encode(stored(number), format, exif=exif(number)[6:] if format == "PNG" else exif(number), **options)

    for number in UNDO:
        yield f"turned-{number}.jpg", save("JPEG", number, quality=95), SIZE, "plain.png", 2
        yield f"turned-{number}.png", save("PNG", number), SIZE, "plain.png", 1
        yield f"turned-{number}.webp", save("WEBP", number, lossless=True), SIZE, "plain.png", 1
        yield f"turned-{number}.tif", encode(stored(number), "TIFF", tiffinfo={0x112: number}), SIZE, "plain.png", 1
    for number in (3, 6):
        packet = (xmp % number).encode()
        image, like = stored(number), (SIZE, "plain.png", 1)
        yield f"turned-xmp-{number}.jpg", encode(image, "JPEG", quality=95, xmp=packet), SIZE, "plain.png", 2
        yield f"turned-xmp-{number}.webp", encode(image, "WEBP", lossless=True, xmp=packet), *like
        yield f"turned-xmp-{number}.tif", encode(image, "TIFF", tiffinfo={700: packet}), *like
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
        yield f"turned-xmp-{number}.png", chunks_before_end(encode(image, "PNG"), text), *like
        raw = exif(number)[6:].hex().encode()
        profile = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % (len(raw) // 2) + raw + b"\n")
        yield f"turned-raw-{number}.png", chunks_before_end(encode(image, "PNG"), chunk(b"zTXt", profile)), *like
    for name, garbled in {
        "none": exif(0),
        "nine": exif(9),
        "noise": b"Exif\0\0garbage",
        "short": b"Exif\0\0II*\0",
        "away": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "text": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\1\0\0\0" + b"6\0\0\0",
    }.items():
        yield f"turned-{name}.jpg", with_segments(segment(0xE1, garbled)), SIZE, "plain.jpg"


def chunks_before_end(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks after its pixels."""
    return data[:-12] + b"".join(chunks) + data[-12:]


def profiles() -> Kind:
    """ICC profiles, which the rules leave aside: right, damaged, huge, in too few parts."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in {"srgb": srgb, "damaged": srgb[:100] + b"\xff" * 300, "huge": srgb + bytes(3 * 2**20)}.items():
        for format, like in (
            ("JPEG", "plain.jpg"),
            ("PNG", "plain.png"),
            ("WEBP", "plain.webp"),
            ("TIFF", "plain.png"),
        ):
            options = {"quality": 95} if format == "JPEG" else {}
            yield f"icc-{name}.{format.lower()}", encode(scene(), format, icc_profile=profile, **options), SIZE, like
    part = segment(0xE2, b"ICC_PROFILE\0\2\3" + srgb)
    yield "icc-part.jpg", with_segments(part), SIZE, "plain.jpg"
    yield "icc-not-deflated.png", with_chunks(chunk(b"iCCP", b"k\0\0" + srgb)), SIZE, "plain.png"
    yield "icc-method.png", with_chunks(chunk(b"iCCP", b"k\0\7")), SIZE, "plain.png"
    yield "icc-no-name.png", with_chunks(chunk(b"iCCP", b"")), SIZE, "plain.png"


def jpegs() -> Kind:
    """JPEG's own oddities."""
    plain, end = seeds()["plain.jpg"], b"\xff\xd9"
    body = plain[:-2]
    like = SIZE, "plain.jpg"
    yield "jpeg-two-ends.jpg", plain + end, *like
    yield "jpeg-garbage.jpg", plain + bytes(range(256)) * 40, *like
    yield "jpeg-twice.jpg", plain * 2, *like
    yield "jpeg-zip.jpg", plain + zipped(), *like
    yield "jpeg-padded.jpg", body + bytes(100) + end, *like
    yield "jpeg-filled.jpg", plain[:2] + b"\xff" * 1000 + plain[2:], *like
    yield "jpeg-comment.jpg", with_segments(segment(0xFE, b"x" * 65533)), *like
    yield "jpeg-comments.jpg", with_segments(*[segment(0xFE, b"x" * 65533)] * 50), *like
    yield "jpeg-html.jpg", with_segments(segment(0xFE, b"<script>alert(1)</script>" * 40)), *like
    yield "jpeg-all-apps.jpg", with_segments(*[segment(marker, b"x" * 99) for marker in range(0xE1, 0xF0)]), *like
    photoshop = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\xff\xff\xff\xff" * 9
    yield "jpeg-photoshop.jpg", with_segments(segment(0xED, photoshop)), *like
    more = {"save_all": True, "append_images": [scene().rotate(180)], "quality": 95}
    yield "jpeg-many.mpo.jpg", encode(scene(), "MPO", **more), *like
    yield "jpeg-progressive.jpg", seeds()["progressive.jpg"], SIZE, "plain.jpg", 1
    yield "jpeg-restarts.jpg", seeds()["restarts.jpg"], SIZE, "plain.png", 4
    yield "jpeg-12-bit.jpg", with_frame(0, b"\x0c"), "unsupported"
    yield "jpeg-two-layers.jpg", with_frame(5, b"\2"), "unsupported"
    for name, marker, expected in (
        ("arithmetic", 0xC9, SIZE),  # any bits are a valid arithmetic code
        ("lossless", 0xC3, "corrupt"),
        ("hierarchical", 0xC5, "unsupported"),
        ("lossless-arithmetic", 0xCB, "unsupported"),
        ("extended", 0xC1, SIZE),
        ("as-progressive", 0xC2, "corrupt"),
    ):
        yield f"jpeg-{name}.jpg", plain.replace(b"\xff\xc0", b"\xff" + bytes([marker]), 1), expected
    yield "jpeg-no-tables.jpg", without(plain, 0xC4), *like  # the standard ones are implied
    yield "jpeg-no-quantisation.jpg", without(plain, 0xDB), "corrupt"
    yield "jpeg-no-frame.jpg", without(plain, 0xC0), "corrupt"
    yield "jpeg-no-end.jpg", body, "truncated"
    yield "jpeg-no-pixels.jpg", plain[: plain.index(b"\xff\xda") + 14], "truncated"
    yield "jpeg-only-ends.jpg", b"\xff\xd8\xff\xd9", "truncated"
    yield "jpeg-only-starts.jpg", b"\xff\xd8" * 1000, "truncated"
    yield "jpeg-only-fill.jpg", b"\xff\xd8" + b"\xff" * 10**6, "truncated"
    yield "jpeg-short-segment.jpg", with_segments(b"\xff\xe1\0\1"), *like
    yield "jpeg-long-segment.jpg", plain[:-2] + segment(0xE1, bytes(100))[:50], "truncated"
    yield "jpeg-many-scans.jpg", more_scans(200, (64, 48)), "corrupt"  # says what it said before


def pngs() -> Kind:
    """PNG's own oddities."""
    plain, like = seeds()["plain.png"], (SIZE, "plain.png")
    pixels = plain[plain.index(b"IDAT") + 4 : -16]
    yield "png-private.png", with_chunks(chunk(b"prVt", b"x" * 999)), *like
    yield "png-unknown.png", with_chunks(chunk(b"XYZA", b"x" * 999)), *like
    yield "png-garbage.png", plain + b"trailing" * 100, *like
    yield "png-html.png", plain + b"<script>alert(1)</script>", *like
    yield "png-no-end.png", plain[:-12], "truncated"
    yield "png-no-pixels.png", png(SIZE, 8, 2), "corrupt"
    yield "png-only-end.png", plain[:8] + chunk(b"IEND"), "corrupt"
    yield "png-no-palette.png", flat_png(SIZE, 8, 3), "corrupt"
    yield "png-short-palette.png", flat_png(SIZE, 8, 3, chunk(b"PLTE", b"\1\2\3")), SIZE
    yield "png-long-alpha.png", flat_png(SIZE, 8, 3, chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", bytes(300))), "corrupt"
    yield "png-depth-3.png", flat_png(SIZE, 3, 0), "corrupt"
    yield "png-checksum.png", patched(plain, 29, bytes(4)), "corrupt"
    yield "png-text-checksum.png", with_chunks(chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)), "corrupt"
    yield "png-long-chunk.png", with_chunks(b"\x7f\xff\xff\xfftEXt"), "truncated"
    yield "png-longer-chunk.png", with_chunks(b"\xff\xff\xff\xfftEXt"), "truncated"
    yield "png-twice-header.png", with_chunks(plain[8:33]), *like
    yield "png-byte-chunks.png", png(SIZE, 8, 2, *[chunk(b"IDAT", bytes([byte])) for byte in pixels]), *like
    yield "png-empty-chunks.png", with_chunks(chunk(b"IDAT") * 100_000), *like
    yield "png-few-pixels.png", png(SIZE, 8, 2, chunk(b"IDAT", zeros(1000))), "truncated"
    yield "png-bad-filter.png", png((8, 8), 8, 0, chunk(b"IDAT", zlib.compress(b"\7" + bytes(71)))), "corrupt"
    yield "png-bad-method.png", png(SIZE, 8, 2, chunk(b"IDAT", b"not deflated")), "corrupt"
    yield "png-exif-twice.png", with_chunks(chunk(b"eXIf", exif(6)[6:]), chunk(b"eXIf", exif(1)[6:])), *like
    texts = chunk(b"tEXt") + chunk(b"zTXt", b"k") + chunk(b"zTXt", b"k\0\7x") + chunk(b"iTXt", b"k\0\1\7")
    yield "png-odd-texts.png", with_chunks(texts), *like
    ancillary = (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"eXIf", b"acTL", b"fcTL")
    yield "png-odd-ancillary.png", with_chunks(*[chunk(kind) for kind in ancillary]), *like
    endless = chunk(b"acTL", b"\xff\xff\xff\xff\0\0\0\0")
    yield "png-endless.png", with_chunks(endless, endless), *like
    frame = struct.pack(">IIIIIHHBB", 0, 5000, 5000, 9, 9, 1, 1, 0, 0)
    yield "png-frame-outside.png", with_chunks(chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", frame)), *like


def gifs() -> Kind:
    """GIF's own oddities."""
    plain, like = seeds()["plain.gif"], (SIZE, "plain.gif")
    at = plain.index(b",", 13 + (3 << (plain[10] & 7) + 1))
    yield "gif-comment.gif", gif_with(b"!\xfe\x05hello\0"), *like
    yield "gif-xmp.gif", gif_with(b"!\xff\x0bXMP DataXMP" + b"<x/>" * 500 + b"\0" * 258), *like
    yield "gif-stray.gif", gif_with(b"stray"), *like
    yield "gif-script.gif", plain + b"*/=1;alert(1)", *like
    yield "gif-87.gif", b"GIF87a" + plain[6:], *like
    yield "gif-controls.gif", gif_with(b"!\xf9\4\0\0\0\0\0" * 1000), *like
    yield "gif-no-frame.gif", plain[:at] + b";", "corrupt"
    yield "gif-no-palette.gif", plain[:10] + b"\0\0\0" + plain[at:], SIZE
    yield "gif-no-pixels.gif", plain[: at + 11] + b"\0;", "truncated"
    yield "gif-bad-code.gif", patched(plain, at + 10, b"\xff"), "corrupt"
    yield "gif-open-comment.gif", plain[:at] + b"!\xfe\xffx", "truncated"
    yield "gif-canvas.gif", plain[:6] + struct.pack("<HH", 200, 100) + plain[10:], (200, 100)


def bmps() -> Kind:
    """BMP's own oddities."""
    rows = b"".join(bytes((3 * y % 256, 2 * y, y)) * WIDTH for y in range(HEIGHT))
    yield "bmp-os2.bmp", bmp(SIZE, 24, rows, header=12), SIZE
    yield "bmp-os2-palette.bmp", bmp(SIZE, 8, bytes(WIDTH * HEIGHT), header=12), SIZE
    for header in (52, 56, 64, 108, 124):
        yield f"bmp-header-{header}.bmp", bmp(SIZE, 24, rows, header=header), SIZE
    yield "bmp-header-16.bmp", bmp(SIZE, 24, rows, header=16), "unsupported"
    yield "bmp-header-long.bmp", patched(seeds()["plain.bmp"], 14, b"\xff" * 4), "truncated"
    yield "bmp-top-down.bmp", bmp((WIDTH, -HEIGHT), 24, rows), SIZE
    yield "bmp-left.bmp", bmp((-WIDTH, HEIGHT), 24, rows), "too_large"
    for bits in (1, 4, 8, 16, 24, 32):
        yield f"bmp-{bits}.bmp", bmp(SIZE, bits, bytes(HEIGHT * (WIDTH * bits // 8))), SIZE
    for bits in (0, 2, 3, 64):
        yield f"bmp-{bits}.bmp", bmp(SIZE, bits, bytes(50_000)), "unsupported"
    masks = struct.pack("<IIII", 0xF800, 0x7E0, 0x1F, 0)
    yield "bmp-565.bmp", bmp(SIZE, 16, bytes(WIDTH * HEIGHT * 2), 3, 56, masks), SIZE
    masks32 = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield "bmp-alpha.bmp", bmp(SIZE, 32, bytes(WIDTH * HEIGHT * 4), 3, 56, masks32), SIZE
    yield "bmp-odd-masks.bmp", bmp(SIZE, 32, bytes(WIDTH * HEIGHT * 4), 3, 56, bytes(range(16))), "unsupported"
    yield "bmp-runs.bmp", seeds()["runs.bmp"], SIZE
    yield "bmp-runs-4.bmp", bmp(SIZE, 4, b"\x60\x12\0\0" * HEIGHT + b"\0\1", compression=2), SIZE
    yield "bmp-runs-delta.bmp", bmp(SIZE, 8, b"\0\2\5\5" * 99 + b"\0\1", compression=1), SIZE
    yield "bmp-runs-none.bmp", bmp(SIZE, 8, b"\0\1", compression=1), "truncated"
    yield "bmp-runs-cut.bmp", bmp(SIZE, 8, b"\x40\1\0", compression=1), "truncated"
    yield "bmp-jpeg.bmp", bmp(SIZE, 24, seeds()["plain.jpg"], compression=4), "unsupported"
    yield "bmp-png.bmp", bmp(SIZE, 24, seeds()["plain.png"], compression=5), "unsupported"
    yield "bmp-pixels-away.bmp", patched(seeds()["plain.bmp"], 10, b"\xff\xff\xff\x7f"), "truncated"
    yield "bmp-text.bmp", b"BM/*" + b" " * 60, "truncated"


def tiffs() -> Kind:
    """TIFF's own oddities."""
    eight = (8, 8)
    yield "tiff-plain.tif", tiff({}), eight
    yield "tiff-packed.tif", tiff({259: 32773}, b"\xf9\x05" * 8), eight
    yield "tiff-jpeg.tif", seeds()["jpeg.tif"], SIZE, "plain.png", 3
    yield "tiff-fax.tif", seeds()["fax.tif"], SIZE
    more = {"save_all": True, "append_images": [scene().rotate(180)]}
    yield "tiff-pages.tif", encode(scene(), "TIFF", **more), SIZE, "plain.png"
    yield "tiff-loop.tif", patched(tiff({}), 72 + 2 + 12 * len(GREY_8), struct.pack("<I", 72)), eight
    yield "tiff-away.tif", b"II*\0\xff\xff\xff\x7f" + bytes(100), "truncated"
    yield "tiff-self.tif", b"II*\0\0\0\0\0" + bytes(100), "truncated"
    yield "tiff-no-tags.tif", b"II*\0\x08\0\0\0" + bytes(100), "corrupt"
    yield "tiff-all-tags.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535 + 4), "corrupt"
    yield "tiff-too-many-tags.tif", b"II*\0\x08\0\0\0\xff\xff" + bytes(500), "truncated"
    yield "tiff-big-tags.tif", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(500), "corrupt"
    yield "tiff-big-motorola.tif", b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 0) + bytes(500), "unsupported"
    for name, tags, expected in (
        ("no-strips", {273: (3, [])}, "corrupt"),
        ("strip-away", {273: 2**31}, "truncated"),
        ("strip-beyond", {273: 2**32 - 1}, "truncated"),
        ("no-rows", {278: 0}, "corrupt"),
        ("no-bytes", {279: 0}, eight),
        ("all-bytes", {279: 2**32 - 1}, eight),
        ("unknown-compression", {259: 1234}, "unsupported"),
        ("thunder", {259: 32809}, "corrupt"),
        ("jpeg-xr", {0xBC01: 1}, "unsupported"),
        ("old-jpeg", {259: 6}, "corrupt"),
        ("lzma", {259: 34925}, "corrupt"),
        ("zstd", {259: 50000}, "corrupt"),
        ("lzw", {259: 5}, "corrupt"),
        ("deflate", {259: 8}, "corrupt"),
        ("bits", {258: 9}, "unsupported"),
        ("photometric", {262: 99}, "unsupported"),
        ("planar", {284: 2}, eight),
        ("samples", {277: 5}, "unsupported"),
        ("no-samples", {277: 0}, "unsupported"),
        ("size-text", {256: (2, b"8\0")}, "corrupt"),
        ("size-list", {256: (3, [8, 8])}, eight),
        ("orientation-text", {274: (2, b"6\0")}, eight),
        ("orientation-9", {274: 9}, eight),
        ("xmp-away", {700: (1, 2**31, 8)}, eight),
        ("xmp-shorts", {700: (3, [1, 2, 3])}, eight),
        ("icc-away", {34675: (7, 2**31, 8)}, eight),
        ("exif-away", {34665: 2**31}, eight),
        ("exif-self", {34665: 72}, eight),
        ("unknown-type", {40000: (99, 5, 5)}, eight),
        ("many-strips", {273: (4, [8] * 1000), 279: (4, [8] * 1000), 278: 1}, eight),
        ("tile", {322: 16, 323: 16, 324: 8, 325: 256}, eight),
        ("no-tile", {322: 0, 323: 0, 324: 8, 325: 256}, eight),
    ):
        yield f"tiff-{name}.tif", tiff(tags, bytes(256)), expected


def webps() -> Kind:
    """WebP's own oddities."""
    plain, like = seeds()["plain.webp"], (SIZE, "plain.webp")
    yield "webp-garbage.webp", plain + b"trailing" * 100, *like
    yield "webp-long.webp", patched(plain, 4, b"\xff\xff\xff\x7f"), "truncated"
    yield "webp-no-size.webp", patched(plain, 4, bytes(4)), "corrupt"
    yield "webp-no-frame.webp", riff((b"VP8X", struct.pack("<I", 0) + b"\x5f\0\0\x3f\0\0")), "corrupt"
    yield "webp-unknown.webp", riff((b"ABCD", bytes(40))), "corrupt"
    canvas = b"VP8X", struct.pack("<I", 0) + b"\xff\0\0\xff\0\0"
    yield "webp-other-canvas.webp", riff(canvas, (b"VP8 ", plain[20:])), "corrupt"
    yield "webp-huge-canvas.webp", riff((b"VP8X", struct.pack("<I", 2) + b"\xff" * 6), (b"ANIM", bytes(6))), "corrupt"
    yield "webp-noise.webp", riff((b"VP8L", b"\x2f" + bytes(range(256)))), "corrupt"
