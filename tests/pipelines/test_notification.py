"""Who is told of a night: real commands, a real HTTP server, and all that can go wrong with them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.retraining import notification
from pipelines.retraining.notification import notify
from pipelines.retraining.options import NotifyOptions

OUTCOME: dict[str, Any] = {"run_id": "r1", "date": "2026-11-01", "decision": "promoted", "reason": "Bésser: 0.91.\n"}


@pytest.fixture
def tell() -> Callable[..., list[str]]:
    """Notify; what went wrong was also said."""

    def run(outcome: dict[str, Any] = OUTCOME, store: str | None = None, **options: Any) -> list[str]:
        said: list[str] = []
        wrong = notify(NotifyOptions(**options), outcome, said.append, store)
        assert said == wrong
        return wrong

    return run


# --- commands


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_command_gets_the_night(place: Path, tell: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "kept")
    names = "$PENULT_DECISION $PENULT_DATE $PENULT_STORE $MINE"
    assert tell(command=f'cat > told; echo "{names}" > names', store="/a store") == []
    assert json.loads((place / "told").read_bytes()) == OUTCOME
    assert (place / "told").read_bytes().count(b"\n") == 1
    assert (place / "names").read_text() == "promoted 2026-11-01 /a store kept\n"
    monkeypatch.setenv("PENULT_STORE", "/another")
    assert tell(command=f'echo "{names}" > names') == []
    assert (place / "names").read_text() == "promoted 2026-11-01 /another kept\n"


@pytest.mark.parametrize("decision", ["promoted", "kept", "blocked", "unchanged", "failed", "planned", None])
def test_only_what_is_asked_for_is_told(decision: str | None, place: Path, tell: Callable[..., list[str]]) -> None:
    assert tell(OUTCOME | {"decision": decision}, command="cat > told", on=("kept", "failed")) == []
    assert (place / "told").exists() == (decision in ("kept", "failed"))


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("exit 3", "ended with exit code 3."),
        ("echo first; echo 'the last' >&2; echo; exit 1", "ended with exit code 1: the last"),
        ("echo $PENULT_DATE; kill -9 $$", "was killed by signal 9: 2026-11-01"),
        ("printf '\\377x'; exit 1", "ended with exit code 1: \ufffdx"),
        ("printf %0999d 7; exit 1", f"ended with exit code 1: {'0' * 199}7"),
        ("yes no | head -c 5000000; exit 4", "ended with exit code 4: no"),
        ("cat > /dev/null; exit 5", "ended with exit code 5."),
    ],
)
def test_a_command_that_fails(command: str, wrong: str, place: Path, tell: Callable[..., list[str]]) -> None:
    assert tell(command=command) == [f"The command of [notify] {wrong}"]


def test_a_command_that_is_not_there(place: Path, tell: Callable[..., list[str]]) -> None:
    (said,) = tell(command="no-such-command --flag")
    assert said.startswith("The command of [notify] ended with exit code 127: ") and "not found" in said
    (said,) = tell(command="a\0b")
    assert said.startswith("The command of [notify] could not be run: ")


def test_what_a_command_prints_goes_nowhere(
    place: Path, tell: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert tell(command="yes | head -c 3000000; yes | head -c 3000000 >&2") == []
    assert capfd.readouterr() == ("", "")


def test_of_what_a_command_prints_little_is_kept() -> None:
    reads, writes = os.pipe()
    tail, pipe = bytearray(b""), os.fdopen(reads, "rb")
    reader = threading.Thread(target=notification._drain, args=(pipe, tail))
    reader.start()
    with os.fdopen(writes, "wb") as file:
        file.write(b"x" * 1_000_000 + b"end")
    reader.join()
    assert tail == b"x" * 1997 + b"end" and pipe.closed


def test_a_command_need_not_read(place: Path, tell: Callable[..., list[str]]) -> None:
    assert tell(OUTCOME | {"reason": "x" * 1_000_000}, command="true") == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_command_that_hangs_is_killed_with_its_children(place: Path, tell: Callable[..., list[str]]) -> None:
    began = time.monotonic()
    (said,) = tell(command="sleep 60 & echo $! > child; echo waiting; sleep 60", timeout=0.5)
    assert said == "The command of [notify] took longer than 0.5 s and was killed: waiting"
    assert time.monotonic() - began < 20
    child = int((place / "child").read_text())
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def test_a_command_may_leave_a_child_behind(place: Path, tell: Callable[..., list[str]]) -> None:
    began = time.monotonic()
    assert tell(command="(sleep 2; echo hello; echo done > late) & true", timeout=30.0) == []
    assert time.monotonic() - began < 1.9
    for _ in range(100):
        if (place / "late").exists():
            break
        time.sleep(0.1)
    assert (place / "late").exists()


# --- posts


class Server(ThreadingHTTPServer):
    """Answers with one code after the other, or does something odd; keeps what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[int | str] = []
        self.got: list[tuple[str, str, dict[str, str], Any]] = []
        self.over = threading.Event()

    def url(self, path: str = "/night", user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.command, self.path, dict(self.headers), json.loads(body or b"null")))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        odd = {"hang": self.hang, "trickle": self.trickle, "close": lambda: None, "garbage": self.garbage}
        if isinstance(answer, str):
            odd[answer]()
            self.close_connection = True
            return
        self.send_response(answer)
        if answer in (302, 307):
            self.send_header("Location", self.server.url("/elsewhere"))
        self.end_headers()
        self.wfile.write(b"answer")

    do_POST = do_GET = handle_one

    def hang(self) -> None:
        self.server.over.wait(60)

    def trickle(self) -> None:
        """A byte of the headers now and then, so that no read waits for long."""
        while not self.server.over.wait(0.05):
            try:
                self.wfile.write(b"H")
            except OSError:
                return

    def garbage(self) -> None:
        self.wfile.write(b"220 mail.example ESMTP\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.02,))
        thread.start()
        yield found
        found.over.set()
        found.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts, which takes no time here."""
    found: list[float] = []
    monkeypatch.setattr(notification, "time", SimpleNamespace(sleep=found.append))
    return found


def test_a_night_is_posted_once(server: Server, tell: Callable[..., list[str]], slept: list[float]) -> None:
    assert tell(url=server.url("/a/b?token=x#part")) == []
    ((method, path, headers, body),) = server.got
    assert (method, path, body) == ("POST", "/a/b?token=x", OUTCOME)
    assert headers["Content-Type"] == "application/json" and headers["User-Agent"] == "penult"
    assert "Authorization" not in headers and not slept


def test_a_user_and_password_become_a_header(server: Server, tell: Callable[..., list[str]]) -> None:
    assert tell(url=server.url(user="m%40e:p%40ss%3Aé@")) == []
    assert tell(url=server.url(user="me@")) == []
    told = [
        base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode() for _, _, headers, _ in server.got
    ]
    assert told == ["m@e:p@ss:é", "me:"]


@pytest.mark.parametrize(
    ("answers", "attempts", "posts", "wrong"),
    [
        ([500, 503, 200], 3, 3, None),
        ([429, 204], 3, 2, None),
        ([500, 500, 500, 200], 3, 3, "answered 500, attempt 3 of 3"),
        ([500, 200], 1, 1, "answered 500, attempt 1 of 1"),
        ([400, 200], 3, 1, "answered 400, attempt 1 of 3"),
        ([404, 200], 3, 1, "answered 404, attempt 1 of 3"),
        ([302, 200], 3, 1, "answered 302, attempt 1 of 3"),
        ([307, 200], 3, 1, "answered 307, attempt 1 of 3"),
        (["close", 200], 3, 2, None),
        (["close", "close"], 2, 2, "cannot be reached (RemoteDisconnected), attempt 2 of 2"),
        (["garbage", "garbage"], 2, 2, "does not answer in HTTP (BadStatusLine), attempt 2 of 2"),
    ],
)
def test_answers(
    answers: list[int | str],
    attempts: int,
    posts: int,
    wrong: str | None,
    server: Server,
    tell: Callable[..., list[str]],
    slept: list[float],
) -> None:
    server.answers = [*answers]
    said = tell(url=server.url("/secret?token=secret", user="me:secret@"), attempts=attempts)
    assert said == ([f"The URL of [notify] at 127.0.0.1 {wrong}."] if wrong else [])
    assert len(server.got) == posts and all(body == OUTCOME for *_, body in server.got)
    assert slept == [1.0, 2.0][: posts - 1]


@pytest.mark.parametrize("answer", ["hang", "trickle"])
def test_a_server_that_takes_too_long(answer: str, server: Server, tell: Callable[..., list[str]]) -> None:
    server.answers = [answer, answer]
    began = time.monotonic()
    said = tell(url=server.url(), timeout=0.4, attempts=2)
    assert said == ["The URL of [notify] at 127.0.0.1 did not answer within 0.4 s, attempt 2 of 2."]
    assert 0.8 <= time.monotonic() - began < 20


def test_nobody_is_there(tell: Callable[..., list[str]], slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = tell(url=f"http://me:secret@127.0.0.1:{port}/secret?secret", attempts=9)
    assert said == ["The URL of [notify] at 127.0.0.1 cannot be reached (Connection refused), attempt 9 of 9."]
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60]
    (name,) = tell(url="https://no-such-host.invalid/secret", attempts=1)
    assert name.startswith("The URL of [notify] at no-such-host.invalid cannot be reached (") and "secret" not in name


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///secret", "http://[secret", "http://me@host:secret/", "http://host/se cret", "http://ho st/",
     "http://host/s\u00e9cret", f"http://{'long' * 20}.example/"],
)  # fmt: skip
def test_what_is_no_address_is_told_without_its_secrets(url: str, tell: Callable[..., list[str]]) -> None:
    (said,) = tell(url=url)
    where = r"( at (host|ho st|long{1,}\S+))?"
    assert re.fullmatch(rf"The URL of \[notify\]{where} is no address that can be posted to(, attempt 1 of 3)?\.", said)


def test_an_error_that_nobody_expected_is_told_too(
    tell: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(http.client.HTTPConnection, "request", fail)
    assert tell(url="http://host/") == [
        "The URL of [notify] at host cannot be posted to (RuntimeError), attempt 1 of 3."
    ]


def test_both_are_told_though_one_fails(server: Server, place: Path, tell: Callable[..., list[str]]) -> None:
    server.answers = [404]
    said = tell(command="exit 2", url=server.url())
    assert len(said) == 2 and len(server.got) == 1
    assert tell(command="touch told", url=server.url()) == [] and (place / "told").exists()
