"""Image files of every kind that tifffile, imagecodecs, Pillow and ``hostile.craft`` write, and their right pixels.

The right pixels come from decoders that share no code with penult's (tifffile with imagecodecs, or the very samples
that were written) and from the conversion to 8-bit RGB that the docstrings of ``decoder``, ``samples`` and ``tiffs``
promise, written here once more in NumPy. ``verdict`` compares: equal pixels, or "unsupported".
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from decoding import decoded
from PIL import Image

from featurestore.errors import ImageError
from hostile.craft import bmp, chunk, encode, png

SIDE = 24  # of the square that images are decoded to
Size = tuple[int, int]


class Case(NamedTuple):
    """A image file and what it must give.

    Attributes:
        name: what it is.
        data: its bytes.
        right: float64 (height, width, 3), 0 to 255; None where only "unsupported" is right.
        must: whether it must be decoded, so that "unsupported" is wrong too.
        within: levels of 255 that pixels may be off: 1 for rounding, more where said.
    """

    name: str
    data: bytes
    right: np.ndarray | None
    must: bool = True
    within: float = 1.0


Make = Callable[[], Case | None]  # None where the encoder cannot write it


def verdict(case: Case) -> str | None:
    """What is wrong with how penult decodes a file, None where nothing is."""
    try:
        pixels = decoded(case.data, SIDE).pixels
    except ImageError as error:
        sound = error.error_type == "unsupported" and not (case.must and case.right is not None)
        return None if sound else f"{error.error_type}: {error}"
    if case.right is None:
        return "was decoded"
    right = np.asarray(
        Image.fromarray(np.rint(case.right).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    )
    off = float(np.abs(pixels.astype(float) - right).max())
    return None if off <= case.within else f"off by {off:.0f} levels"


def scene(size: Size, samples: int, top: float, dtype: str) -> np.ndarray:
    """Samples (height, width, samples) from 0 to ``top``, different in every corner and in every sample."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / np.array([max(1, height - 1), max(1, width - 1)]).reshape(2, 1, 1)
    planes = (x, y, (x * y + np.sin(9 * x) * np.cos(5 * y) + 1) / 2.9, 0.3 + 0.7 * x * (1 - y), 0.5 * y, 1 - 0.6 * x)
    return (np.stack(planes[:samples], axis=2) * top).astype(dtype)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite (…, 3) by an alpha of 0 to 255."""
    return rgb * (alpha / 255) + (255 - alpha)


# --- TIFF

DEPTHS = {
    **{"bool": 1, "u1": 255, "u2": 65535, "u4": 2**32 - 1, "u8": 2**63},
    **{"i1": 127, "i2": 32767, "i4": 2**31 - 1, "f2": 1, "f4": 1, "f8": 1},
}
PHOTOMETRICS = {"minisblack": 1, "miniswhite": 1, "palette": 1, "rgb": 3, "separated": 4, "ycbcr": 3}
EXTRAS = ((), ("unassalpha",), ("assocalpha",), ("unspecified",), ("unspecified", "unspecified"))
LOSSLESS = (None, "lzw", "zlib", "deflate", "packbits", "lzma", "zstd")
COMPRESSIONS = (*LOSSLESS, "jpeg", "webp", "jpeg2000", "jpegxl", "jpegxr", "lerc", "png")
TILES = (None, (16, 16))
PREDICTED = ("lzw", "zlib", "deflate", "zstd", "lzma")


def tiffs(size: Size, every: bool = False) -> Iterator[Make]:
    """TIFFs of all kinds of samples; of the ways to lay each out, every one, or a few in turn."""
    layouts = [
        (tile, compression, predictor)
        for tile, compression, predictor in itertools.product(TILES, COMPRESSIONS, (False, True))
        if not predictor or compression in PREDICTED
    ]
    turn = itertools.cycle(layout for layout in layouts if layout[1] != "lzma")  # whose encoder is slow
    for dtype, photometric, extra, planar, order in itertools.product(
        DEPTHS, PHOTOMETRICS, EXTRAS, ("contig", "separate"), "<>"
    ):
        if PHOTOMETRICS[photometric] + len(extra) == 1 and planar == "separate":
            continue
        if photometric == "palette" and (dtype not in ("u1", "u2") or extra):
            continue
        few = dtype not in ("u1", "u2") and (photometric not in ("minisblack", "miniswhite") or extra)
        for layout in layouts if every else itertools.islice(turn, 1 if few else 3):
            yield _tiff(size, dtype, photometric, extra, planar, order, *layout)


def _tiff(
    size: Size,
    dtype: str,
    photometric: str,
    extra: tuple[str, ...],
    planar: str,
    order: str,
    tile: Size | None,
    compression: str | None,
    predictor: bool,
) -> Make:
    options: dict[str, Any] = {
        **{"byteorder": order, "photometric": photometric, "extrasamples": extra or None, "tile": tile},
        **{"rowsperstrip": None if tile else 7, "compression": compression, "predictor": predictor or None},
    }
    samples = PHOTOMETRICS[photometric] + len(extra)

    def make() -> Case | None:
        values = scene(size, samples, DEPTHS[dtype], "f8")
        if dtype.startswith("i"):
            values = 1.5 * values - DEPTHS[dtype] / 2
        values = values > 0.5 if dtype == "bool" else values.astype(dtype)
        if extra[:1] == ("assocalpha",):
            colours = PHOTOMETRICS[photometric]
            values[..., :colours] = np.minimum(values[..., :colours], values[..., colours : colours + 1])
        if photometric == "palette":
            values = np.minimum(values, 255)
            colours = np.random.default_rng(0).integers(0, 65536, (3, 256 if dtype == "u1" else 65536), np.uint16)
            options["colormap"] = colours
        name = f"{dtype} {photometric} {'+'.join(extra)} {planar} {order} {compression} {tile} {predictor}"
        whole = dtype in ("u1", "u2") or (dtype in ("i2", "i4", "f4") and samples == 1 and photometric != "miniswhite")
        must = (
            whole
            and compression in LOSSLESS
            and photometric != "ycbcr"
            and not extra
            and dtype + photometric != "u2palette"
        )
        try:
            return tiff_case(name, values, must=must, planarconfig=planar if samples > 1 else None, **options)
        except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError):  # imagecodecs' errors are the last
            return None

    return make


def tiff_case(name: str, values: np.ndarray, must: bool = True, bits: int | None = None, **options: Any) -> Case:
    """What tifffile writes of (height, width, samples), and how it reads it back."""
    laid = values[..., 0] if values.shape[2] == 1 else values
    if options.get("planarconfig") == "separate":
        laid = np.moveaxis(values, 2, 0)
    file = io.BytesIO()
    tifffile.imwrite(file, np.ascontiguousarray(laid), metadata=None, bitspersample=bits, **options)
    return Case(f"tiff {name}", file.getvalue(), tiff_pixels(file.getvalue()), must, 4 if 1 in _extras(file) else 1)


def _extras(file: io.BytesIO) -> list[int]:
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        return [int(kind) for kind in tiff.pages[0].extrasamples or ()]


def tiff_pixels(data: bytes, number: int = 0) -> np.ndarray:
    """The right pixels of a page, by tifffile and the documented conversion."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[number]
        values, samples = page.asarray(), page.samplesperpixel
        shape = (page.imagelength, page.imagewidth)
        if samples > 1 and page.planarconfig == 2:
            values = np.moveaxis(values.reshape(samples, *shape), 0, 2)
        extra = [int(kind) for kind in page.extrasamples or ()]
        top = page.tags.valueof("MaxSampleValue", default=None)
        colormap = page.colormap
        photometric = (
            2 if (page.photometric, page.compression, page.planarconfig) == (6, 7, 1) else int(page.photometric)
        )
        return _converted(
            values.reshape(*shape, samples),
            photometric,
            extra,
            page.bitspersample,
            page.sampleformat or 1,
            top,
            colormap,
        )


