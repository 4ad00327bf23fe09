"""Objects in buckets, against a real server, and each answer of a server as a sentence."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lance
import pytest

from featurestore.errors import BucketError, ObjectDenied, ObjectMissing, UsageError
from featurestore.storage import buckets, settings
from featurestore.storage.buckets import CREATE, copy, delete, get, get_file, head, level, listed, put, put_file
from object_proxy import Harm, Message, proxy

ODD = ("plain.png", "ü ä/x y+z%20#?&.png", "a:b", "x~*'().jpg")


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/some where"


def test_an_object_is_written_told_of_read_and_deleted(place: str) -> None:
    for name in ODD:
        token = put(f"{place}/{name}", name.encode())
        info = head(f"{place}/{name}")
        assert info is not None and (info.uri, info.size, info.token) == (
            f"{place}/{name}",
            len(name.encode()),
            token,
        )
        assert get(f"{place}/{name}") == (name.encode(), info)
        assert get(f"{place}/{name}", 1, 2)[0] == name.encode()[1:3]
        assert get(f"{place}/{name}", 2)[0] == name.encode()[2:]
    assert sorted(one.uri for one in listed(place)) == sorted(f"{place}/{name}" for name in ODD)
    delete([f"{place}/{name}" for name in ODD])
    delete(f"{place}/{ODD[0]}")
    assert list(listed(place)) == [] and head(f"{place}/{ODD[0]}") is None
    with pytest.raises(ObjectMissing, match=r"There is no object s3://.*/plain.png\."):
        get(f"{place}/{ODD[0]}")


def test_a_level_tells_objects_and_prefixes_and_a_prefix_ends_at_a_slash(place: str) -> None:
    for name in ("a", "b/1", "b/c/2", "bb"):
        put(f"{place}/{name}", b"1")
    objects, prefixes = level(place)
    assert [one.uri for one in objects] == [f"{place}/a", f"{place}/bb"] and prefixes == [f"{place}/b"]
    assert [one.uri for one in listed(f"{place}/b")] == [f"{place}/b/1", f"{place}/b/c/2"]
    root = place.rpartition("/")[0]
    assert level(root) == ([], [place]) and len(list(listed(root))) == 4


def test_of_racing_writers_one_wins_and_a_stale_token_loses(place: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = [token for token in pool.map(lambda n: put(f"{place}/one", b"%d" % n, CREATE), range(8)) if token]
        assert len(won) == 1
        won = [t for t in pool.map(lambda n: put(f"{place}/one", b"x%d" % n, won[0]), range(8)) if t]
    assert len(won) == 1 and put(f"{place}/one", b"late", "no such token") is None
    assert put(f"{place}/none", b"late", won[0]) is None and head(f"{place}/none") is None


def test_files_and_copies(place: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(data := bytes(range(256)) * 80_000)  # more than a part
    put_file(f"{place}/big", tmp_path / "out")
    copy(f"{place}/big", f"{place}/copy")
    assert get_file(f"{place}/copy", tmp_path / "in").size == len(data)
    assert (tmp_path / "in").read_bytes() == data


def test_a_web_address_is_read_and_not_written(tmp_path: Path) -> None:
    with answering(200, "hello") as endpoint:
        assert get(f"{endpoint}/a%20b")[0] == b"hello" and head(f"{endpoint}/a%20b").uri == f"{endpoint}/a%20b"
        with pytest.raises(BucketError, match="cannot do what penult needs"):
            put(f"{endpoint}/x", b"1", CREATE)
    with pytest.raises(UsageError, match="a place there"):
        get("https://host.invalid/a?key=1")


def test_a_bucket_that_is_not_there(place: str) -> None:
    with pytest.raises(BucketError, match=r"There is no bucket s3://no-such-bucket at http://127.*: make it"):
        list(listed("s3://no-such-bucket/a"))
    with pytest.raises(BucketError, match="There is no bucket"):
        get("s3://no-such-bucket/a")


def test_wrong_keys(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for ask in (lambda: get(f"{place}/a"), lambda: list(listed(place)), lambda: put(f"{place}/a", b"1")):
        with pytest.raises(BucketError, match=r"does not know the credentials for s3://.*SignatureDoesNotMatch"):
            ask()
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(ObjectDenied, match=r"may not be read .*s3:GetObject"):
        get(f"{place}/a")


@contextlib.contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A web server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try once more only, and at once."""
    monkeypatch.setattr(buckets, "MAX_TRIES", 2)
    monkeypatch.setattr(buckets, "FIRST_PAUSE", 0.01)
    buckets._client.cache_clear()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)


