"""Decoding of image files to uint8 RGB by the rules "rgb8-v1".

* JPEG, PNG, WebP, GIF (first frame), BMP and TIFF (the first page that is not marked as a thumbnail); nothing else.
* The orientation in the EXIF, or in the XMP if the EXIF has none, is applied.
* ICC profiles and gAMA are ignored, as in Keras and torchvision, and therefore in the training of the backbones. On
  photographs Display P3 is 2 to 4 levels of 255 off on average, Adobe RGB 4 to 5. But linear light is 40 to 51 off: a
  file whose ICC profile says linear light is refused.
* Alpha (a channel, a transparent palette entry, tRNS) is composited over white before the resize.
* Palette, 1-bit, grey, CMYK and YCbCr are converted by Pillow. 16-bit channels keep their high byte. Where a file says
  that it uses fewer of the 16 bits (see ``samples`` and ``tiffs``), they keep the high 8 of those.
* Signed or 32-bit integers and floats: the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all
  values is scaled to 0..255. If none does, the image's own minimum..maximum is. NaN and infinity are refused.
* Zero is black, or white where a TIFF says so. What cannot be decoded correctly is refused as "unsupported".
* JPEG is decoded by libjpeg-turbo with the slow exact DCT and smooth upsampling, bit for bit as Pillow does. A large
  one is decoded at the smallest of 1/8, 1/4 and 1/2 that leaves both sides at least twice what the shortest side is
  resized to: the input size, or more where the centre is cut then. Without antialiasing it is decoded whole.
* Then it becomes a square as the backbone's preprocessing says: the rules are in ``squares``.

Any change to these rules needs a new name, since it changes features. A file decoded contrary to the rules is a bug;
fixing that needs no new name. Until November 2026 the following files were decoded contrary to the rules, and their
vectors may be in a store. Embed such files into a new store.

* TIFF: uncompressed planar samples of 16 bits; "zero is white" in more than 8 bits; big-endian compressed samples that
  are signed, of 32 bits or floats; compressed planar grey with alpha; negative 8-bit samples; 12 bits; a
  MaxSampleValue; a thumbnail first.
* PNG: grey of 2 or 4 bits, or RGB of 16 bits, with a transparent colour; sBIT with samples that are not scaled up.
* All formats: linear light.

For any bytes at all, only ImageError is raised and nothing is printed. Decoding takes at most some 18 bytes of memory
for each of at most MAX_PIXELS pixels, and not much more time than a valid image of that size takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from featurestore.errors import ImageError
from featurestore.machine import available_cores
from featurestore.spec import Preprocessing
from pipelines.images import containers, samples, signatures, squares, tiffs
from pipelines.images.containers import MAX_PIXELS, Container

MAX_SIDE = 2**20  # pixels; a row costs memory however short it is
MESSAGE_LENGTH = 200  # characters kept of a decoder's message

# Plugins are called directly: Image.open would try every format and warn about sizes before we look at them.
_FORMATS: dict[str, tuple[Callable[[bytes], Container], Callable[[BytesIO], ImageFile.ImageFile]]] = {
    "jpeg": (containers.jpeg, JpegImagePlugin.JpegImageFile),
    "png": (containers.png, PngImagePlugin.PngImageFile),
    "webp": (containers.webp, WebPImagePlugin.WebPImageFile),
    "gif": (containers.gif, GifImagePlugin.GifImageFile),
    "bmp": (containers.bmp, BmpImagePlugin.BmpImageFile),
    "tiff": (tiffs.tiff, tiffs.Tiff),
}
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
    """A decoded image.

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


def decode(data: bytes, seen: Preprocessing) -> Picture:
    """Decode a file's bytes to a square of RGB by the rules "rgb8-v1".

    Thread-safe; the GIL is released while JPEGs are decoded and while pixels are resized. Threads wait for one
    another if their images together would take too much memory.

    Args:
        data: the whole file.
        seen: what the backbone sees; all but its normalization counts. Its ``input_size`` is s.

    Raises:
        ImageError: the bytes are not an image that these rules can decode; bytes cause no other error.
        UsageError: there is no such crop, resize, crop ratio or name of rules.
    """
    squares.check(seen)
    try:
        with _loaded(data, squares.decoded_side(seen)) as loaded:
            square = squares.square(loaded.image, loaded.turn, (loaded.width, loaded.height), seen)
            return Picture(np.asarray(square), loaded.width, loaded.height, loaded.format)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise _image_error(error) from error


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
    """Return a small JPEG file of an image, its longer side ``side`` pixels, for reports.

    Raises:
        ImageError: as ``decode``.
    """
    try:
        with _loaded(data, side) as loaded:
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