def _converted(values, photometric, extra, bits, kind, top, colormap):
    colours = values.shape[2] - len(extra)
    if photometric == 3:
        return (colormap >> 8)[:, values[..., 0]].transpose(1, 2, 0).astype(float)
    levels = _levels(values, bits, kind, top)
    if photometric == 0:
        levels[..., :colours] = 255 - levels[..., :colours]
    if photometric == 5:  # without a profile: each ink and black take their share of the light
        rgb = (255 - levels[..., :3]) * (255 - levels[..., 3:4]) / 255
    elif photometric == 6:  # ITU-R BT.601, as TIFF has it where no coefficients are given
        luma, blue, red = levels[..., 0], levels[..., 1] - 128, levels[..., 2] - 128
        rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    else:
        rgb = levels[..., :colours].repeat(3 // colours, axis=2)
    rgb = np.clip(rgb, 0, 255)
    alphas = [index for index, kind in enumerate(extra) if kind in (1, 2)]
    if alphas:
        alpha = levels[..., colours + alphas[0], None]
        rgb = over_white(rgb, alpha) if extra[alphas[0]] == 2 else np.clip(rgb + 255 - alpha, 0, 255)
    return rgb


def _levels(values: np.ndarray, bits: int, kind: int, top: int | tuple[int, ...] | None) -> np.ndarray:
    """Samples of any depth as 0 to 255."""
    if kind != 1 or bits > 16:
        low, high = float(values.min()), float(values.max())
        for limit in (1.0, 255.0, 65535.0)[0 if kind == 3 else 1 :]:
            if low >= 0 and high <= limit:
                low, high = 0.0, limit
                break
        return np.rint((values.astype(float) - low) * (255 / ((high - low) or 1)))
    if bits <= 8:
        return np.rint(values * (255 / (2**bits - 1)))
    used = {2**n - 1: n for n in range(9, 16)}.get(max(np.ravel(top)) if top else 0, bits)
    return (values >> used - 8).astype(float)


def odd_tiffs(size: Size) -> Iterator[Make]:
    """TIFFs of few bits, of depths that a tag tells, of pages, planes and byte orders in odd places."""
    for bits, photometric, order in itertools.product((1, 2, 4, 10, 12, 14), ("minisblack", "miniswhite"), "<>"):
        values = scene(size, 1, 2**bits - 1, "u1" if bits <= 8 else "u2")
        must = bits <= 8 or (bits == 12 and order == "<")
        name, options = f"{bits} bits {photometric} {order}", {"photometric": photometric, "byteorder": order}
        yield lambda n=name, v=values, b=bits, m=must, o=options: tiff_case(n, v, m, bits=b, **o)
    for bits, samples, order, photometric in itertools.product(
        (9, 10, 12, 14, 15, 16), (1, 3, 4), "<>", ("minisblack", "miniswhite", "rgb", "separated")
    ):
        if samples not in {"rgb": (3, 4), "separated": (4,)}.get(photometric, (1,)):
            continue
        for compression, planar in itertools.product((None, "lzw"), ("contig", "separate")[:samples]):
            values = scene(size, samples, 2**bits - 1, "u2")
            name = f"{bits} bits in 16 {photometric} {samples} {order} {compression} {planar}"
            options = {
                **{"photometric": photometric, "byteorder": order, "compression": compression},
                **{"planarconfig": planar if samples > 1 else None, "rowsperstrip": 7},
                **{"extrasamples": ("unassalpha",) if samples == 4 and photometric == "rgb" else None},
                **{"extratags": [(281, 3, samples, (2**bits - 1,) * samples if samples > 1 else 2**bits - 1, True)]},
            }
            must = planar == "contig" or bits == 16
            yield lambda n=name, v=values, m=must, o=options: tiff_case(n, v, m, **o)
    for order, bits, samples in itertools.product("<>", (8, 16), (1, 3)):
        values = scene(size, samples, 2**bits - 1, f"u{bits // 8}")
        photometric = "rgb" if samples == 3 else "minisblack"
        yield lambda v=values, o=order, p=photometric: _bits_reversed(tiff_case("", v, byteorder=o, photometric=p))
    for name in ("tiff_lzw", None):
        image = Image.fromarray(scene(size, 3, 255, "u1")).convert("YCbCr")
        options = {"compression": name} if name else {}
        right = np.asarray(image.convert("RGB")).astype(float)
        yield lambda i=image, o=options, r=right: Case(f"tiff ycbcr by Pillow {o}", encode(i, "TIFF", **o), r)
    yield from (lambda a=arguments: _pages(size, *a) for arguments in itertools.product("<>", (False, True), range(6)))


def _bits_reversed(case: Case) -> Case | None:
    """The same image in FillOrder 2."""
    with tifffile.TiffFile(io.BytesIO(case.data)) as tiff:
        page = tiff.pages[0]
        order, entry = tiff.byteorder, next(tag for tag in page.tags.values() if tag.name == "ResolutionUnit")
        begin, count = page.dataoffsets[0], sum(page.databytecounts)
        deep = page.bitspersample == 16
    data = bytearray(case.data)
    data[begin : begin + count] = imagecodecs.bitorder_encode(bytes(data[begin : begin + count]))
    # In place of a tag that says nothing here, which must stay in its order: Pillow does not mind.
    data[entry.offset : entry.offset + 12] = struct.pack(order + "HHIHH", 266, 3, 1, 2, 0)
    return case._replace(name=f"tiff bits reversed {order} {page.bitspersample}", data=bytes(data), must=not deep)


def _pages(size: Size, order: str, big: bool, number: int) -> Case | None:
    """A thumbnail, by the new tag or the old, before the image; the image in a SubIFD; or all are thumbnails."""
    if big and order == ">":
        return None
    small, whole = scene((8, 8), 3, 255, "u1"), scene(size, 3, 255, "u1")
    file = io.BytesIO()
    first = [{"subfiletype": 1}, {"subfiletype": 3}, {"extratags": [(255, 3, 1, 2, True)]}]
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as tiff:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        if number < 3:
            tiff.write(small, **options, **first[number])
            tiff.write(whole, **options)
        elif number == 3:  # as cameras do
            tiff.write(small, **options, subfiletype=1, subifds=1)
            tiff.write(whole, **options)
        elif number == 4:  # a page, or the image before its thumbnail
            tiff.write(whole, **options, subfiletype=2)
            tiff.write(small, **options, subfiletype=1)
        else:
            tiff.write(whole, **options, subfiletype=1)
            tiff.write(small, **options, subfiletype=1)
    return Case(f"tiff pages {order} {big} {number}", file.getvalue(), whole.astype(float))


# --- PNG

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def pngs(size: Size) -> Iterator[Make]:
    """PNGs of every colour type, depth, interlacing, clear colour and number of significant bits."""
    for colour, depths in _PNG_DEPTHS.items():
        for depth, interlaced, clear, bits in itertools.product(
            depths, (False, True), ("", "hit", "near"), (None, 5, 10, 12, "scaled 10")
        ):
            if not (clear and colour in (4, 6)) and (depth == 16 or bits in (None, 5)):
                yield lambda a=(size, colour, depth, interlaced, clear, bits): _png(*a)


def _png(size: Size, colour: int, depth: int, interlaced: bool, clear: str, bits: int | str | None) -> Case:
    count, top = _PNG_SAMPLES[colour], 2**depth - 1
    used = bits if isinstance(bits, int) and bits > 8 and colour in (0, 2) else None  # against the letter of PNG
    values = scene(size, count, 2**used - 1 if used else top, "u2")
    if bits == "scaled 10":
        values &= 0xFFC0
    if count in (2, 4):
        values[..., -1] = scene(size, 4, top, "u2")[..., 3]
    chunks, alpha = [], np.full((*values.shape[:2], 1), 255.0)
    if bits:
        said = bits if isinstance(bits, int) else 10
        chunks.append(chunk(b"sBIT", bytes([said] * (3 if colour in (2, 3) else count))))
    if colour == 3:
        palette = np.random.default_rng(1).integers(0, 256, (top + 1, 3), np.uint8)
        clears = np.random.default_rng(2 if clear == "hit" else 3).integers(
            0, 256, top + 1 - (clear == "near"), np.uint8
        )
        chunks.append(chunk(b"PLTE", palette.tobytes()))
        rgb = palette[values[..., 0]].astype(float)
        if clear:
            chunks.append(chunk(b"tRNS", clears.tobytes()))
            alpha = np.append(clears, 255)[np.minimum(values, len(clears))].astype(float)
    else:
        levels = (values >> (used or depth) - 8) if depth == 16 else values * (255 // top)
        rgb = levels[..., :3].astype(float) if count > 2 else levels[..., :1].repeat(3, axis=2).astype(float)
        if count in (2, 4):
            alpha = levels[..., -1:].astype(float)
        if clear:
            key = values[5, 7] if clear == "hit" else values[5, 7] ^ 1
            chunks.append(chunk(b"tRNS", struct.pack(f">{count}H", *key)))
            alpha = np.where((values == key).all(axis=2, keepdims=True), 0.0, 255.0)
    parts = [values[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + row for part in parts if part.size for row in _packed(part, depth))
    data = png(size, depth, colour, *chunks, chunk(b"IDAT", zlib.compress(rows)), interlace=int(interlaced))
    return Case(f"png {colour} {depth} {interlaced} {clear} {bits}", data, over_white(rgb, alpha))


def _packed(values: np.ndarray, depth: int) -> Iterator[bytes]:
    for row in values.reshape(len(values), -1):
        if depth >= 8:
            yield row.astype(f">u{depth // 8}").tobytes()
        else:
            yield np.packbits((row[:, None] >> np.arange(depth - 1, -1, -1) & 1).astype(np.uint8)).tobytes()


# --- the others


def others(size: Size) -> Iterator[Make]:
    """JPEG, WebP, GIF and BMP."""
    rgb = scene(size, 3, 255, "u1")
    modes = {"L": rgb[..., 1], "RGB": rgb, "CMYK": scene(size, 4, 255, "u1")}
    for mode, progressive, quality, subsampling in itertools.product(modes, (False, True), (60, 95), (0, 1, 2)):
        options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
        yield lambda m=mode, o=options: _jpeg(f"{m} {o}", encode(Image.fromarray(modes[m], m), "JPEG", **o))
    grey16 = scene(size, 1, 65535, "u2")[..., 0]
    for name, make in {
        "lossless 8": lambda: imagecodecs.ljpeg_encode(rgb[..., 1]),
        "lossless RGB": lambda: imagecodecs.jpeg8_encode(rgb, lossless=True),
        "lossless 16": lambda: imagecodecs.ljpeg_encode(grey16),
        "12 bits": lambda: imagecodecs.jpeg8_encode(grey16 >> 4, bitspersample=12),
        "LS": lambda: imagecodecs.jpegls_encode(rgb),
        "LS 16": lambda: imagecodecs.jpegls_encode(grey16),
        "XL": lambda: imagecodecs.jpegxl_encode(rgb),
        "XR": lambda: imagecodecs.jpegxr_encode(rgb),
        "2000": lambda: imagecodecs.jpeg2k_encode(rgb),
    }.items():
        right = {"lossless 8": rgb[..., 1:2].repeat(3, axis=2), "lossless RGB": rgb}.get(name)
        yield lambda n=name, m=make, r=right: Case(f"jpeg {n}", m(), None if r is None else r.astype(float))
    rgba = np.dstack([rgb, scene(size, 4, 255, "u1")[..., 3]])
    for values, lossless in itertools.product((rgb, rgba), (False, True)):
        yield lambda v=values, n=lossless: _webp(imagecodecs.webp_encode(v, lossless=n, level=80))
    for colours in (2, 16, 256):
        image = Image.fromarray(rgb).quantize(colours)
        right = np.asarray(image.convert("RGB")).astype(float)
        for options in ({}, {"interlace": 0}, {"interlace": 1}):
            yield lambda i=image, o=options, r=right: Case(f"gif {o}", encode(i, "GIF", **o), r)
    yield from _bmps(size)


def _jpeg(name: str, data: bytes) -> Case:
    values = imagecodecs.jpeg8_decode(data).astype(float)
    if values.ndim == 2:
        values = values[..., None].repeat(3, axis=2)
    if values.shape[2] == 4:  # Adobe's, inverted
        values = values[..., :3] * values[..., 3:4] / 255
    return Case(f"jpeg {name}", data, values)


def _webp(data: bytes) -> Case:
    values = imagecodecs.webp_decode(data).astype(float)
    return Case("webp", data, values if values.shape[2] == 3 else over_white(values[..., :3], values[..., 3:]))


def _bmps(size: Size) -> Iterator[Make]:
    width, height = size
    rgb = scene(size, 3, 255, "u1")
    for sign in (1, -1):  # from the bottom up, or from the top down

        def rows(values: np.ndarray, sign: int = sign) -> bytes:
            lines = values[::-sign].reshape(height, -1).view(np.uint8)
            return np.pad(lines, ((0, 0), (0, -lines.shape[1] % 4))).tobytes()

        turned = (width, sign * height)
        for bits in (1, 4, 8):
            index = scene(size, 1, 2**bits - 1, "u1")
            lines = np.stack([np.frombuffer(line, np.uint8) for line in _packed(index, bits)])
            right = np.zeros((height, width, 3))
            right[..., 0] = index[..., 0]  # the palette is of reds
            yield partial(Case, f"bmp {bits}", bmp(turned, bits, rows(lines)), right)
        yield partial(Case, "bmp 24", bmp(turned, 24, rows(rgb[..., ::-1].copy())), rgb.astype(float))
        four = np.dstack([rgb[..., ::-1], np.zeros((height, width), np.uint8)])
        yield partial(Case, "bmp 32", bmp(turned, 32, rows(four)), rgb.astype(float))
        for names, shifts in {"565": ((11, 5), (5, 6), (0, 5)), "555": ((10, 5), (5, 5), (0, 5))}.items():
            word = np.zeros((height, width), np.uint16)
            right = np.zeros((height, width, 3))
            for band, (shift, bits) in enumerate(shifts):
                value = (rgb[..., band] >> 8 - bits).astype(np.uint16)
                word |= value << shift
                right[..., band] = np.floor(value * 255 / (2**bits - 1))
            masks = struct.pack("<III", *[(2**bits - 1) << shift for shift, bits in shifts]) + bytes(4)
            data = bmp(turned, 16, rows(word), 3, 56, masks)
            yield partial(Case, f"bmp {names}", data, right)


CONTAINERS = {"png": pngs, "other": others, "odd tiff": odd_tiffs, "tiff": tiffs}


def wrong(makes: Iterable[Make]) -> tuple[list[str], int]:
    """What is wrong with how these files are decoded, a line for each; and how many files there were."""
    cases = [case for make in makes if (case := make()) is not None]
    found = [(case.name, verdict(case)) for case in cases]
    return [f"{name}: {what}" for name, what in found if what], len(cases)
