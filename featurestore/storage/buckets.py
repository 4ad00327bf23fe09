"""Objects in buckets, and behind web addresses: read, listed, and written on conditions.

A location is a URI: ``s3://bucket/key``, ``gs://bucket/key``, ``az://container/key``, with the key as it is, and
``https://host/path`` (read only), with the path percent-encoded. All requests are retried with growing pauses. What a
server answers becomes one sentence that says what happened and what to do.

This module alone imports obstore, which speaks to all of these services.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, unquote

import obstore
from obstore import exceptions, store

from featurestore.errors import BucketError, ObjectMissing, UsageError
from featurestore.storage.answers import BrokenOff, PastEnd, error_for
from featurestore.storage.settings import ALLOW_HTTP, settings

MAX_TRIES = 9
MAX_TIME = timedelta(minutes=3)  # of all tries of a request
MAX_PAUSE = 5.0  # seconds between two tries
FIRST_PAUSE = 0.1
TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "15min"}  # the last is for the largest objects
LIST_ROWS = 1000  # what servers give at once
PART_BYTES = 16 * 2**20  # of an upload in parts; 10,000 parts are the most that S3 takes
CREATE = "create"  # a mode of ``put``
SPOKE = re.compile("Error performing|HTTP error|status code")  # in errors of a client of a server

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """What differs between services: the client's class, and what identifies the state of an object."""

    client: Any
    tag: str = "e_tag"


SERVICES = {
    "s3": Service(store.S3Store),
    "gs": Service(store.GCSStore, "version"),
    "az": Service(store.AzureStore),
    "http": Service(store.HTTPStore),
    "https": Service(store.HTTPStore),
}
WEB = ("http", "https")


@dataclass(frozen=True)
class Address:
    """The parts of a URI; ``key`` is empty for a bucket, and is never percent-encoded."""

    scheme: str
    bucket: str
    key: str

    @property
    def root(self) -> str:
        """The URI of the bucket or host."""
        return f"{self.scheme}://{self.bucket}"

    def uri(self, key: str) -> str:
        """Return the URI of a key in the same bucket."""
        return f"{self.root}/{quote(key) if self.scheme in WEB else key}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a service tells of an object without its bytes.

    Attributes:
        uri: where it is.
        size: bytes.
        token: changes whenever the object is replaced, for ``put``: its ETag, on gs its generation.
        etag: changes whenever the object is replaced; None where a host gives none.
        version: of a versioned bucket, or None.
        modified_ns: when it was last written, in nanoseconds since 1970; services give whole seconds.
    """

    uri: str
    size: int
    token: str | None
    etag: str | None
    version: str | None
    modified_ns: int


def is_remote(location: object) -> bool:
    """Return whether a location is a URI of a bucket or of the web."""
    return str(location).partition("://")[0] in SERVICES and "://" in str(location)


def address(uri: str) -> Address:
    """Return the parts of a URI.

    Raises:
        UsageError: it names no bucket, or asks for more than a path.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    web = scheme in WEB
    if scheme not in SERVICES or not bucket or (web and set("?#") & set(rest)):
        raise UsageError(f"Expected: {', '.join(f'{name}://' for name in SERVICES)} and a place there. Got: {uri!r}.")
    return Address(scheme, bucket, (unquote(key) if web else key).strip("/"))


def client(uri: str, once: bool = False) -> Any:
    """Return the client of a URI's bucket, the same as long as the environment stays; ``once``: without retries."""
    at = address(uri)
    return _client(at.scheme, at.bucket, once, tuple(sorted(settings(at.scheme).items())))


@lru_cache(maxsize=64)
def _client(scheme: str, bucket: str, once: bool, variables: tuple[tuple[str, str], ...]) -> Any:
    pauses = {"init_backoff": timedelta(seconds=FIRST_PAUSE), "max_backoff": timedelta(seconds=MAX_PAUSE), "base": 2}
    retry = {"max_retries": 0 if once else MAX_TRIES - 1, "backoff": pauses, "retry_timeout": MAX_TIME}
    options = TIMEOUTS | ({"allow_http": True} if scheme == "http" else {})
    kind = SERVICES[scheme].client
    if scheme in WEB:
        return kind.from_url(f"{scheme}://{bucket}", client_options=options, retry_config=retry)
    service, allowed = _split(dict(variables))
    return kind(bucket, config=service, client_options=options | allowed, retry_config=retry)


