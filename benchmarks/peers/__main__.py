"""Beside what people would take instead: the same pictures through the same OpenVINO graph, each peer as its
users write it.

* **Rates**: images per second of whole processes, imports included, and as a share of the strict limit: a loop with
  decoding and inference of bytes in memory, in the best of some settings, measured in the same round. The rounds go
  through the peers in turn. Then the same command again, over a complete output.
* **Faults**, which users of these libraries report (ray#55008, ray#61753, lance-ray#5290, datachain#1392): a worker is
  killed as it writes; the run is killed half-way and started again; one file is cut off; the preprocessing changes
  after half a run into the same output. Rows lost, doubled and mixed are counted by one check, against a plain loop.

Each peer has an environment of its own, made with pip from ``requirements-*.txt`` beside this file the first time.
What ``programs`` holds is what runs there. ``penult`` runs here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.corpus import write_crops
from benchmarks.peers.environments import HOME, PEERS, Peer, environment, make
from benchmarks.peers.outcome import Outcome, Reference, check, reference
from benchmarks.peers.processes import Run, Taken
from benchmarks.report import show


class Bench(NamedTuple):
    """What all peers are given, and a folder for what they write."""

    corpus: Path
    graph: Path
    folder: Path
    images: int

    def run(self, peer: Peer, place: Path, crop: str = "squash", corpus: Path | None = None, rate: bool = False) -> Run:
        place.mkdir(parents=True, exist_ok=True)
        command = peer.embed(corpus or self.corpus, self.graph, place / "output", crop, counted=not rate)
        return Run(command, place, watched=rate)

    def place(self, name: str) -> Path:
        """A new folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def names(self, but: str = "") -> set[str]:
        return {path.name for path in self.corpus.rglob("*.jpg")} - {but}


# --- rates


def limit(bench: Bench, best: list[Any] | None) -> list[list[Any]]:
    command = [sys.executable, "-m", "benchmarks.peers.limit", str(bench.corpus), str(bench.graph)]
    command += ["--best", json.dumps(best)] if best else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    return list(json.loads(done.stdout))


def rates(bench: Bench, peers: dict[str, Peer], rounds: int) -> list[dict[str, Any]]:
    """Whole runs into new outputs, and again."""
    best = limit(bench, None)[0][1]
    taken: list[dict[str, tuple[Taken, Taken]]] = []
    limits = []
    for peer in peers.values():  # bytecode, page cache, penult's graph
        finished(bench.run(peer, bench.place("warm"), rate=True))
    for _ in range(rounds):
        limits.append(limit(bench, best)[0][0])
        row = {}
        for key, peer in peers.items():
            place = bench.place("rate")
            row[key] = finished(bench.run(peer, place, rate=True)), finished(bench.run(peer, place, rate=True))
            print(f"{key}: {row[key][0].seconds:.1f} s, again {row[key][1].seconds:.1f} s", file=sys.stderr)
        taken.append(row)
    rows = []
    for key, peer in peers.items():
        speeds = [bench.images / row[key][0].seconds for row in taken]
        shares = [speed / most for speed, most in zip(speeds, limits, strict=True)]
        rows.append(
            {
                "what": peer.title,
                "writes": peer.sink,
                "images/s": round(statistics.median(speeds), 1),
                "of the strict limit": f"{statistics.median(shares):.0%}",
                "least and most": f"{min(shares):.0%} to {max(shares):.0%}",
                "peak memory, MiB": round(statistics.median(row[key][0].peak for row in taken) / 2**20),
                "again, s": round(statistics.median(row[key][1].seconds for row in taken), 1),
                "versions": peer.versions(),
            }
        )
    rows.sort(key=lambda row: -row["images/s"])
    batch, hint, per_core = best
    strict = f"batches of {batch}, {hint.lower()}, {per_core} threads a core"
    none = dict.fromkeys(rows[0], "")
    most = round(statistics.median(limits), 1)
    return [none | {"what": f"strict limit: {strict}", "writes": "nothing", "images/s": most}, *rows]


def finished(run: Run) -> Taken:
    """What a run took that has to succeed."""
    taken = run.end()
    if taken.code != 0:
        raise RuntimeError(f"exit code {taken.code}:\n{taken.text[-3000:]}")
    return taken


# --- faults


def ended(code: int | None) -> str:
    """How a run ended, in words."""
    if code is None:
        return "hangs"
    return "goes on" if code == 0 else f"dies (signal {-code})" if code < 0 else f"dies (exit code {code})"


def told(bench: Bench, outcome: Outcome, images: int) -> str:
    """The rows, and how many images were computed more than once."""
    return f"{outcome}; {max(0, images - bench.images)} computed again"


