"""Checks of image files in bounded time and memory, and removal of their metadata, before a decoder sees them.

Pillow 12.3 trusts the structure of a file. It reads 8 GB from 1 MB of TIFF whose tags share their values, asks for
22 GB for 1 kB of run-length BMP, takes hours over a JPEG or a GIF of tiny comments, and refuses a PNG with a long
comment. So each format's function here checks the file's structure, reads how the image is turned, and returns the
same image without metadata. A decoder makes the same pixels of it.

It also reads what decoders ignore although the correct pixels depend on it. Kinds of files that decoders would call
damaged are refused with an error that names the kind. ``tiffs`` does all this for TIFF.

Sources: the PNG specification (third edition), ITU-T T.81 annex B (JPEG), GIF89a, Exif 3.0 and ICC.1:2022.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from featurestore.errors import ImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit, 256 MiB of RGB
MAX_PARTS = 2**18  # chunks, segments, blocks or strips of a file
MAX_SCAN_PIXELS = 32 * MAX_PIXELS  # each scan of a JPEG goes over all its pixels
MAX_RUN_LENGTH_PIXELS = 2**22  # of a BMP, which Pillow expands in Python
MAX_RUN_LENGTH_WIDTH = 2**16  # one code of such a BMP skips up to 255 rows
MAX_TEXT_BYTES = 2**20  # of one inflated text


class Container(NamedTuple):
    """An image file without its metadata, and the metadata that its pixels depend on.

    Attributes:
        data: the file to decode.
        exif: the EXIF data, which says how the image is turned, or None.
        xmp: the XMP data, which says so if there is no EXIF, or None.
        icc: the colour profile or its beginning, or None.
        bits: how many bits of each 16-bit sample the file says that it uses.
        inverted: whether zero is white although ``data`` says that it is black.
        kind: the kind of image in words, for error messages.
    """

    data: bytes
    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None
    bits: int = 16
    inverted: bool = False
    kind: str = ""


def ends_early() -> ImageError:
    """Return the error for a file that is cut off."""
    return ImageError("truncated", "The image is shorter than its header says.")


def too_many_parts() -> ImageError:
    """Return the error for a file of too many chunks, segments or strips."""
    return ImageError("too_large", f"The image comes in more than {MAX_PARTS:,} parts.")


def unpack(layout: str, data: bytes, at: int) -> Any:
    """Call ``struct.unpack_from``; raise the ImageError "truncated" if the data ends before."""
    try:
        return struct.unpack_from(layout, data, at)
    except (struct.error, OverflowError):  # OverflowError: at is beyond any memory
        raise ends_early() from None


# --- PNG

_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_EXIF, _RAW_EXIF, _XMP, _ICC = b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"icc"  # keys of texts


def png(data: bytes) -> Container:
    """Check every chunk's checksum, which decoders ignore, and keep the chunks that decide the pixels.

    Raises:
        ImageError: "truncated", "corrupt", "too_large" or "unsupported".
    """
    view, at, bits = memoryview(data), 8, 16
    kept, texts = [view[:at]], dict[bytes, tuple[bytes, int, int]]()
    for _ in range(MAX_PARTS):
        length, kind = unpack(">I4s", data, at)
        end = at + length + 12
        if kind == b"IEND":
            kept.append(view[at:end])
            exif, xmp, icc = _png_metadata(data, texts)
            return Container(b"".join(kept), exif, xmp, icc, bits)
        if end > len(data):
            raise ends_early()
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ImageError("corrupt", f"The checksum of the PNG chunk at byte {at:,} is wrong.")
        if kind in _PNG_PIXELS:
            kept.append(view[at:end])
        elif kind == b"CgBI":
            raise ImageError(
                "unsupported",
                "Apple's kind of PNG (CgBI) is not supported: pngcrush -revert-iphone-optimizations converts it.",
            )
        elif kind == b"sBIT" and length:
            bits = max(view[at + 8 : end - 4])
        elif kind == b"iCCP":
            begin = data.find(b"\0", at + 8, end - 4) + 1
            texts[_ICC] = (b"zTXt", begin or end - 4, end - 4)
        elif kind == b"eXIf":
            texts[_EXIF] = (b"tEXt", at + 8, end - 4)
        elif kind in _PNG_TEXTS:
            key = data[at + 8 : min(at + 88, end - 4)].partition(b"\0")[0]
            if key in (_EXIF, _RAW_EXIF, _XMP):
                texts[key] = (kind, min(at + 9 + len(key), end - 4), end - 4)
        at = end
    raise too_many_parts()


def _png_metadata(data: bytes, texts: dict[bytes, tuple[bytes, int, int]]) -> list[bytes | None]:
    """Return EXIF, XMP and ICC profile; each is None if it is garbled or inflates to more than a real one."""
    values = {key: _png_text(kind, data[begin:end]) for key, (kind, begin, end) in texts.items()}
    exif = values.get(_EXIF)
    if exif is None and (raw := values.get(_RAW_EXIF)):  # as ImageMagick writes it: name, length, hexadecimal
        try:
            exif = bytes.fromhex("".join(raw.decode("latin-1").split("\n")[3:]))
        except ValueError:
            exif = None
    return [exif, values.get(_XMP), values.get(_ICC)]


def _png_text(kind: bytes, rest: bytes) -> bytes | None:
    """Return the text of a text chunk without its key; None if it is garbled or inflates to too much."""
    deflated = kind == b"zTXt"
    if deflated:
        rest = rest[1:]
    elif kind == b"iTXt":
        deflated = rest[:1] != b"\0"
        rest = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated key
    if not deflated:
        return rest
    try:
        inflating = zlib.decompressobj()
        text = inflating.decompress(rest, MAX_TEXT_BYTES)
        return None if inflating.unconsumed_tail else text
    except zlib.error:
        return None


# --- JPEG

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # not fill bytes, stuffed bytes or restarts
_SOI, _EOI, _SOS, _APP1, _APP2, _JPEG_LS = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xF7
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_UNSUPPORTED_FRAMES = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}  # hierarchical, or lossless and arithmetic
_ALONE = frozenset(range(0x01, 0xC0)) | frozenset(range(0xF0, 0xFE)) | {0xC8, _SOI, _EOI}  # without a length
_JPEG_METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE} | {0xFE}  # APP0 and APP14 say what the colours are
_EXIF_MARK, _XMP_MARK, _ICC_MARK = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0\1"


def jpeg(data: bytes) -> Container:
    """Leave out comments and application segments before the first scan; refuse an image of too many scans.

    Raises:
        ImageError: "truncated", "too_large" or "unsupported".
    """
    view, kept, begin = memoryview(data), [], 0
    exif: list[bytes] = []
    xmp, icc, pixels, at, seen = None, None, 0, 2, set[int]()
    for _ in range(MAX_PARTS):
        marker, at, end = _jpeg_segment(data, at)
        seen.add(marker)
        if marker == _SOS:
            if _JPEG_LS in seen and not seen & _FRAMES:
                raise ImageError("unsupported", "JPEG-LS is not supported: convert it to PNG, which is lossless too.")
            if (data.count(b"\xff\xda", at) + 1) * pixels > MAX_SCAN_PIXELS:
                _check_scans(data, end, pixels)
            kept.append(view[begin:])
            return Container(b"".join(kept), b"".join(exif) if exif else None, xmp, icc)
        if marker in _UNSUPPORTED_FRAMES:
            raise ImageError(
                "unsupported", f"JPEG process SOF{marker - 0xC0} is not supported: save it as a baseline JPEG."
            )
        if marker in _FRAMES and end >= at + 9:
            height, width = unpack(">HH", data, at + 5)
            pixels = width * height
        elif marker in _JPEG_METADATA:
            kept.append(view[begin:at])
            begin = end
            if marker == _APP1 and data.startswith(_EXIF_MARK, at + 4):
                exif.append(data[at + 10 : end])
            elif marker == _APP1 and data.startswith(_XMP_MARK, at + 4):
                xmp = data[at + 4 + len(_XMP_MARK) : end]
            elif marker == _APP2 and data.startswith(_ICC_MARK, at + 4):
                icc = data[at + 5 + len(_ICC_MARK) : end]
        at = end
    raise too_many_parts()


def _jpeg_segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the next marker from ``at`` on, where it begins, and where its segment ends."""
    if (match := _MARKER.search(data, at)) is None:
        raise ends_early()
    marker, begin, end = match[1][0], match.start(), match.end()
    if marker not in _ALONE:
        end += max(2, *unpack(">H", data, end))  # the length counts itself; decoders forgive 0 and 1
    if end > len(data):
        raise ends_early()
    return marker, begin, end