def _split(variables: dict[str, str]) -> tuple[dict[str, str], dict[str, bool]]:
    """Return the settings of the service as obstore and Lance call them, and those of the connection."""
    service = {name.lower(): value for name, value in variables.items() if not name.endswith(ALLOW_HTTP)}
    allowed = [value for name, value in variables.items() if name.endswith(ALLOW_HTTP)]
    return service, {"allow_http": True} if any(value.lower() in ("true", "1") for value in allowed) else {}


def storage_options(uri: str) -> dict[str, str]:
    """Return the settings of a URI's bucket as Lance takes them; it is to be as patient as ``client``'s."""
    service, allowed = _split(settings(address(uri).scheme))
    patience = {"client_max_retries": MAX_TRIES - 1, "client_retry_timeout": round(MAX_TIME.total_seconds())}
    return service | {name: str(value).lower() for name, value in (allowed | patience).items()}


def _again(act: Callable[P, T]) -> Callable[P, T]:
    """Let something be done again where its answer broke off: obstore asks again for the bytes of objects alone."""

    @wraps(act)
    def acted(*arguments: P.args, **options: P.kwargs) -> T:
        for _ in range(MAX_TRIES - 1):
            with suppress(BrokenOff):
                return act(*arguments, **options)
            time.sleep(FIRST_PAUSE)
        return act(*arguments, **options)

    return acted


@_again
def head(uri: str) -> ObjectInfo | None:
    """Return what is at a URI; None if there is nothing, or no bucket.

    Raises:
        BucketError: the bucket cannot be reached, or refuses.
    """
    at = address(uri)
    try:
        with _answers(uri, "read"):
            return _info(at, obstore.head(client(uri), at.key)) if at.key else None
    except ObjectMissing:
        return None
    except BucketError as error:
        if error.passing:
            raise
    with _answers(uri, "read"):  # an answer without a body, as that was, does not say why
        return _info(at, obstore.get(client(uri), at.key, options={"range": (0, 1)}).meta)


@_again
def get(
    uri: str, start: int | None = None, size: int | None = None, etag: str | None = None
) -> tuple[bytes, ObjectInfo]:
    """Read an object, or ``size`` bytes from ``start`` (to its end without a size), in one request.

    From behind its end, and from an empty object, no bytes are read.

    Raises:
        BucketError: with an ``etag``: the object has another one by now.
        ObjectMissing: there is no such object.
        ObjectDenied: it may not be read.
        BucketError: the bucket is not there, cannot be reached, or refuses.
    """
    at = address(uri)
    options: Any = {} if etag is None else {"if_match": etag}
    if start or size is not None:
        first = start or 0
        options["range"] = {"offset": first} if size is None else (first, first + size)
    try:
        with _answers(uri, "read"):
            found = obstore.get(client(uri), at.key, options=options)
            return found.bytes().to_bytes(), _info(at, found.meta)
    except PastEnd:
        if (info := head(uri)) is None:
            raise
        return b"", info
    except _Lost as error:
        raise BucketError(f"{uri} was replaced while it was read: run this again.") from error


