"""Tell the format of a file by its first bytes: those that are decoded, and those that are refused by their name."""

from __future__ import annotations

from featurestore.errors import ImageError
from pipelines.sources.uris import MAX_FILE_BYTES

_SUPPORTED = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"RIFF", "webp"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)
_UNSUPPORTED = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
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


def format_of(data: bytes) -> str:
    """Return the format of a file's bytes: "jpeg", "png", "webp", "gif", "bmp" or "tiff".

    Raises:
        ImageError: "empty", "too_large", "unsupported" or "not_an_image".
    """
    if not data:
        raise ImageError("empty", "The file is empty.")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError("too_large", f"{len(data):,} bytes are more than the limit of {MAX_FILE_BYTES:,}.")
    for magic, name in _SUPPORTED:
        if data.startswith(magic) and (name != "webp" or data[8:12] == b"WEBP"):
            return name
    if data[4:8] == b"ftyp":
        raise _unsupported(data[8:12].decode("latin-1").upper())
    for magic, name in _UNSUPPORTED:
        if data.startswith(magic):
            raise _unsupported(name)
    raise ImageError("not_an_image", f"The file begins with {data[:8]!r}, which no image format does.")


def _unsupported(name: str) -> ImageError:
    return ImageError("unsupported", f"{name} is not supported: convert it to JPEG, PNG, WebP or TIFF.")