def _check_scans(data: bytes, at: int, pixels: int) -> None:
    """Refuse a JPEG that would take minutes to decode: even a scan of a few bytes goes over the whole image."""
    scans = 1
    for _ in range(MAX_PARTS):
        if scans * pixels > MAX_SCAN_PIXELS:
            raise ImageError("too_large", f"{pixels:,} pixels in {scans} scans or more take too long to decode.")
        try:
            marker, _, at = _jpeg_segment(data, at)
        except ImageError:
            return  # the decoder will report the damage
        if marker == _EOI:
            return
        scans += marker == _SOS
    raise too_many_parts()


# --- GIF


def gif(data: bytes) -> Container:
    """Leave out the extensions before the first frame, except those that control it.

    Raises:
        ImageError: "truncated", "corrupt" or "too_large".
    """
    (flags,) = unpack("B", data, 10)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept: list[bytes | memoryview] = [data[:at]]
    parts = 0
    while parts < MAX_PARTS:
        (kind,) = unpack("c", data, at)
        if kind == b",":
            kept.append(memoryview(data)[at:])
            return Container(b"".join(kept))
        if kind == b";":
            raise ImageError("corrupt", "The GIF ends before its first frame.")
        end = at + 1  # skips a stray byte
        if kind == b"!":
            label, size = unpack("BB", data, end)
            end += 2
            while size:
                end, parts = end + size + 1, parts + 1
                (size,) = unpack("B", data, end - 1)
            if label == 0xF9:
                kept.append(data[at:end])
        at, parts = end, parts + 1
    raise too_many_parts()


