"""All errors that penult raises on purpose.

PenultError                 exit 1   one sentence: what is wrong and what to do next
├── UsageError              exit 2   options that contradict one another or name nothing
├── SourceError                      a corpus that cannot be listed or a manifest that cannot be read
│   └── NoPictures                   a corpus without a single image
├── ImageError                       one image that cannot be decoded; becomes a catalog row, never an exit
├── BackboneError                    weights that are missing or not the pinned ones
├── EngineError                      an engine, a precision or a job that this machine cannot run
├── RunnerError                      a Beam runner that cannot be reached or left work undone; the rest is kept
├── StoreError                       the feature store
│   ├── StoreNotFound                no store, or no such feature set or head in it
│   ├── StoreLocked         exit 75  another run holds the store's lock
│   ├── StoreCorrupt                 a checksum, version or file that is not what was committed
│   ├── FormatError                  written by a newer penult
│   ├── BucketError                  a bucket that is not there, cannot be reached, or refuses
│   │   ├── ObjectMissing            no such object
│   │   └── ObjectDenied             these credentials may not read, write, list or delete it
│   └── SpecMismatch                 features or a head of another fingerprint
├── HeadError                        labels or parameters no head can be fitted to, or a damaged artifact
├── TooManyFailures         exit 3   more failures than --max-failure-rate; what was embedded is kept
├── TooManyRemoved          exit 3   a listing lacks more than --max-removed; nothing was removed, the new is kept
├── Blocked                 exit 4   a data check of a retrain; what was embedded is kept, nothing was promoted
├── Interrupted             exit 128 + signal   Ctrl-C or SIGTERM, after what was finished was kept
└── OutOfTime                        --timeout is over, after what was finished was kept

The command line maps a class to its exit code through ``exit_code`` alone.
"""

from __future__ import annotations

import errno
import os
import re


class PenultError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is one sentence for users."""

    exit_code = 1


class UsageError(PenultError):
    """Options that contradict one another or name nothing."""

    exit_code = 2


class SourceError(PenultError):
    """A corpus that cannot be listed or a manifest that cannot be read."""


class NoPictures(SourceError):
    """A corpus without a single image."""


class ImageError(PenultError):
    """One image that cannot be decoded or embedded; ``error_type`` is a short stable word for counting.

    The words: ``empty``, ``not_an_image``, ``truncated``, ``corrupt``, ``too_large``,
    ``unsupported``, ``vanished``, ``unreadable``, ``overflow``, ``crashed``.
    """

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.error_type, str(self))


class BackboneError(PenultError):
    """Weights that are missing or not the pinned ones."""


class EngineError(PenultError):
    """An engine, a precision or a job that this machine cannot run."""


class RunnerError(PenultError):
    """A Beam runner that cannot be reached, or that left shards undone; what was finished is kept."""


class StoreError(PenultError):
    """Base of the errors of the feature store."""


class StoreNotFound(StoreError):
    """No store, or no such feature set or head in it."""


class StoreLocked(StoreError):
    """Another run holds the store's lock."""

    exit_code = 75


class StoreCorrupt(StoreError):
    """A checksum, version or file that is not what was committed; the message ends with what to do."""

    def __str__(self) -> str:
        said = super().__str__()
        if "`penult " in said or re.search(r": remove .+\.$", said):
            return said
        return f"{said.rstrip('.')}; `penult doctor` brings back what can be had."


class FormatError(StoreError):
    """A store, or a part of it, that a newer penult wrote."""


class BucketError(StoreError):
    """A bucket that is not there, cannot be reached, or refuses.

    ``passing``: the next try may go well; ``of_server``: it tells of the bucket or its server, not of one object.
    """

    passing = False
    of_server = True


class ObjectMissing(BucketError):
    """No such object."""


class ObjectDenied(BucketError):
    """These credentials may not read, write, list or delete an object."""


class SpecMismatch(StoreError):
    """Features or a head of another fingerprint."""


class HeadError(PenultError):
    """Labels or parameters that no head can be fitted to, or a damaged artifact."""


class TooManyFailures(PenultError):
    """More failures than ``--max-failure-rate``; what was embedded is kept."""

    exit_code = 3


class TooManyRemoved(PenultError):
    """A listing lacks more than ``--max-removed`` of what its source listed last; nothing was removed."""

    exit_code = 3


class Blocked(PenultError):
    """A data check of a retrain blocked the night; what was embedded is kept, nothing was promoted."""

    exit_code = 4


class Interrupted(PenultError):
    """Ctrl-C or SIGTERM, raised at a safe point; what was finished is kept."""

    def __init__(self, number: int) -> None:
        super().__init__("Interrupted; what was finished is kept, the same command goes on from there.")
        self.exit_code = 128 + number


class OutOfTime(PenultError):
    """``--timeout`` is over, raised at a safe point; what was finished is kept."""

    def __init__(self, timeout: str) -> None:
        super().__init__(
            f"Out of time (--timeout {timeout}); what was finished is kept, the same command goes on from there."
        )


def trouble(error: OSError, path: object) -> str:
    """Return one sentence that says what the system refused and what to do.

    ``path`` is named if the error has no file name. Lance and Arrow give the error number only in their message.
    """
    told = re.search(r"(?:os error|errno) (\d+)", str(error))
    number = error.errno or (int(told[1]) if told else errno.EIO)
    what = {
        errno.ENOSPC: "make room there",
        errno.EDQUOT: "make room there",
        errno.EFBIG: "let files be larger there",
        errno.EROFS: "make it writable, or name another folder",
        errno.EACCES: "give this user the right to, or name another folder",
        errno.EPERM: "give this user the right to, or name another folder",
    }.get(number, "look after that disk")
    return (
        f"{error.filename or path}: {os.strerror(number)}: {what}, then run the same command again; "
        "what was finished is kept."
    )