@_again
def get_file(uri: str, path: Path) -> ObjectInfo:
    """Write an object's bytes to a local file, in bounded memory; raise what ``get`` raises."""
    at = address(uri)
    with _answers(uri, "read"):
        found = obstore.get(client(uri), at.key)
        with path.open("wb") as file:
            for chunk in found.stream(min_chunk_size=PART_BYTES // 2):
                file.write(chunk)
        return _info(at, found.meta)


def listed(prefix: str) -> Iterator[ObjectInfo]:
    """Yield all objects below a prefix, at any depth, in the order of their keys; memory stays bounded.

    Raises:
        ObjectDenied: the bucket may not be listed.
        BucketError: there is no such bucket, it cannot be reached, or refuses.
    """
    at, last, tries = address(prefix), None, 1
    while True:
        try:
            with _answers(prefix, "list"):
                for found in obstore.list(client(prefix), at.key or None, offset=last, chunk_size=LIST_ROWS):
                    for one in found:
                        last, tries = one["path"], 1
                        if last != at.key:
                            yield _info(at, one)
            return
        except BrokenOff:  # see ``_again``
            if tries == MAX_TRIES:
                raise
        tries += 1
        time.sleep(FIRST_PAUSE)


@_again
def level(prefix: str) -> tuple[list[ObjectInfo], list[str]]:
    """Return the objects right below a prefix, and the URIs of the prefixes there; raise what ``listed`` raises."""
    at = address(prefix)
    with _answers(prefix, "list"):
        found = obstore.list_with_delimiter(client(prefix), at.key or None)
    objects = [_info(at, one) for one in found["objects"] if one["path"] != at.key]
    return objects, [at.uri(key) for key in found["common_prefixes"]]


def put(uri: str, data: bytes, mode: str | None = None) -> str | None:
    """Write an object; return its token, or None if the condition did not hold.

    Args:
        uri: where.
        data: its bytes.
        mode: ``CREATE``, to write only where nothing is; or a token, to write only over what has it. The default
            writes over whatever is there.

    Raises:
        ObjectDenied: it may not be written.
        BucketError: there is no such bucket, it cannot be reached, or refuses.
    """
    if mode is None:
        return _put_over(uri, data)
    return _put_if(uri, data, mode if mode == CREATE else {SERVICES[address(uri).scheme].tag: mode})


@_again
def _put_over(uri: str, data: bytes) -> str | None:
    at = address(uri)
    with _answers(uri, "write"):
        return _token(at, obstore.put(client(uri), at.key, data))


def _put_if(uri: str, data: bytes, how: Any) -> str | None:
    """Write on a condition. A try that seemed to fail may have written: then the bytes that are there tell."""
    at, unsure = address(uri), False
    for number in range(MAX_TRIES):
        try:
            with _answers(uri, "write"):
                return _token(at, obstore.put(client(uri, once=True), at.key, data, mode=how))
        except _Lost as lost:
            if lost.certain and not unsure:
                return None
            if lost.certain:
                there = _bytes_and_token(uri)
                return there[1] if there and there[0] == data else None
        except BucketError as error:
            if not error.passing or number == MAX_TRIES - 1:
                raise
            unsure = True
        time.sleep(min(MAX_PAUSE, FIRST_PAUSE * 2**number))
    raise _Lost(uri, certain=False)


def _bytes_and_token(uri: str) -> tuple[bytes, str | None] | None:
    try:
        data, info = get(uri)
    except ObjectMissing:
        return None
    return data, info.token


@_again
def put_file(uri: str, path: Path) -> None:
    """Write a local file to an object, in parts if it is large; raise what ``put`` raises."""
    with _answers(uri, "write"):
        obstore.put(client(uri), address(uri).key, path, chunk_size=PART_BYTES)


@_again
def delete(uris: str | Sequence[str]) -> None:
    """Delete objects of one bucket; those that do not exist count as deleted.

    Raises:
        ObjectDenied: they may not be deleted.
        BucketError: there is no such bucket, it cannot be reached, or refuses.
    """
    several = [uris] if isinstance(uris, str) else list(uris)
    if several:
        try:
            with _answers(several[0], "delete"):
                obstore.delete(client(several[0]), [address(uri).key for uri in several])
        except ObjectMissing:
            return


@_again
def copy(uri: str, to: str) -> None:
    """Copy an object within its bucket, on the server; raise what ``get`` and ``put`` raise."""
    with _answers(uri, "read"):
        obstore.copy(client(uri), address(uri).key, address(to).key)


def refusal(uri: str, error: BaseException) -> BucketError | None:
    """Return what a server said, if another client's error on a URI tells of a server's answer or silence."""
    at = address(uri)
    told = error_for(error, uri, at.root, "read", settings(at.scheme))
    return told if told.of_server and SPOKE.search(str(error)) else None


def _info(at: Address, told: Any) -> ObjectInfo:
    modified: datetime = told["last_modified"]
    when = round(modified.timestamp()) * 10**9
    return ObjectInfo(at.uri(told["path"]), told["size"], _token(at, told), told["e_tag"], told["version"], when)


def _token(at: Address, told: Any) -> str | None:
    return told[SERVICES[at.scheme].tag]


class _Lost(BucketError):
    """The condition of a put did not hold; not ``certain`` if the server saw another put under way."""

    def __init__(self, uri: str, certain: bool) -> None:
        super().__init__(f"Others keep writing {uri}: stop them, then run this again.")
        self.certain = certain


@contextmanager
def _answers(uri: str, verb: str) -> Iterator[None]:
    """Turn what obstore raises into an error for users."""
    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise _Lost(uri, certain=" 409 " not in str(error).split("\n\nDebug")[0]) from error
    except (exceptions.BaseError, OSError, ValueError, NotImplementedError) as error:
        at = address(uri)
        raise error_for(error, uri, at.root, verb, settings(at.scheme)) from error
