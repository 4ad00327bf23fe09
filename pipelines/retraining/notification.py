"""Tell people and programs what a night did: by a command, and by a POST of its JSON to a URL. Never ends the night."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePath
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from pipelines.concurrency import within
from pipelines.retraining.options import NotifyOptions

BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each further one
MAX_BACKOFF_SECONDS = 60.0
TAIL_BYTES = 2000  # of what a command prints, from which a failure is told
MAX_TOLD = 200  # characters of it
DRAIN_SECONDS = 1.0  # for the last of it to arrive

NO_ADDRESS = "is no address that can be posted to"

Attempt = tuple[str | None, bool]  # what went wrong, and whether another attempt may help


def notify(
    options: NotifyOptions, outcome: dict[str, Any], say: Callable[[str], None], store: str | PurePath | None = None
) -> list[str]:
    """Run the command and post to the URL, if a night's decision is one to tell of.

    The command gets the outcome as one line of JSON on stdin, and the variables PENULT_DECISION, PENULT_DATE and
    PENULT_STORE. It is run once; it is killed, with its children, when it takes too long. The URL is tried anew after
    connection errors, timeouts and the answers 429 and 5xx. So a receiver may get a night twice: its ``run_id`` tells.

    Args:
        options: whom to tell of which nights.
        outcome: of the night, with "decision" and "date".
        say: called with a line for each thing that went wrong.
        store: the store's folder, for PENULT_STORE.

    Returns:
        What went wrong, in sentences. Of the URL they tell the host alone: the rest may be secret.
    """
    if outcome.get("decision") not in options.on:
        return []
    told = (_command(options, outcome, store), _post(options, outcome))
    wrong = [sentence for sentence in told if sentence]
    for sentence in wrong:
        say(sentence)
    return wrong


# -- the command -----------------------------------------------------------------------------------------------------


def _command(options: NotifyOptions, outcome: dict[str, Any], store: str | PurePath | None) -> str | None:
    """Run the command; return what went wrong."""
    if options.command is None:
        return None
    told = {"PENULT_DECISION": outcome.get("decision"), "PENULT_DATE": outcome.get("date"), "PENULT_STORE": store}
    environment = os.environ | {name: str(value) for name, value in told.items() if value is not None}
    try:
        with tempfile.TemporaryFile() as stdin:  # not a pipe: the command need not read it
            stdin.write(_body(outcome) + b"\n")
            stdin.seek(0)
            return _run(options.command, stdin, environment, options.timeout)
    except (OSError, ValueError) as error:  # for example a NUL in the command
        return f"The command of [notify] could not be run: {error}."


def _run(command: str, stdin: IO[bytes], environment: dict[str, str], timeout: float) -> str | None:
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # so that its children can be killed with it
    )
    tail = bytearray()
    reader = threading.Thread(target=_drain, args=(process.stdout, tail), daemon=True)
    reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"The command of [notify] took longer than {timeout:g} s and was killed{_last_line(reader, tail)}"
    if code == 0:
        return None
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"The command of [notify] {ended}{_last_line(reader, tail)}"


def _drain(pipe: IO[bytes], tail: bytearray) -> None:
    """Read a pipe to its end, which a child in the background may delay; keep the last of it."""
    with pipe:
        while data := os.read(pipe.fileno(), 1 << 16):
            tail += data
            del tail[:-TAIL_BYTES]


def _last_line(reader: threading.Thread, tail: bytearray) -> str:
    reader.join(DRAIN_SECONDS)
    lines = bytes(tail).decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[-MAX_TOLD:]}" if last else "."


# -- the URL ---------------------------------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Report a redirection: following one would make a GET of the POST, or show the password to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


def _post(options: NotifyOptions, outcome: dict[str, Any]) -> str | None:
    """Post to the URL, several times if need be; return what went wrong."""
    if options.url is None:
        return None
    try:
        address = urlsplit(options.url)
        request, host = _request(address, _body(outcome)), address.hostname
    except ValueError:  # whose text may tell a part of the address
        return f"The URL of [notify] {NO_ADDRESS}."
    late: Attempt = (
        f"did not answer within {options.timeout:g} s",
        True,
    )  # a socket's timeout starts anew with each byte
    for attempt in range(options.attempts):
        if attempt:
            time.sleep(min(BACKOFF_SECONDS * 2 ** (attempt - 1), MAX_BACKOFF_SECONDS))
        wrong, again = within(options.timeout, lambda: _attempt(request, 2 * options.timeout), late)
        if not again:
            break
    return f"The URL of [notify] at {host} {wrong}, attempt {attempt + 1} of {options.attempts}." if wrong else None


def _request(address: SplitResult, body: bytes) -> urllib.request.Request:
    """Return the POST; a user and password in the address become a header.

    Raises:
        ValueError: this is no address.
    """
    if not address.hostname:
        raise ValueError
    headers = {"Content-Type": "application/json", "User-Agent": "penult"}
    if address.username is not None:
        user = f"{unquote(address.username)}:{unquote(address.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    url = urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))
    return urllib.request.Request(url, body, headers, method="POST")


def _attempt(request: urllib.request.Request, timeout: float) -> Attempt:
    """Post once."""
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout):
            return None, False
    except urllib.error.HTTPError as error:
        return f"answered {error.code}", error.code == 429 or error.code >= 500
    except OSError as error:
        reason = getattr(error, "reason", error)  # of a URLError
        return f"cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})", True
    except (http.client.InvalidURL, UnicodeError):
        return NO_ADDRESS, False
    except http.client.HTTPException as error:
        return f"does not answer in HTTP ({type(error).__name__})", True
    except Exception as error:  # what its text tells may be secret
        return f"cannot be posted to ({type(error).__name__})", False


def _body(outcome: dict[str, Any]) -> bytes:
    return json.dumps(outcome, default=str).encode()
