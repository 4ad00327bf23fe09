"""Bytes to uint8 RGB, and every way that can fail: the rules "rgb8-v1".

* JPEG, PNG, WebP, GIF (first frame), BMP and TIFF (first page); nothing else.
* EXIF orientation is applied, after the resize. ICC profiles are ignored.
* Alpha (a channel, a transparent palette entry, tRNS) is composited over white before the resize.
* Palette, 1-bit, grey, CMYK and YCbCr are converted by Pillow. 16-bit channels keep their high byte.
* 32-bit integers and floats: the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all
  values becomes 0..255, else the picture's own minimum..maximum does. NaN and infinity are refused.
* JPEG is decoded by libjpeg-turbo with the slow exact DCT and smooth upsampling, bit for bit what Pillow
  gives. A large one is decoded at 1/8, 1/4 or 1/2, the smallest that leaves both sides at least twice the target.
* Pillow's antialiased BILINEAR then makes the square: "squash" takes the whole rectangle, "center" its largest
  central square, "pad" keeps the whole rectangle in shape and adds black, as Keras's pad_to_aspect_ratio does.

Any change to these rules is a new name for them, since it moves features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from featurestore.errors import ImageError, UsageError
from featurestore.spec import CROPS
from pipelines.sources import MAX_FILE_BYTES

MAX_PIXELS = 89_478_485  # Pillow's own limit, 256 MiB of RGB

# Plugins are called directly: Image.open would try every format and warn about sizes before we look at them.
_OPENERS: tuple[tuple[bytes, str, Callable[[BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", "jpeg", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "png", PngImagePlugin.PngImageFile),
    (b"RIFF", "webp", WebPImagePlugin.WebPImageFile),
    (b"GIF87a", "gif", GifImagePlugin.GifImageFile),
    (b"GIF89a", "gif", GifImagePlugin.GifImageFile),
    (b"BM", "bmp", BmpImagePlugin.BmpImageFile),
    (b"II*\0", "tiff", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", "tiff", TiffImagePlugin.TiffImageFile),
    (b"II+\0", "tiff", TiffImagePlugin.TiffImageFile),
    (b"MM\0+", "tiff", TiffImagePlugin.TiffImageFile),
)
_UNSUPPORTED = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    *((b"P%d%c" % (n, space), "PNM") for n in range(1, 7) for space in b"\n\r\t "),
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: uint8 (s, s, 3), RGB; read-only.
        width: of the original in pixels, after EXIF orientation.
        height: of the original in pixels, after EXIF orientation.
        format: "jpeg", "png", "webp", "gif", "bmp" or "tiff".
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str


class _Loaded(NamedTuple):
    image: Image.Image  # not yet turned; once decoded, RGB, and a JPEG may be reduced
    turn: Image.Transpose | None
    width: int  # of the original, turned
    height: int
    format: str


def decode(data: bytes, input_size: int, crop: str = "squash") -> Picture:
    """Decode a file's bytes to a square of RGB by the rules "rgb8-v1".

    Thread-safe; the GIL is released while JPEGs are decoded and while pixels are resized.

    Args:
        data: the whole file.
        input_size: s, the side of the square in pixels.
        crop: how a rectangle becomes a square, one of ``featurestore.spec.CROPS``.

    Raises:
        ImageError: the bytes are not a picture these rules can decode; nothing else is raised for bytes.
        UsageError: the crop rule is unknown.
    """
    if crop not in CROPS:
        raise UsageError(f"Expected: crop {', '.join(CROPS)}. Got: {crop!r}.")
    try:
        loaded = _load(data, input_size)
        square = _square(loaded.image, input_size, crop)
        if loaded.turn is not None:
            square = square.transpose(loaded.turn)
        return Picture(np.asarray(square), loaded.width, loaded.height, loaded.format)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise _image_error(error) from error


def _square(image: Image.Image, side: int, crop: str) -> Image.Image:
    width, height = image.size
    if crop == "pad":
        scale = side / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        padded = Image.new("RGB", (side, side))
        padded.paste(image.resize(inner, Image.Resampling.BILINEAR), ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return padded
    box = None
    if crop == "center":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BILINEAR, box)


def measure(data: bytes) -> tuple[int, int, str]:
    """Return width, height (after EXIF orientation) and format from the header, decoding no pixels.

    Raises:
        ImageError: as ``decode``, as far as a header can tell.
    """
    try:
        header, _ = _header(data)
        return header.width, header.height, header.format
    except Exception as error:
        raise _image_error(error) from error


def thumbnail(data: bytes, side: int = 160) -> bytes:
    """Return a small JPEG file of a picture, its longer side ``side`` pixels, for reports.

    Raises:
        ImageError: as ``decode``.
    """
    try:
        loaded = _load(data, side)
        image = loaded.image
        scale = side / max(image.size)
        small = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            Image.Resampling.BILINEAR,
        )
        if loaded.turn is not None:
            small = small.transpose(loaded.turn)
        file = BytesIO()
        small.save(file, "JPEG", quality=85)
        return file.getvalue()
    except Exception as error:
        raise _image_error(error) from error


def _load(data: bytes, target: int) -> _Loaded:
    """Check the header, then decode to RGB; a JPEG may come out reduced, but not below twice the target."""
    header, image = _header(data)
    return header._replace(image=_jpeg_to_rgb(data, image, target) if header.format == "jpeg" else _to_rgb(image))


def _header(data: bytes) -> tuple[_Loaded, ImageFile.ImageFile]:
    """Open a picture and check its size; nothing is decoded yet."""
    _quieten_pillow()
    name, image = _open(data)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"The header says {width}×{height} pixels.")
    if width * height > MAX_PIXELS:
        raise ImageError("too_large", f"{width}×{height} pixels are more than the limit of {MAX_PIXELS:,}.")
    # TIFF's Orientation is already in this size, and Pillow turns the pixels itself as it loads them.
    turn = None if name == "tiff" else _turn(image)
    if turn in _SIDEWAYS:
        width, height = height, width
    return _Loaded(image, turn, width, height, name), image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # garbled EXIF says nothing against the pixels
        return None


def _open(data: bytes) -> tuple[str, ImageFile.ImageFile]:
    """Find the format by its first bytes and read the header, no pixels."""
    if not data:
        raise ImageError("empty", "The file is empty.")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError("too_large", f"{len(data):,} bytes are more than the limit of {MAX_FILE_BYTES:,}.")
    for magic, name, opener in _OPENERS:
        if data.startswith(magic) and (name != "webp" or data[8:12] == b"WEBP"):
            if name == "png":  # decoding alone skips the checksums
                opener(BytesIO(data)).verify()
            if name == "webp" and int.from_bytes(data[4:8], "little") + 8 > len(data):
                raise ImageError("truncated", "The picture is shorter than its header says.")
            return name, opener(BytesIO(data))
    if data[4:8] == b"ftyp":
        raise _unsupported(data[8:12].decode("latin-1").upper())
    for magic, name in _UNSUPPORTED:
        if data.startswith(magic):
            raise _unsupported(name)
    raise ImageError("not_an_image", f"The file begins with {data[:8]!r}, which no picture format does.")


def _unsupported(name: str) -> ImageError:
    return ImageError("unsupported", f"{name} is not supported: convert it to JPEG, PNG, WebP or TIFF.")


def _jpeg_to_rgb(data: bytes, image: ImageFile.ImageFile, target: int) -> Image.Image:
    """Decode with simplejpeg, whose strict mode notices the damage that Pillow passes over."""
    scan_start = image.fp.tell() if image.fp else 0  # the header is read up to there
    width, height = image.size
    factor = next((f for f in (8, 4, 2) if -(-min(width, height) // f) >= 2 * target), 1)
    colors = "CMYK" if image.mode == "CMYK" else "RGBX"
    try:
        pixels = simplejpeg.decode_jpeg(
            data, colorspace=colors, min_width=-(-width // factor), min_height=-(-height // factor)
        )
    except ValueError as error:
        if damage := _jpeg_damage(str(error), data[scan_start:]):
            raise ImageError(damage, f"The JPEG data is damaged ({error}).") from error
        # Harmless, or a JPEG of a kind that only Pillow reads. draft() reduces by the same factors.
        image.draft(None, (width // factor, height // factor))
        return image.convert("RGB")
    if colors == "CMYK":  # inverted, as Adobe writes it and Pillow assumes it
        return Image.fromarray(255 - pixels, "CMYK").convert("RGB")
    # Pillow keeps RGB in four bytes a pixel: Arrow hands them over without the copy that fromarray makes.
    height, width, channels = pixels.shape
    rows = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), channels)
    return Image.fromarrow(rows, "RGB", (width, height))


def _jpeg_damage(warning: str, scan: bytes) -> str | None:
    """Judge a libjpeg warning: an error type, or None where the pixels are whole."""
    if "Premature end of JPEG file" in warning:
        return "truncated"
    if "premature end of data" in warning or "bad Huffman" in warning or "Inconsistent progression" in warning:
        return "corrupt"
    # Junk before a marker is common and harmless, but a zeroed block too may decode into too few codes and
    # leave a rest. Entropy-coded data has no long runs of zeros; padding before the end marker may.
    if "extraneous bytes" in warning and bytes(32) in scan.removesuffix(b"\xff\xd9").rstrip(b"\0"):
        return "corrupt"
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        clear = values == image.info.get("transparency", -1)
        return _gray(np.where(clear, 255, values >> 8))
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(339, (1,))[0] == 1:
            values = values.view(np.uint32)  # SampleFormat 1 is unsigned, Pillow's mode I is signed
        return _gray(_scale(values))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scale(values: np.ndarray) -> np.ndarray:
    """Bring 32-bit integers or floats to 0..255 by the rule in the module's docstring."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("unsupported", "The picture holds NaN or infinity: replace them by numbers.")
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0.0, top
    return np.rint((values.astype(np.float64) - low) * (255 / ((high - low) or 1.0)))


def _gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _image_error(error: Exception) -> ImageError:
    """Give whatever the decoders raised one of the words that failures are counted by."""
    if isinstance(error, ImageError):
        return error
    text = str(error) or type(error).__name__
    lower = text.lower()
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        return ImageError("too_large", f"The picture is too large to decode ({text}).")
    if isinstance(error, EOFError) or any(
        word in lower for word in ("truncated", "incomplete", "unpack", "end of file")
    ):
        return ImageError("truncated", f"The picture ends too early ({text}).")
    if isinstance(error, NotImplementedError) or any(
        word in lower for word in ("unsupported", "not supported", "cannot handle", "unknown pixel mode")
    ):
        return ImageError("unsupported", f"This kind of picture is not supported ({text}).")
    return ImageError("corrupt", f"The picture is damaged ({text}).")


# Pillow warns about odd metadata that does not touch the pixels.
_PILLOW_WARNINGS = r"PIL\."


def _quieten_pillow() -> None:
    """Keep Pillow's warnings out of the user's log.

    ``catch_warnings`` is not thread-safe before Python 3.14, so a filter for Pillow's modules alone is added,
    again only if something (pytest, say) restored the list.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or getattr(first[3], "pattern", None) != _PILLOW_WARNINGS:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS)
