"""What an output holds, by one check for all: its rows against vectors that a plain loop has computed.

``python -m benchmarks.peers.outcome CORPUS GRAPH FILE`` is the loop. It is a process of its own: OpenVINO may crash
one that is told to end, and this one has others to kill first.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.peers.environments import HERE, Peer, environment

CROPS = ("squash", "center")
TOLERANCE = 0.01  # float16 is off by 0.004 at 8; the vectors of two crops differ by 0.5 or more in some number


class Outcome(NamedTuple):
    """Counts of rows: of the files expected, those without a row; rows beyond the first of a file; vectors by crop.

    ``readable`` is false where the library finds no output, or none that it can read.
    """

    lost: int
    doubled: int
    crops: Mapping[str, int]
    wrong: int
    readable: bool = True

    def __str__(self) -> str:
        if not self.readable:
            return "no output"
        mixed = " and ".join(f"{count} {crop}" for crop, count in self.crops.items() if count)
        words = [f"{self.lost} lost, {self.doubled} doubled"]
        words += [f"**{mixed}**"] if sum(map(bool, self.crops.values())) > 1 else []
        words += [f"{self.wrong} wrong"] if self.wrong else []
        return ", ".join(words)


Reference = Mapping[str, Mapping[str, np.ndarray]]


def reference(corpus: Path, graph: Path, folder: Path) -> Reference:
    """The vector of each file, by crop and name."""
    file = folder / "reference.npz"
    command = [sys.executable, "-m", "benchmarks.peers.outcome", str(corpus), str(graph), str(file)]
    subprocess.run(command, check=True, env=environment())
    told = np.load(file)
    found = {crop: dict(zip(told["names"].tolist(), told[crop], strict=True)) for crop in CROPS}
    far = min(np.abs(found["squash"][name] - found["center"][name]).max() for name in found["squash"])
    assert far > 10 * TOLERANCE, f"two crops of a file differ by {far} only"
    return found


def main() -> None:
    """Compute the vectors of all files, one by one."""
    sys.path.append(str(HERE / "programs"))
    from embedder import Embedder, files_of

    corpus, graph, file = sys.argv[1:]
    paths, found = files_of(corpus), {}
    for crop in CROPS:
        model = Embedder(graph, crop, batch=1)
        found[crop] = np.array([model([Path(path).read_bytes()])[0] for path in paths])
    np.savez(file, names=[Path(path).name for path in paths], **found)


def check(peer: Peer, output: Path, expected: set[str], vectors: Reference, crop: str, folder: Path) -> Outcome:
    """Count the rows of an output; one that its library cannot read holds none."""
    file = folder / "rows.npz"
    file.unlink(missing_ok=True)
    subprocess.run(peer.dump(output, file, crop), capture_output=True, env=environment(), cwd=folder, check=False)
    if not file.exists():
        return Outcome(len(expected), 0, {}, 0, readable=False)
    rows = np.load(file)
    names, found, wrong = Counter(rows["names"].tolist()), Counter(), 0
    for name, vector in zip(rows["names"].tolist(), rows["vectors"], strict=True):
        near = [c for c in CROPS if name in vectors[c] and np.abs(vectors[c][name] - vector).max() <= TOLERANCE]
        found.update(near)
        wrong += not near
    return Outcome(len(expected - set(names)), sum(names.values()) - len(names), dict(sorted(found.items())), wrong)


if __name__ == "__main__":
    main()
