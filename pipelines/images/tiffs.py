"""TIFF files: which page is decoded, and what is changed so that Pillow decodes it correctly.

* The page is the first one that is not marked as a reduced version of another or as a mask (NewSubfileType,
  SubfileType). So a thumbnail before the image, such as a camera's, is skipped, also if the image is in SubIFDs.
* "Zero is white" also holds for 16 bits and for floats. Samples of 12 bits keep their high 8 bits. A MaxSampleValue of
  2ⁿ - 1 with n from 9 to 15 says how many of 16 bits are used. Any other value is a statistic, which by the TIFF
  specification must not change how the image looks.
* What Pillow 12.3 decodes wrongly, or calls damaged although it is valid, is decoded by libtiff, or refused with an
  error that names it.

``tests/pixels.py`` decodes thousands of kinds of TIFF by a second method, and checks that each follows these rules or
is refused as "unsupported".

Sources: TIFF 6.0, its Adobe Photoshop supplements (SubIFDs, Deflate), and BigTIFF.
"""

from __future__ import annotations

import struct
from typing import cast

from PIL import TiffImagePlugin

from featurestore.errors import ImageError
from pipelines.images.containers import (
    INTEGERS,
    MAX_PARTS,
    MAX_PIXELS,
    ORIENTATION,
    Container,
    Tag,
    directory,
    ends_early,
    integer,
    too_many_parts,
    unpack,
)

MAX_PAGES = 64  # searched for one that is not reduced
MAX_VALUES = 64  # read per tag