# --- WebP and BMP


def webp(data: bytes) -> Container:
    """Refuse a WebP that is shorter than its header says; its decoder would accept it.

    Raises:
        ImageError: "truncated".
    """
    (size,) = unpack("<I", data, 4)
    if size + 8 > len(data):
        raise ends_early()
    return Container(data)


def bmp(data: bytes) -> Container:
    """Refuse a run-length BMP whose runs could not be expanded in bounded time and memory.

    Raises:
        ImageError: "truncated", "corrupt" or "too_large".
    """
    (header_size,) = unpack("<I", data, 14)
    if header_size >= 40:
        width, height, _, compression = unpack("<iiII", data, 18)
        pixels = abs(width * height)
        if compression in (1, 2):
            if pixels > MAX_RUN_LENGTH_PIXELS or abs(width) > MAX_RUN_LENGTH_WIDTH:
                raise ImageError(
                    "too_large", f"{width}×{abs(height)} pixels are more than the limit for a run-length BMP."
                )
            if len(data) > 4 * pixels + 2**20:  # the least compact code takes 2 bytes per pixel
                raise ImageError("corrupt", f"{len(data):,} bytes are more than {width}×{abs(height)} pixels can take.")
    return Container(data)


# --- directories of EXIF and TIFF

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 18: 8}  # by type
INTEGERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}
ORIENTATION = 274


class Tag(NamedTuple):
    """One entry of a directory, and where its values are."""

    number: int
    kind: int
    values: int
    place: int
    begin: int
    end: int


def directory(data: bytes, at: int, order: str, big: bool = False) -> Iterator[Tag]:
    """Yield the entries of a directory that are of a known type; raise the ImageError "truncated" if it is cut off."""
    number, entry, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    (entries,) = unpack(order + ("Q" if big else "H"), data, at)
    if entries > 2**16:
        raise ImageError("corrupt", f"The TIFF directory says that it has {entries:,} tags.")
    first = at + (8 if big else 2)
    for place in range(first, first + entries * entry, entry):
        tag, kind, values = unpack(f"{order}HH{number}", data, place)
        (offset,) = unpack(order + number, data, place + entry - inline)
        if kind in _SIZES:
            size = values * _SIZES[kind]
            begin = offset if size > inline else place + entry - inline
            yield Tag(tag, kind, values, place, begin, begin + size)


def integer(data: bytes, tag: Tag, order: str) -> int:
    """Return the value of a tag that holds one integer, 0 for any other tag."""
    single = tag.values == 1 and tag.kind in INTEGERS
    return int(unpack(order + INTEGERS[tag.kind], data, tag.begin)[0]) if single else 0


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return an image's orientation, 1 to 8, by its EXIF, else by its XMP, else 1; garbled data gives other numbers."""
    found = _exif_orientation(exif) if exif else None
    if found is None and xmp and (match := re.search(rb'tiff:Orientation(="|>)([0-9])', xmp)):
        found = int(match[2])
    return 1 if found is None else found


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in the first directory: None if there is none, 1 if the EXIF's header is garbled."""
    marks = re.match(b"(?:Exif\\0\\0)*", exif)
    exif = exif[marks.end() if marks else 0 :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or exif[2:4] not in (b"*\0", b"\0*"):
        return 1 if exif else None
    found = None
    try:
        for tag in directory(exif, unpack(order + "I", exif, 4)[0], order):
            if tag.end > len(exif):
                break  # as Pillow, which reads the values in order
            if tag.number == ORIENTATION and tag.values:
                found = integer(exif, tag, order)
    except ImageError:
        pass  # what was found before the cut is valid
    return found


# --- ICC profiles

_CURVES = (b"rTRC", b"gTRC", b"bTRC", b"kTRC")
MAX_PROFILE_TAGS = 100


def is_linear(icc: bytes) -> bool:
    """Return whether a profile, or its beginning, says that the samples are proportional to light (gamma 1)."""
    try:
        (tags,) = unpack(">I", icc, 128)
        entries = [unpack(">4sII", icc, 132 + 12 * number) for number in range(min(tags, MAX_PROFILE_TAGS))]
        curves = [_is_straight(icc, at) for name, at, _ in entries if name in _CURVES]
    except ImageError:
        return False  # garbled, or cut
    return bool(curves) and all(curves)


def _is_straight(icc: bytes, at: int) -> bool:
    kind, values = unpack(">4s4xI", icc, at)
    if kind == b"para":  # its function's number is the first half; gamma is a 16.16 number
        return values >> 16 == 0 and unpack(">I", icc, at + 12) == (0x10000,)
    if kind != b"curv":
        return False
    if values < 2:  # none: the identity; one: gamma as an 8.8 number
        return values == 0 or unpack(">H", icc, at + 12) == (0x100,)
    if values > 2**16:
        return False
    table = unpack(f">{values}H", icc, at + 12)
    return all(abs(level - 65535 * index / (values - 1)) < 256 for index, level in enumerate(table))
