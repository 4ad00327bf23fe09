"""A proxy before a server of objects: it counts requests, makes them slow, and does harm to some of them."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Set
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    412: "Precondition Failed",
    500: "Internal Server Error",
    503: "Slow Down",
}
LIMIT = 2**22  # bytes of a request's head


@dataclass(frozen=True)
class Message:
    """A request or an answer: its first line, its headers by their names in small letters, its body."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def method(self) -> str:
        return self.line.partition(" ")[0]

    @property
    def path(self) -> str:
        """Path and query of a request, decoded."""
        return unquote(self.line.split(" ")[1])

    @property
    def conditional(self) -> bool:
        """Whether a request asks for something on a condition."""
        return bool({"if-match", "if-none-match"} & set(self.headers))

    def data(self) -> bytes:
        head = [self.line, *(f"{name}: {value}" for name, value in self.headers.items()), "", ""]
        return "\r\n".join(head).encode() + self.body


@dataclass(frozen=True)
class Harm:
    """What befalls a request.

    Attributes:
        status: answered in place of the server's answer; 0: the connection is cut.
        code: S3's word for it, in the answer's body.
        after: whether the server gets the request all the same, and its answer is lost.
        half: whether half of its answer arrives, and then the connection is cut.
    """

    status: int = 0
    code: str = ""
    after: bool = False
    half: bool = False

    def answer(self, request: Message) -> bytes:
        body = b""
        if self.code and request.method != "HEAD":
            body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>-</Message></Error>".encode()
        return Message(f"HTTP/1.1 {self.status} {REASONS[self.status]}", _length({}, body), body).data()


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        endpoint: its address.
        delay: in seconds, added to each request.
        requests: the method and path of each, decoded.
        answers: status by (method, end of the path), given in place of the server's answer.
        harm: what befalls a request; called once for each.
        dropped: names of headers, in small letters, that the server does not get to see.
        edit: makes another body of an answer's.
    """

    endpoint: str = ""
    delay: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[tuple[str, str], int] = field(default_factory=dict)
    harm: Callable[[Message], Harm | None] = lambda _: None
    dropped: Set[str] = frozenset()
    edit: Callable[[Message, bytes], bytes] = lambda _, body: body

    def count(self, method: str, ending: str = "") -> int:
        """Return how many requests there were of this method to paths that end so."""
        return sum(found == method and path.partition("?")[0].endswith(ending) for found, path in self.requests)

    def befalls(self, request: Message) -> Harm | None:
        path = request.path.partition("?")[0]
        for (method, end), status in self.answers.items():
            if method == request.method and path.endswith(end):
                return Harm(status)
        return self.harm(request)


@contextlib.contextmanager
def proxy(server: str, delay: float = 0.0) -> Iterator[Proxy]:
    """Run a proxy before a server, in a thread."""
    made = Proxy(delay=delay)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            async with _server(server) as ask:
                while (request := await _message(reader)) is not None:
                    answer, goes_on = await _answer(made, request, ask)
                    writer.write(answer)
                    await writer.drain()
                    if not goes_on:
                        break
        writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0, limit=LIMIT)
        made.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        end = asyncio.Event()
        started.put((asyncio.get_running_loop(), end))
        try:
            await end.wait()
        finally:
            listening.close()

    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    loop, end = started.get(timeout=10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


Ask = Callable[[Message], Awaitable[Message]]


async def _answer(made: Proxy, request: Message, ask: Ask) -> tuple[bytes, bool]:
    """What the client gets, and whether its connection stays."""
    made.requests.append((request.method, request.path))
    if made.delay:
        await asyncio.sleep(made.delay)
    harm = made.befalls(request)
    if harm is not None and not harm.after:
        return (harm.answer(request), True) if harm.status else (b"", False)
    kept = {name: value for name, value in request.headers.items() if name not in made.dropped}
    told = await ask(Message(request.line, kept, request.body))
    if harm is not None:
        whole = harm.answer(request) if harm.status else told.data() if harm.half else b""
        return whole[: len(whole) // 2] if harm.half else whole, bool(harm.status)
    body = made.edit(request, told.body)
    return (told if body is told.body else Message(told.line, _length(told.headers, body), body)).data(), True


@contextlib.asynccontextmanager
async def _server(address: str) -> AsyncIterator[Ask]:
    """Yield what asks the server, over one connection, which is opened when it is needed first."""
    connection: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(request: Message) -> Message:
        if not connection:
            at = urlsplit(address)
            connection.append(await asyncio.open_connection(at.hostname, at.port, limit=LIMIT))
        reader, writer = connection[0]
        writer.write(request.data())
        await writer.drain()
        told = await _message(reader, bodiless=request.method == "HEAD")
        if told is None:
            raise ConnectionResetError("the server hung up")
        if told.headers.get("connection", "").lower() == "close":
            connection.pop()[1].close()
        return told

    try:
        yield ask
    finally:
        for _, writer in connection:
            writer.close()


async def _message(reader: asyncio.StreamReader, bodiless: bool = False) -> Message | None:
    """Read a request or an answer, its body whole; None at the connection's end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
    if bodiless or line.split(" ")[1] in ("204", "304"):
        return Message(line, headers, b"")
    if headers.get("transfer-encoding") != "chunked":
        return Message(line, headers, await reader.readexactly(int(headers.get("content-length", 0))))
    body = b""
    while size := int((await reader.readline()).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return Message(line, _length(headers, body), body)


def _length(headers: dict[str, str], body: bytes) -> dict[str, str]:
    kept = {name: value for name, value in headers.items() if name != "transfer-encoding"}
    return kept | {"content-length": str(len(body))}