@contextlib.contextmanager
def _loaded(data: bytes, target: int | None) -> Iterator[_Loaded]:
    """Check the header, then decode to RGB; a JPEG may come out reduced, but not below twice the target, if any."""
    header, container = _header(data)
    image = header.image
    assert isinstance(image, ImageFile.ImageFile)
    is_jpeg = header.format == "jpeg"
    factor = _reduction(image.size, target) if is_jpeg and target else 1
    whole = "progressive" in image.info  # its coefficients are all kept until the last scan
    with _room.taken(image.width * image.height // (1 if whole else factor**2)):
        if is_jpeg:
            yield header._replace(image=_jpeg_to_rgb(container.data, image, factor))
        else:
            yield header._replace(image=samples.to_rgb(image, container, lambda: _opened(header.format, container)))


def _header(data: bytes) -> tuple[_Loaded, Container]:
    """Open an image and check its size, without decoding it; also return its container."""
    _quieten_pillow()
    name = signatures.format_of(data)
    walk, _ = _FORMATS[name]
    container = walk(data)
    image = _opened(name, container)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"The header says {width}×{height} pixels.")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            "too_large", f"{width}×{height} pixels are more than the limit of {MAX_PIXELS:,}, or {MAX_SIDE:,} per side."
        )
    exif, xmp = (container.exif, container.xmp) if name != "webp" else (image.info.get("exif"), image.info.get("xmp"))
    turn = _TURNS.get(containers.orientation(exif, xmp))
    if turn in _SIDEWAYS:
        width, height = height, width
    # Pillow itself applies a TIFF's own orientation tag: to its size on opening, to its pixels on loading.
    return _Loaded(image, turn if name != "tiff" else None, width, height, name), container


def _opened(name: str, container: Container) -> ImageFile.ImageFile:
    """Open an image with its plugin, which decodes nothing yet, and correct what the plugin reads wrongly."""
    _, opener = _FORMATS[name]
    try:
        image = opener(BytesIO(container.data))
    except SyntaxError as error:
        if container.kind and "unknown pixel mode" in str(error):
            raise tiffs.unsupported(container.kind) from error
        raise
    if name == "png" and isinstance(clear := image.info.get("transparency"), int):
        # Pillow scales grey of 2 and 4 bits to 8 bits, but not its transparent value.
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(samples.rawmode(image), 1)
    icc = container.icc or image.info.get("icc_profile")
    if icc and containers.is_linear(icc):
        raise ImageError("unsupported", "Its ICC profile says linear light (gamma 1): convert it to sRGB.")
    return image


class _Room:
    """A limit on the pixels that threads work on at one time: one image of the largest size, or many small ones."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._line, self._changed = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room, first come, first served, so that small images never block a large one."""
        with self._line, self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify()


_room = _Room(max(MAX_PIXELS, 2**24 * available_cores()))


def _reduction(size: tuple[int, int], target: int) -> int:
    """Return the factor by which a JPEG may be reduced as it is decoded."""
    return next((factor for factor in (8, 4, 2) if -(-min(size) // factor) >= 2 * target), 1)


def _jpeg_to_rgb(data: bytes, image: ImageFile.ImageFile, factor: int) -> Image.Image:
    """Decode with simplejpeg, whose strict mode notices damage that Pillow ignores."""
    scan_start = image.fp.tell() if image.fp else 0  # the header is read up to there
    width, height = image.size
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
        return Image.fromarray(np.subtract(255, pixels, out=pixels), "CMYK").convert("RGB")
    # Pillow keeps RGB in four bytes per pixel: Arrow hands them over without the copy that fromarray makes.
    height, width, channels = pixels.shape
    rows = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), channels)
    return Image.fromarrow(rows, "RGB", (width, height))


def _jpeg_damage(warning: str, scan: bytes) -> str | None:
    """Return the error type for a libjpeg warning, or None if the pixels are intact."""
    if "Premature end of JPEG file" in warning:
        return "truncated"
    if "premature end of data" in warning or "bad Huffman" in warning or "Inconsistent progression" in warning:
        return "corrupt"
    # Junk before a marker is common and harmless. But a zeroed block may also decode into too few codes, and its
    # remaining bytes give the same warning. Entropy-coded data has no long runs of zeros; padding before the end marker
    # may have.
    if "extraneous bytes" in warning and bytes(32) in scan.removesuffix(b"\xff\xd9").rstrip(b"\0"):
        return "corrupt"
    return None


def _image_error(error: Exception) -> ImageError:
    """Turn any error of the decoders into an ImageError with one of the words that failures are counted by."""
    if isinstance(error, ImageError):
        return error
    text = (str(error) or type(error).__name__)[:MESSAGE_LENGTH]
    lower = text.lower()
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        return ImageError("too_large", f"The image is too large to decode ({text}).")
    if isinstance(error, EOFError) or any(
        word in lower for word in ("truncated", "incomplete", "unpack", "end of file", "not enough")
    ):
        return ImageError("truncated", f"The image ends too early ({text}).")
    if isinstance(error, NotImplementedError) or any(
        word in lower for word in ("supported", "cannot handle", "unknown pixel mode")
    ):
        return ImageError("unsupported", f"This kind of image is not supported ({text}).")
    return ImageError("corrupt", f"The image is damaged ({text}).")


# Pillow warns about odd metadata that does not affect the pixels, and logs what it raises anyway; neither names a file.
_PILLOW_WARNINGS = r"PIL\."
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# libtiff prints what is wrong with a file, and Pillow raises it as well. So libtiff's handlers, which are global to the
# process, are removed. They are reached through Pillow's module, which is linked with libtiff.
with contextlib.suppress(OSError, AttributeError):  # libtiff is linked in another way
    _libtiff = ctypes.CDLL(Image.core.__file__)
    _libtiff.TIFFSetErrorHandler(None)
    _libtiff.TIFFSetWarningHandler(None)


def _quieten_pillow() -> None:
    """Keep Pillow's warnings out of the user's log.

    ``catch_warnings`` is not thread-safe before Python 3.14. So a filter for Pillow's modules alone is added once,
    and again only if something, such as pytest, restored the list of filters.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or getattr(first[3], "pattern", None) != _PILLOW_WARNINGS:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS)