_SUBFILE, _OLD_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 255, 258, 259, 262, 277
_MAX_SAMPLE, _PLANAR, _TILE_WIDTH, _TILE_LENGTH, _SUB_IFDS, _INK_SET = 281, 284, 322, 323, 330, 332
_EXTRA, _FORMAT = 338, 339
_XMP, _ICC = 700, 34675
_PIXELS = frozenset(
    (
        *(256, 257, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, 273, ORIENTATION, _SAMPLES, 278, 279, _PLANAR),
        *(292, 293, 317, 320, _TILE_WIDTH, _TILE_LENGTH, 324, 325),  # coding, tiles
        *(_INK_SET, _EXTRA, _FORMAT, 340, 341),  # kinds of samples
        *(347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532),  # JPEG, YCbCr
        *(_XMP, 0xBC01),  # 0xBC01 marks a JPEG XR, which Pillow refuses by name
    )
)
_COMPRESSIONS = (*range(1, 9), 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000)  # that Pillow and libtiff read
_OTHER_COMPRESSIONS = {
    **{34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG of a DNG", 34933: "PNG", 34934: "JPEG XR"},
    **{22610: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 34661: "JBIG"},
}
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_NOT_CMYK = 2
_LZW = 5
_PHOTOMETRICS = {
    **{_WHITE_IS_ZERO: "grey, zero is white", _GREY: "grey", _RGB: "RGB", _PALETTE: "palette", 4: "mask"},
    **{_INKS: "inks", _YCBCR: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv"},
    **{32803: "a camera's raw mosaic", 34892: "a camera's raw samples"},
}
_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


_NUMBERS = (_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _MAX_SAMPLE, _PLANAR, _INK_SET, _EXTRA, _FORMAT)

Values = dict[int, tuple[int, ...]]  # by tag, the numbers that say what the samples are


def tiff(data: bytes) -> Container:
    """Return the file with the image's directory only, reduced to the tags that decide the pixels, each once.

    Raises:
        ImageError: "truncated", "corrupt", "too_large" or "unsupported".
    """
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    if big and order == ">":  # Pillow reads it as a plain TIFF
        raise ImageError("unsupported", "Big-endian BigTIFF is not supported: convert it to a plain TIFF.")
    first = unpack(order + "Q", data, 8)[0] if big else unpack(order + "I", data, 4)[0]
    at, found = _page(data, first, order, big)
    xmp, icc = (_bytes(data, found[number]) if number in found else None for number in (_XMP, _ICC))
    tags = {number: tag for number, tag in found.items() if number in _PIXELS and (number != _XMP or xmp)}
    for tag in tags.values():
        if tag.end > len(data):
            raise ends_early()
        if tag.values > MAX_PARTS and tag.number != _XMP:
            raise too_many_parts()
    width, length = (integer(data, tags[name], order) if name in tags else 0 for name in (_TILE_WIDTH, _TILE_LENGTH))
    if width * length > MAX_PIXELS:
        raise ImageError("too_large", f"Tiles of {width}×{length} pixels are more than the limit of {MAX_PIXELS:,}.")
    values = {number: _values(data, found[number], order) for number in _NUMBERS if number in found}
    kind = _kind(values)
    _check(values, kind)
    inverted = values.get(_PHOTOMETRIC) == (_WHITE_IS_ZERO,) and max(values.get(_BITS) or (1,)) > 8
    size = 20 if big else 12
    entries = {number: data[tag.place : tag.place + size] for number, tag in tags.items()}
    if inverted:  # Pillow ignores that zero is white
        entries[_PHOTOMETRIC] = _entry(_PHOTOMETRIC, _GREY, order, big)
    written = struct.pack(order + ("Q" if big else "H"), len(entries))
    written += b"".join(entries.values()) + bytes(8 if big else 4)
    view = memoryview(data)
    head = [view[:at]] if at == first else [_header(order, big, at), view[16 if big else 8 : at]]
    return Container(
        b"".join((*head, written, view[at + len(written) :])),
        xmp=xmp if ORIENTATION not in tags else None,
        icc=icc,
        bits=_bits(values),
        inverted=inverted,
        kind=kind,
    )


def _page(data: bytes, first: int, order: str, big: bool) -> tuple[int, dict[int, Tag]]:
    """Return where the image's directory is, and its tags; those of the first page if all are reduced or masks."""
    start, waiting, pages, seen = 16 if big else 8, [first], dict[int, dict[int, Tag]](), 0  # seen: entries
    while waiting and len(pages) < MAX_PAGES:
        at = waiting.pop(0)
        if at in pages or (pages and at < start):
            continue
        seen += unpack(order + ("Q" if big else "H"), data, at)[0]
        if pages and seen > MAX_PARTS:
            raise too_many_parts()
        pages[at] = tags = {tag.number: tag for tag in directory(data, at, order, big) if tag.values}
        kinds, old_kinds = (_values(data, tags[n], order) if n in tags else () for n in (_SUBFILE, _OLD_SUBFILE))
        if not any(kind & 0b101 for kind in kinds) and old_kinds != (2,):  # bits: reduced, page, mask; old: reduced
            return at, tags
        inside = _values(data, tags[_SUB_IFDS], order) if _SUB_IFDS in tags else ()
        waiting = [*inside, *waiting, *_next(data, at, order, big)]
    return first, pages[first]


def _next(data: bytes, at: int, order: str, big: bool) -> tuple[int, ...]:
    """Return where the next directory is (0: there is none), in a tuple; an empty tuple if the file ends before."""
    (entries,) = unpack(order + ("Q" if big else "H"), data, at)
    place = at + (8 + 20 * entries if big else 2 + 12 * entries)
    return unpack(order + ("Q" if big else "I"), data, place) if place < len(data) else ()


def _header(order: str, big: bool, at: int) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + (struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at))


def _entry(number: int, value: int, order: str, big: bool) -> bytes:
    """Return a directory's entry that holds one 16-bit number."""
    return struct.pack(order + ("HHQHHI" if big else "HHIHH"), number, 3, 1, value, 0, *((0,) if big else ()))


def _bytes(data: bytes, tag: Tag) -> bytes | None:
    """Return the value of a tag of bytes; None if it is of another type or cut off."""
    return data[tag.begin : tag.end] if tag.kind in (1, 7) and tag.end <= len(data) else None


def _values(data: bytes, tag: Tag, order: str) -> tuple[int, ...]:
    """Return the first ``MAX_VALUES`` values of a tag of integers; none if it is of another type or cut off."""
    if tag.kind not in INTEGERS or tag.end > len(data):
        return ()
    return unpack(f"{order}{min(tag.values, MAX_VALUES)}{INTEGERS[tag.kind]}", data, tag.begin)


def _bits(values: Values) -> int:
    """Return how many of 16 bits are used, by MaxSampleValue."""
    tops = set(values.get(_MAX_SAMPLE, ()))
    if set(values.get(_BITS, ())) == {16} and values.get(_FORMAT, (1,))[:1] == (1,) and len(tops) == 1:
        return next((bits for bits in range(9, 16) if tops == {2**bits - 1}), 16)
    return 16


def _kind(values: Values) -> str:
    """Describe the samples in words."""
    bits, formats = values.get(_BITS) or (1,), values.get(_FORMAT) or (1,)
    samples, photometric = (values.get(_SAMPLES) or (1,))[0], (values.get(_PHOTOMETRIC) or (_WHITE_IS_ZERO,))[0]
    words = [
        f"{samples} × {'/'.join(str(n) for n in sorted(set(bits)))} bits",
        _FORMATS.get(formats[0], "of an unknown format"),
        _PHOTOMETRICS.get(photometric, f"photometric {photometric}"),
        *(["with extra samples or alpha"] if values.get(_EXTRA) else []),
        *(["planar"] if values.get(_PLANAR) == (2,) else []),
    ]
    return f"A TIFF of samples of this kind ({', '.join(words)})"


def _check(values: Values, kind: str) -> None:
    """Raise ImageError for what Pillow decodes wrongly or calls damaged."""
    compression = (values.get(_COMPRESSION) or (1,))[0]
    if compression and compression not in _COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(compression, "unknown to penult")
        raise ImageError(
            "unsupported", f"TIFF compression {compression} ({name}) is not supported: convert it to Deflate or LZW."
        )
    samples, photometric = ((values.get(number) or (1,))[0] for number in (_SAMPLES, _PHOTOMETRIC))
    extra, bits, planar = values.get(_EXTRA, ()), values.get(_BITS) or (1,), values.get(_PLANAR) == (2,)
    if any(
        (
            planar and any(extra) and photometric in (_WHITE_IS_ZERO, _GREY, _PALETTE),
            planar and extra and len(bits) != samples,
            photometric == _YCBCR and samples > 3,
            photometric == _INKS and values.get(_INK_SET) == (_NOT_CMYK,),
            _bits(values) < 16 and samples > 1 and (planar or 1 in extra),
        )
    ):
        raise unsupported(kind)


def unsupported(kind: str) -> ImageError:
    """Return the error for a kind of TIFF that is not decoded."""
    return ImageError("unsupported", f"{kind} is not supported: convert it to grey or RGB of 8 bits, without planes.")


# --- what Pillow makes of it

_NATIVE = {
    **dict.fromkeys(("I;16S", "I;16BS"), "I;16NS"),
    **dict.fromkeys(("I;32S", "I;32BS"), "I;32NS"),
    **dict.fromkeys(("F;32F", "F;32BF"), "F;32NF"),
}


class Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF plugin, corrected to load what ``tiff`` returns.

    Raises:
        SyntaxError: "unknown pixel mode" if Pillow does not know this kind of samples; Pillow raises other errors too.
    """

    def _setup(self) -> None:
        tags = self.tag_v2
        if tags.get(_COMPRESSION, 1) == 1 and (tags.get(_PLANAR) == 2 or tags.get(_PHOTOMETRIC) == _YCBCR):
            # Pillow's decoder of uncompressed samples assumes planes of 8 bits, and four bytes per pixel of YCbCr. Its
            # decoder of compressed samples calls libtiff, which reads the true compression from the file.
            tags[_COMPRESSION] = _LZW
        super()._setup()
        if self.use_load_libtiff:  # samples come in the processor's byte order, which Pillow handles in part
            rawmode, *rest = cast(tuple[str, ...], self.tile[0].args)
            self.tile = [self.tile[0]._replace(args=(_NATIVE.get(rawmode, rawmode), *rest))]