def code(word: str) -> str:
    return f"<?xml version='1.0'?><Error><Code>{word}</Code><Message>m</Message></Error>"


@pytest.mark.parametrize(
    ("status", "body", "verb", "words"),
    [
        (403, code("AccessDenied"), "read", "s3://b1b/k may not be read with these credentials: give .*s3:GetObject"),
        (403, code("AccessDenied"), "write", r"s3://b1b/k may not be written .*s3:PutObject"),
        (403, code("AccessDenied"), "create", r"s3://b1b/k may not be written .*s3:PutObject"),
        (403, code("AccessDenied"), "list", r"s3://b1b/k may not be listed .*s3:ListBucket"),
        (403, code("AccessDenied"), "delete", r"s3://b1b/k may not be deleted .*s3:DeleteObject"),
        (403, code("RequestTimeTooSkewed"), "read", "The clock of this machine differs too much from that of http"),
        (403, code("RequestTimeTooSkewed"), "list", "The clock of this machine"),
        (400, code("ExpiredToken"), "read", "The credentials for s3://b1b have expired: get new ones"),
        (400, code("ExpiredToken"), "look", "The credentials for s3://b1b have expired: get new ones"),
        (403, code("ExpiredToken"), "look", "The credentials for s3://b1b have expired: get new ones"),
        (403, code("InvalidAccessKeyId"), "look", "does not know the credentials for s3://b1b .InvalidAccessKeyId"),
        (400, code("ExpiredToken"), "create", "The credentials for s3://b1b have expired: get new ones"),
        (503, code("SlowDown"), "read", "asks to slow down, and went on to: wait, then run the same command again"),
        (503, code("SlowDown"), "create", "asks to slow down"),
        (500, code("InternalError"), "list", "fails .InternalError.: wait"),
        (301, code("PermanentRedirect"), "read", "s3://b1b lies in another region: set AWS_REGION"),
        (404, "<html>not here</html>", "list", "There is no bucket s3://b1b at http"),
        (409, code("ConditionalRequestConflict"), "create", "Others keep writing s3://b1b/k"),
        (409, code("OperationAborted"), "write", "Others keep writing s3://b1b/k"),
        (412, code("PreconditionFailed"), "read", "s3://b1b/k was replaced while it was read"),
        (412, code("PreconditionFailed"), "look", "Others keep writing s3://b1b/k"),
        (501, code("NotImplemented"), "create", "cannot do what penult needs .NotImplemented.: use another server"),
    ],
)
def test_each_answer_is_a_sentence_of_its_own(
    status: int, body: str, verb: str, words: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = {
        "look": lambda: head("s3://b1b/k"),
        "read": lambda: get("s3://b1b/k"),
        "write": lambda: put("s3://b1b/k", b"1"),
        "create": lambda: put("s3://b1b/k", b"1", CREATE),
        "list": lambda: list(listed("s3://b1b/k")),
        "delete": lambda: delete("s3://b1b/k"),
    }[verb]
    with answering(status, body) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(BucketError, match=words):
            ask()


def test_a_web_host_that_refuses_is_not_asked_for_rights(impatient: None) -> None:
    with answering(403, "no") as host, pytest.raises(ObjectDenied) as refused:
        get(f"{host}/k")
    assert str(refused.value) == f"{host} does not let everyone read {host}/k (403): name what is public."


def test_a_server_that_does_not_answer(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BucketError, match=r"http://127.0.0.1:9 cannot be reached for s3://b1b: look after"):
        get("s3://b1b/k")
    with pytest.raises(BucketError, match="cannot be reached"):
        put("s3://b1b/k", b"1", CREATE)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(BucketError, match="set AWS_ALLOW_HTTP=true"):
        get("s3://b1b/k")


def test_a_put_that_wrote_and_then_seemed_to_fail_is_known_as_ones_own(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = buckets.obstore.put, []

    def lossy(*arguments: object, **options: object) -> object:
        told = real(*arguments, **options)
        if not failures:
            failures.append(1)
            raise buckets.exceptions.GenericError("error sending request")
        return told

    monkeypatch.setattr(buckets.obstore, "put", lossy)
    token = put(f"{place}/mine", b"mine", CREATE)
    assert failures and token == head(f"{place}/mine").token
    put(f"{place}/theirs", b"theirs")
    failures.clear()
    assert put(f"{place}/theirs", b"mine", CREATE) is None


def is_missing(uri: str) -> bool:
    with pytest.raises(ObjectMissing):
        get(uri)
    return True


def test_an_answer_that_breaks_off_is_asked_for_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MAX_TRIES", 2)
    monkeypatch.setattr(buckets, "FIRST_PAUSE", 0.01)
    (tmp_path / "file").write_bytes(bytes(1000))
    keys = [f"{place}/{number}" for number in range(3)]
    for key in keys:
        put(key, bytes(1000))
    server, broken = os.environ["AWS_ENDPOINT_URL"], set[str]()

    def first(request: Message) -> Harm | None:
        if request.line in broken:
            return None
        broken.add(request.line)
        return Harm(after=True, half=True)

    with proxy(server) as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        for act in (
            lambda: [one.uri for one in listed(place)] == keys,
            lambda: [one.uri for one in level(place)[0]] == keys,
            lambda: copy(keys[0], f"{place}/copy") is None,
            lambda: get_file(keys[0], tmp_path / "got").size == 1000,
            lambda: is_missing(f"{place}/none"),
            lambda: put_file(keys[0], tmp_path / "file") is None,
        ):
            made.harm, since = first, len(made.requests)
            broken.clear()
            assert act() and len(made.requests) - since == 2, made.requests[since:]
            made.harm = lambda _: Harm(after=True, half=True)
            with pytest.raises(BucketError, match="cannot be reached"):
                act()


def test_a_listing_that_breaks_off_goes_on_behind_what_it_gave(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{place}/{number}" for number in range(5)]
    for key in keys:
        put(key, b"1")
    real = buckets.obstore.list

    def breaking(*arguments: object, **options: object) -> Iterator[object]:
        if options["offset"] is None:
            yield next(iter(real(*arguments, **options | {"chunk_size": 2})))
            raise buckets.exceptions.GenericError("Error getting list response body: HTTP error: response body error")
        yield from real(*arguments, **options)

    monkeypatch.setattr(buckets.obstore, "list", breaking)
    assert [one.uri for one in listed(place)] == keys


def test_options_set_the_variables_and_unknown_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in settings.OPTIONS.values():
        for name in names:
            monkeypatch.setenv(name, "before")
    monkeypatch.delenv("AWS_PROFILE")
    settings.use(["endpoint=http://127.0.0.1:1", "region=eu-west-1"])
    found = buckets.storage_options("s3://b1b/k")
    assert found["aws_endpoint_url"] == "http://127.0.0.1:1" and found["aws_region"] == "eu-west-1"
    for wrong in ("secret=1", "endpoint", "endpoint="):
        with pytest.raises(UsageError, match="endpoint, region, profile"):
            settings.use([wrong])


def test_lance_tries_as_often_as_is_said(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for tries in (1, 2):
        monkeypatch.setattr(buckets, "MAX_TRIES", tries)
        with proxy("http://127.0.0.1:9") as made:
            made.harm = lambda _: Harm(500, "InternalError")
            monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
            options = buckets.storage_options("s3://b1b/t.lance")
            with pytest.raises((OSError, ValueError), match="500"):
                lance.dataset("s3://b1b/t.lance", storage_options=options)
        asked.append(len(made.requests))
    assert asked[1] == 2 * asked[0], asked


def test_a_profile_of_the_shared_files_is_read_and_variables_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[profile team]\nregion = eu-north-1\nendpoint_url = http://there\n")
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = k\naws_secret_access_key = s\n")
    for name in settings.VARIABLES["s3"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert settings.settings("s3") == {
        "AWS_REGION": "eu-north-1",
        "AWS_ENDPOINT_URL": "http://there",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own")
    found = settings.settings("s3")
    assert found["AWS_REGION"] == "us-west-2" and "AWS_SECRET_ACCESS_KEY" not in found
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match="AWS_PROFILE: nobody is in neither"):
        settings.settings("s3")
