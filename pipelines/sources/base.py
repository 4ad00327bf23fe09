"""What lists images and what reads them: the protocols ``SourceKind`` and ``Place``, and the ``Entry`` of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pipelines.sources.listing import Listing


class Entry(NamedTuple):  # a frozen dataclass takes four times as long to make
    """One image of a corpus.

    Attributes:
        uri: where it is; the key of its catalog row.
        size: in bytes, -1 if it is not a readable regular file.
        mtime_ns: of the file, for a tar member of the tar; 0 if unknown. With the size it is the change token, see
            ``Place``; the image of a table's row has those of the table.
        offset: of a tar member's data within the tar, the number of a table's row, -1 for a plain file.
        label: class name, or None.
        split: "train", "val", "test", or None.
        group: images of one group are always in the same split; or None. In a folder, files of a class whose names
            agree up to ``_nohash_`` are one group, as in TensorFlow's retrain.py.
    """

    uri: str
    size: int
    mtime_ns: int
    offset: int = -1
    label: str | None = None
    split: str | None = None
    group: str | None = None


class SourceKind(Protocol):
    """One kind of source, such as folders; ``kinds.register`` adds one from outside.

    Example:
        >>> class Colours(SourceKind):
        ...     name, looked_for = "colours", "names of colours"
        ...     def owns(self, location: str) -> bool:
        ...         return location.startswith("colours://")
        ...     def entries(self, listing: Listing) -> Iterator[Entry]:
        ...         yield from (Entry(f"{listing.location}{n}", 1, 0, label=n) for n in ("red", "blue"))
        >>> Colours().owns("colours://"), Colours().owns("photos")
        (True, False)

    Attributes:
        name: the word for it in messages, such as "folder".
        looked_for: what such a source should hold, said where it has no images.
        endings: how its locations end, in lower case, such as (".tar",); none if it is not known by its ending.
        is_label_file: whether `penult label` may read it: a file of rows that people write.
    """

    name: str
    looked_for: str
    endings: tuple[str, ...] = ()
    is_label_file: bool = False

    def owns(self, location: str) -> bool:
        """Return whether what is at this location is a source of this kind; the next kind is asked if not.

        Raises:
            SourceError: it is of this kind, and cannot be used as it is.
        """
        ...

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the images below ``listing.location`` one by one, in the same order each time.

        It stands in the loop over millions of images: it holds none of them. An image that cannot be read is yielded
        with size -1. A part that cannot be listed is told by ``listing.could_not_list``, else its images would be
        taken for removed.

        Raises:
            SourceError: nothing can be listed, or what is listed contradicts itself.
        """
        ...


class Blob(Protocol):
    """A file that is read at random, wherever it lies.

    Attributes:
        size: in bytes.
        mtime_ns: with the size, its change token, see ``Place``.
    """

    size: int
    mtime_ns: int

    def pread(self, size: int, start: int) -> bytes:
        """Read ``size`` bytes from ``start`` on, fewer if the file ends before.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def data_at(self, start: int) -> int:
        """Return where data begin from ``start`` on, past a hole; -1 if nothing but a hole follows."""
        return start


class Place(Protocol):
    """What the URIs of one scheme point to, such as this machine's files; ``places.register`` adds one from outside.

    An image whose change token is the one in its catalog row is unchanged, and is not read again. The token is the pair
    (size, mtime_ns), two int64 numbers. A place that knows no time of change gives 63 bits of what it knows instead: of
    an ETag, ``int.from_bytes(sha256(etag).digest()[:8]) >> 1``. What lists an image, ``locate`` and ``read`` must give
    the same token as long as the image is the same.

    Beam may run in other processes: what is registered here must be registered there too.

    Attributes:
        scheme: of its URIs, such as "file" for ``file:///folder/image.jpg``.
        in_flight: how many requests to have under way at once: 1 for a disk, more over a network.
    """

    scheme: str
    in_flight: int = 1

    def canonical(self, uri: str) -> str:
        """Return the one spelling of an image's URI that stands in the catalog.

        Raises:
            SourceError: it is no URI of this place.
        """
        ...

    def source_uri(self, location: str) -> str:
        """Return the URI of a source, the same however its location was typed; the source need not exist."""
        return self.canonical(location)

    def locate(self, uri: str) -> Entry:
        """Return the unlabelled entry of a URI; size -1 and mtime_ns 0 where there is no such image."""
        ...

    def read(self, uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
        """Read an image's bytes.

        Args:
            uri: which image.
            offset: as in its entry, -1 if not known.
            size: as in its entry, -1 if not known.

        Returns:
            data, and the change token of what was read: size and mtime_ns.

        Raises:
            ImageError: "vanished", "unreadable", "truncated" or "too_large".
        """
        ...

    def open(self, uri: str) -> AbstractContextManager[Blob]:
        """Open the file of a URI for reading at random; what is behind ``#`` does not count.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        ...
