"""A proxy before a server of objects: it counts requests, makes them slow, and answers some of them itself."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

REASONS = {403: "Forbidden", 404: "Not Found", 500: "Internal Server Error", 503: "Slow Down"}


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        endpoint: its address.
        delay: in seconds, added to each request.
        requests: the method and path of each, decoded.
        answers: status by (method, end of the path), given in place of the server's answer.
    """

    endpoint: str = ""
    delay: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, method: str, ending: str = "") -> int:
        """Return how many requests there were of this method to paths that end so."""
        return sum(found == method and path.partition("?")[0].endswith(ending) for found, path in self.requests)


@contextlib.contextmanager
def proxy(server: str, delay: float = 0.0) -> Iterator[Proxy]:
    """Run a proxy before a server, in a thread."""
    made = Proxy(delay=delay)
    host, port = urlsplit(server).hostname, urlsplit(server).port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, port)
        answering = asyncio.create_task(_pass_on(back, writer))
        try:
            while data := await reader.read(2**20):
                method, _, rest = data[:8192].partition(b" ")
                if method in (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"):  # else the rest of a request's body
                    path = unquote(rest.partition(b" ")[0].decode())
                    made.requests.append((method.decode(), path))
                    if made.delay:
                        await asyncio.sleep(made.delay)
                    if status := _answer(made, method.decode(), path.partition("?")[0]):
                        writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: 0\r\n\r\n".encode())
                        continue
                forth.write(data)
                await forth.drain()
        except (OSError, asyncio.CancelledError):  # cancelled at the end
            pass
        finally:
            answering.cancel()
            forth.close()
            writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**22)
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


def _answer(made: Proxy, method: str, path: str) -> int | None:
    return next((status for (of, end), status in made.answers.items() if of == method and path.endswith(end)), None)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**20):
            writer.write(data)
            await writer.drain()
