"""SIGKILL at named points and at random moments: nothing is lost, nothing is there twice, a rerun completes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import CountingEngine
from featurestore.schema import keys_of
from featurestore.store import FeatureStore
from pipelines.embed import EmbedOptions, embed

SCRIPT = Path(__file__).parent / "killed_embed.py"
SHARDS, IMAGES = 5, 30  # of the corpus fixture, 7 images a shard

# Which call of which function kills the run, and how many of its images must be kept by the next one.
POINTS = [
    ("pipelines.worker:embed_shard", "before", 1, 0),
    ("featurestore.tables:write_fragments", "after", 3, 14),  # data written, not flushed
    ("featurestore.tables:Table.stage", "after", 3, 14),  # flushed, not in the journal
    ("featurestore.staging:os.link", "before", 3, 14),
    ("featurestore.staging:os.link", "after", 3, 21),
    ("featurestore.store:FeatureStore.commit", "before", 1, 30),
    ("featurestore.tables:Table.commit", "before", 1, 30),  # features
    ("featurestore.tables:lance.LanceDataset.commit", "after", 1, 30),  # landed, not acknowledged
    ("featurestore.tables:Table.commit", "after", 1, 30),
    ("featurestore.tables:Table.commit", "after", 2, 30),  # labels
    ("featurestore.tables:Table.commit", "after", 3, 30),  # catalog
    ("featurestore.store:FeatureStore._remember", "after", 1, 30),
    ("featurestore.staging:Staging.remove", "after", 1, 30),
    ("featurestore.runs:RunRecord.write", "before", 1, 30),
]


def run_killed(corpus: Path, store: Path, *kill: str) -> int:
    """Embed in another process, which kills itself at a point; return its exit status."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(corpus), str(store), *kill], capture_output=True, timeout=120
    ).returncode


def check_complete(store: FeatureStore) -> None:
    """Every content once, everywhere, with intact checksums."""
    table = store.table(store.resolve())
    keys = np.concatenate([keys_of(batch.column("sha256")) for batch in store.batches(store.resolve())])
    catalog = store.catalog.read(["uri", "sha256", "status"])
    assert len(keys) == len(set(keys.tolist())) == IMAGES == table.count()
    assert sorted(keys_of(catalog.column("sha256")).tolist()) == sorted(keys.tolist())
    assert len(set(catalog.column("uri").to_pylist())) == catalog.num_rows == IMAGES
    assert len(store.dataset()) == IMAGES == store.labels.count()
    assert not list((store.path / "staging").iterdir())


@pytest.mark.parametrize(("point", "when", "nth", "kept"), POINTS, ids=lambda value: str(value).rpartition(":")[2])
def test_killed_at(
    corpus: Path, tmp_path: Path, engine: CountingEngine, point: str, when: str, nth: int, kept: int
) -> None:
    store = tmp_path / "store"
    assert run_killed(corpus, store, point, when, str(nth)) == -signal.SIGKILL
    result = embed(str(corpus), store, EmbedOptions(shard_images=7))
    assert engine.images == result.embedded == IMAGES - kept
    check_complete(FeatureStore(store))


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment(corpus: Path, tmp_path: Path, engine: CountingEngine, seed: int) -> None:
    store = tmp_path / "store"
    command = [sys.executable, str(SCRIPT), str(corpus), str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(random.Random(seed).uniform(0, 2.5))
        process.kill()
    embed(str(corpus), store, EmbedOptions(shard_images=7))
    check_complete(FeatureStore(store))


def test_killed_while_recovering_a_killed_run(corpus: Path, tmp_path: Path, engine: CountingEngine) -> None:
    store = tmp_path / "store"
    assert run_killed(corpus, store, "featurestore.store:FeatureStore.commit", "before", "1") < 0
    assert run_killed(corpus, store, "featurestore.tables:Table.commit", "after", "1") < 0
    result = embed(str(corpus), store, EmbedOptions(shard_images=7))
    assert len(result.recovered) == 1 and engine.images == 0
    check_complete(FeatureStore(store))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(corpus: Path, tmp_path: Path, engine: CountingEngine, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C: finished shards are committed at once, one sentence says so."""
    store = tmp_path / "store"
    code = (
        "import sys, time\n"
        "from conftest import CountingEngine\n"
        "from pipelines import cli, worker\n"
        "class Slow(CountingEngine):\n"
        "    def __call__(self, pixels):\n"
        "        if self.images >= 14:\n"
        "            print('ready', flush=True)\n"
        "            time.sleep(0.5)\n"
        "        return super().__call__(pixels)\n"
        "worker.open_engine = lambda *_args, **_options: Slow(8)\n"
        f"sys.argv[1:] = ['embed', {str(corpus)!r}, '--store', {str(store)!r}, '--shard-images', '7']\n"
        "cli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Interrupted; what was finished is kept" in said and "Traceback" not in said
    kept = FeatureStore(store).catalog.count()
    assert kept in (14, 21) and not list((store / "staging").iterdir())  # the shard under way may end
    result = embed(str(corpus), store, EmbedOptions(shard_images=7))
    assert (result.embedded, result.recovered) == (IMAGES - kept, [])
    check_complete(FeatureStore(store))
