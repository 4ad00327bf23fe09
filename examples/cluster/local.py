"""A cluster on this machine, to try penult on: an S3 server, a Dask scheduler and two workers, on free loopback ports.

    python examples/cluster/local.py up      start it; say addresses and health; write FOLDER/environment
    python examples/cluster/local.py status  say what is alive
    python examples/cluster/local.py down    end exactly what was started

Every process has a log in FOLDER (by default .cluster). FOLDER/processes.json says which they are: the number of a
process may belong to another one by now, so the time at which it began is noted too.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

WORKERS = 2
SECONDS = 60  # for each part to answer
SERVER_PORTS = ("master", "volume", "filer", "s3", "admin")  # of SeaweedFS; each has a second port for gRPC
BUCKET = "penult"


def up(folder: Path) -> None:
    """Start the parts, wait until each answers, and say where they are."""
    if alive(folder):
        sys.exit(f"A cluster is running: `make cluster-down` ends it, `cat {folder}/environment` tells its addresses.")
    folder.mkdir(exist_ok=True)
    (folder / "objects").mkdir(exist_ok=True)
    ports = free_ports(2 * len(SERVER_PORTS) + 1)
    endpoint = f"http://127.0.0.1:{ports[2 * SERVER_PORTS.index('s3')]}"
    scheduler = f"tcp://127.0.0.1:{ports[-1]}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "penult",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "DASK_SCHEDULER": scheduler,
        "PENULT_STORE": f"s3://{BUCKET}/store",
    }
    try:
        start(folder, "s3", server(folder, ports), environment)
        dask = [sys.executable, "-m"]
        start(
            folder,
            "scheduler",
            [*dask, "distributed.cli.dask_scheduler", "--host=127.0.0.1", f"--port={ports[-1]}", "--no-dashboard"],
            environment,
        )
        for number in range(1, WORKERS + 1):
            words = ["--nthreads=1", "--host=127.0.0.1", "--no-dashboard", f"--local-directory={folder}"]
            start(folder, f"worker-{number}", [*dask, "distributed.cli.dask_worker", scheduler, *words], environment)
        wait_for("the S3 server", lambda: make_bucket(environment))
        wait_for("the Dask workers", lambda: workers(scheduler) == WORKERS)
    except BaseException:
        down(folder)
        raise
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    (folder / "environment").write_text("\n".join(lines) + "\n")
    (folder / "environment").chmod(0o600)  # it holds the server's key
    print(f"S3 server       {endpoint}, bucket {BUCKET}: stores and gives objects")
    print(f"Dask scheduler  {scheduler}: {WORKERS} workers of one thread")
    print(f"Logs            {folder}/*.log")
    print(f"Now             . {folder}/environment")
    print("                penult embed PHOTOS --runner DaskRunner -- --dask_client_address=$DASK_SCHEDULER")


def down(folder: Path) -> None:
    """End the processes that ``up`` started, those that they started, and no others."""
    found = [process for one in alive(folder).values() for process in (*one.children(recursive=True), one)]
    for process in found:
        process.terminate()
    _, left = psutil.wait_procs(found, timeout=10)
    for process in left:
        process.kill()
    psutil.wait_procs(left)
    (folder / "processes.json").unlink(missing_ok=True)
    print(f"{len(found)} processes have ended; {folder} keeps the objects and the logs.")


def status(folder: Path) -> None:
    """Say which of the processes are alive."""
    running = alive(folder)
    for name in noted(folder):
        print(f"{name:10} {'alive, process ' + str(running[name].pid) if name in running else 'has ended'}")
    if not running:
        sys.exit("There is no cluster: `make cluster-up` starts one.")


def server(folder: Path, ports: list[int]) -> list[str]:
    """The command that starts SeaweedFS."""
    names = [f"-{name}.port{grpc}" for name in SERVER_PORTS for grpc in ("", ".grpc")]
    return [
        *(str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "mini", f"-dir={folder / 'objects'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-filer.localSocket={folder / 'filer.sock'}"),
        *(f"{name}={port}" for name, port in zip(names, ports, strict=False)),
    ]


def start(folder: Path, name: str, command: list[str], environment: dict[str, str]) -> None:
    """Start a process that outlives this one, and note which it is."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
            start_new_session=True,
        )
    told = noted(folder) | {name: [process.pid, psutil.Process(process.pid).create_time()]}
    (folder / "processes.json").write_text(json.dumps(told))


def noted(folder: Path) -> dict[str, list[float]]:
    """The number of each process that ``up`` started, and when it began."""
    path = folder / "processes.json"
    return json.loads(path.read_text()) if path.exists() else {}


def alive(folder: Path) -> dict[str, psutil.Process]:
    """The processes that ``up`` started and that still run."""
    found = {}
    for name, (pid, began) in noted(folder).items():
        if psutil.pid_exists(int(pid)):
            process = psutil.Process(int(pid))
            if process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE:
                found[name] = process
    return found


def make_bucket(environment: dict[str, str]) -> bool:
    """Put an object and get it back; the first one makes the bucket."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=environment["AWS_ENDPOINT_URL"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region=environment["AWS_REGION"],
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    obstore.put(store, "ready", b"yes")
    return obstore.get(store, "ready").bytes().to_bytes() == b"yes"


def workers(scheduler: str) -> int:
    """How many workers a scheduler knows of."""
    import distributed

    with distributed.Client(scheduler, timeout=5, set_as_default=False) as client:
        return len(client.nthreads())


def wait_for(what: str, ready: Callable[[], bool]) -> None:
    """Wait until a call is true; end with a sentence if it takes too long."""
    end, last = time.monotonic() + SECONDS, None
    while time.monotonic() < end:
        try:
            if ready():
                return
        except Exception as error:  # whatever a client says of a server that is still starting
            last = error
        time.sleep(0.2)
    sys.exit(f"{what} does not answer within {SECONDS} s ({last}): the logs say more.")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on just now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("up", "down", "status"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".cluster"))
    given = parser.parse_args()
    {"up": up, "down": down, "status": status}[given.what](given.folder.absolute())