def killed_worker(bench: Bench, peer: Peer, vectors: Reference) -> str:
    """A worker dies as it writes; a run that dies of it is started again."""
    place = bench.place("worker")
    run = bench.run(peer, place)
    run.wait_for(bench.images // 2)
    victim = run.kill_worker(place / "output")
    words = f"{victim}: {ended(code := run.end().code)}"
    if code != 0:
        run = bench.run(peer, place)
        words += f", then {ended(run.end().code)}"
    outcome = check(peer, place / "output", bench.names(), vectors, "squash", place)
    return f"{words}; {told(bench, outcome, run.images())}"


def killed_run(bench: Bench, peer: Peer, vectors: Reference) -> str:
    """All processes die half-way; the same command again."""
    place = bench.place("run")
    run = bench.run(peer, place)
    run.wait_for(bench.images // 2)
    run.kill()
    run = bench.run(peer, place)
    code = run.end().code
    outcome = check(peer, place / "output", bench.names(), vectors, "squash", place)
    return f"{ended(code)}; {told(bench, outcome, run.images())}"


def corrupt_file(bench: Bench, peer: Peer, vectors: Reference) -> str:
    """One file is cut off in the middle."""
    place = bench.place("corrupt")
    corpus = place / "corpus"
    shutil.copytree(bench.corpus, corpus)
    bad = sorted(corpus.rglob("*.jpg"))[bench.images // 2]
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    taken = bench.run(peer, place, corpus=corpus).end()
    text = taken.text
    if peer.lock is None:
        status = [sys.executable, "-m", "pipelines", "status", "--failed", "--store", str(place / "output")]
        said = subprocess.run(status, capture_output=True, text=True, env=environment(), check=True)
        text += said.stdout + said.stderr
    outcome = check(peer, place / "output", bench.names(bad.name), vectors, "squash", place)
    return f"{ended(taken.code)}; {outcome}; the file is {'named' if bad.name in text else 'not named'}"


def changed_rule(bench: Bench, peer: Peer, vectors: Reference) -> str:
    """Half a run with one preprocessing, then a whole one with another into the same output."""
    place = bench.place("changed")
    run = bench.run(peer, place)
    run.wait_for(bench.images // 2)
    run.kill()
    code = bench.run(peer, place, crop="center").end().code
    outcome = check(peer, place / "output", bench.names(), vectors, "center", place)
    old = outcome.crops.get("squash", 0)
    return (
        f"{ended(code)}; {outcome.lost} lost, {outcome.doubled} doubled, {f'**{old} old rows**' if old else 'none old'}"
    )


FAULTS: dict[str, Callable[[Bench, Peer, Reference], str]] = {
    "a worker is killed as it writes": killed_worker,
    "the run is killed half-way, and started again": killed_run,
    "one file is cut off": corrupt_file,
    "another preprocessing after half a run": changed_rule,
}


def faults(bench: Bench, peers: dict[str, Peer], names: list[str]) -> list[dict[str, Any]]:
    """Each fault on each peer."""
    vectors = reference(bench.corpus, bench.graph, bench.folder)
    rows = []
    for peer in peers.values():
        row = {"what": peer.title}
        for name in names:
            row[name] = FAULTS[name](bench, peer, vectors)
            print(f"{peer.title}, {name}: {row[name]}", file=sys.stderr)
        rows.append(row)
    return rows


# --- what all are given


def write_graph(path: Path) -> Path:
    """Save the graph that penult runs as OpenVINO's IR."""
    if not path.exists():
        code = (
            "import sys; from pipelines.backbones import graphs; from pipelines.backbones.table import resolve;"
            "openvino = graphs.import_openvino();"
            "model = graphs.graph(openvino.Core(), resolve('efficientnet-lite0', 'imagenet'));"
            "openvino.save_model(model, sys.argv[1], compress_to_fp16=False)"
        )
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment(), capture_output=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--parts", nargs="+", choices=["rates", "faults"], default=["rates", "faults"])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that what runs is killed
    peers = {key: PEERS[key] for key in arguments.peers}
    HOME.mkdir(parents=True, exist_ok=True)
    for lock in {peer.lock for peer in peers.values() if peer.lock}:
        make(lock)
    corpus = write_crops(HOME.parent / f"crops-{arguments.images}", arguments.images)
    graph = write_graph(HOME / "efficientnet-lite0.xml")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(corpus, graph, Path(name), arguments.images)
        what = f"{arguments.images:,} JPEG crops of 500 × 375, EfficientNet-Lite0, f32"
        if "rates" in arguments.parts:
            show(f"Peers: {what}", rates(bench, peers, arguments.rounds))
        if "faults" in arguments.parts:
            show(f"Faults of peers: {what}", faults(bench, peers, arguments.faults))


if __name__ == "__main__":
    main()
