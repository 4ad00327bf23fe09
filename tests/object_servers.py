"""Real S3 servers on free ports of the loopback: SeaweedFS, and moto's as a second opinion.

Each context manager yields a running server and ends exactly the process that it started.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from obstore.store import S3Store

SECONDS = 60  # a server needs one or two; a busy machine more
PORTS = ("master", "volume", "filer", "s3", "admin")  # each has a second port for gRPC
REGION = "us-east-1"


@dataclass
class ObjectServer:
    """An S3 server: its address, its keys, what starts it, and its process while it runs."""

    endpoint: str
    key: str
    secret: str
    command: list[str] = field(repr=False)
    log: Path = field(repr=False)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any S3 client finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        """Start it, on the same ports and with the data that it has, and wait until it takes and gives objects."""
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        with self.log.open("ab") as said:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | keys,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=self.log.parent,
            )
        end, last = time.monotonic() + SECONDS, None
        while time.monotonic() < end and self.process.poll() is None:
            try:
                store = self.store(self.make_bucket())
                obstore.put(store, "ready", b"yes")
                if obstore.get(store, "ready").bytes().to_bytes() == b"yes":
                    return
            except Exception as error:  # not yet: whatever a client says of a server that is still starting
                last = error
            time.sleep(0.1)
        raise AssertionError(f"{self} does not answer: {last}\n{self.log.read_text(errors='replace')[-4000:]}")

    def kill(self) -> None:
        """End it by SIGKILL: nothing in it is worth its slow end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def store(self, bucket: str) -> S3Store:
        """A client of a bucket, or of a prefix in it (``bucket/prefix``), that owes nothing to penult's own."""
        name, _, prefix = bucket.partition("/")
        return S3Store(
            name,
            prefix=prefix or None,
            endpoint=self.endpoint,
            access_key_id=self.key,
            secret_access_key=self.secret,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def make_bucket(self) -> str:
        """Make an empty bucket with a name of its own; return the name."""
        import boto3

        bucket = f"test-{secrets.token_hex(6)}"
        with contextlib.closing(
            boto3.client(
                "s3",
                endpoint_url=self.endpoint,
                aws_access_key_id=self.key,
                aws_secret_access_key=self.secret,
                region_name=REGION,
            )
        ) as client:
            client.create_bucket(Bucket=bucket)
        return bucket


@contextlib.contextmanager
def seaweedfs(folder: Path | None = None) -> Iterator[ObjectServer]:
    """Run SeaweedFS with its data in a folder, by default one that is removed at the end."""
    key, secret = "penult-test", secrets.token_hex(16)
    own = Path(tempfile.mkdtemp(prefix="weed-")) if folder is None else folder
    numbers = free_ports(2 * len(PORTS))
    ports = [
        f"-{name}.port{grpc}={number}"
        for (name, grpc), number in zip(
            [(name, grpc) for name in PORTS for grpc in ("", ".grpc")], numbers, strict=True
        )
    ]
    command = [
        *(str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "mini", f"-dir={own}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-filer.localSocket={own / 'filer.sock'}", *ports),
    ]
    endpoint = f"http://127.0.0.1:{numbers[2 * PORTS.index('s3')]}"
    try:
        with _running(ObjectServer(endpoint, key, secret, command, own / "server.log")) as server:
            yield server
    finally:
        if folder is None:
            shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def moto() -> Iterator[ObjectServer]:
    """Run moto's S3 server, which keeps everything in memory."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="moto-") as folder:
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        endpoint, log = f"http://127.0.0.1:{port}", Path(folder, "server.log")
        with _running(ObjectServer(endpoint, "testing", "testing", command, log)) as server:
            yield server


SERVERS = {"seaweedfs": seaweedfs, "moto": moto}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _running(server: ObjectServer) -> Iterator[ObjectServer]:
    try:
        server.start()
        yield server
    finally:
        server.kill()
