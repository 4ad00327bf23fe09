"""A handful of the kills, and that the check after them can fail."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from faults import invariant, kills
from faults.jobs import JOBS, Job, embed_here, vectors
from faults.kills import AtCall, AtPoint


@pytest.mark.parametrize(
    "how",
    [
        AtPoint("featurestore.storage.table:write_fragments", "after", 3),
        AtPoint("featurestore.storage.table:lance.LanceDataset.commit", "after", 1),
        AtPoint("featurestore.storage.table:lance.LanceDataset.commit", "before", 3),
        AtPoint("featurestore.journal:Staging.remove", "before", 1),
    ],
    ids=lambda how: f"{how.when} {how.point.rpartition(':')[2]}",
)
def test_killed_at_a_point(tmp_path: Path, how: AtPoint) -> None:
    kills.embed_killed(tmp_path, "embed", [how])


def test_killed_in_the_middle_of_a_write_and_while_recovering(tmp_path: Path) -> None:
    second = AtPoint("featurestore.storage.table:lance.LanceDataset.commit", "after", 1)
    kills.embed_killed(tmp_path, "embed-again", [AtCall(100, half=True), second])


def test_killed_while_it_compares(tmp_path: Path) -> None:
    kills.command_killed(tmp_path, "compare", [AtPoint("heads.comparison.fit_cache:Results.put", "after", 3)])


def test_killed_while_it_labels(tmp_path: Path) -> None:
    kills.command_killed(
        tmp_path, "label", [AtPoint("featurestore.storage.table:lance.LanceDataset.commit", "after", 1)]
    )


@pytest.mark.parametrize(("name", "times"), [("promote", 1), ("rollback", 2)])
def test_killed_while_the_champion_moves(tmp_path: Path, name: str, times: int) -> None:
    """When it has moved and was not told so."""
    kills.move_killed(tmp_path, name, [AtPoint("featurestore.storage.local:Path.replace", "after")] * times)


@pytest.mark.parametrize(
    ("number", "points"), [(signal.SIGTERM, kills.SAFE_POINTS[0]), (signal.SIGINT, kills.SAFE_POINTS[1])]
)
def test_told_to_stop(tmp_path: Path, number: signal.Signals, points: list[tuple[str, str, str]]) -> None:
    """Once, and again while it commits."""
    kills.stopped_at_a_safe_point(tmp_path, number, points)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_when_all_is_done(number: signal.Signals) -> None:
    """While Python takes its modules apart, and has put the signals' own ways back: the exit code is the command's."""
    program = f"""if True:
        import os
        class Late:
            def __del__(self, kill=os.kill, own=os.getpid()):
                kill(own, {int(number)})
        late = Late()
        from pipelines.__main__ import main
        main()
    """
    done = subprocess.run([sys.executable, "-c", program, "heads"], capture_output=True, text=True)
    assert done.returncode == 0 and "penult:" not in done.stderr, done


def test_told_to_stop_while_it_imports(tmp_path: Path) -> None:
    kills.stopped(tmp_path, "label", signal.SIGINT, share=0.0, seconds=0.1, second=None)


# --- the check can fail


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = JOBS["embed"](tmp_path_factory.mktemp("whole"))
    embed_here(job)
    kills.check(job)
    return job


def _feature_rows(store: Path) -> tuple[Path, pa.Table]:
    (table,) = (store / "features").glob("*.lance")
    return table, lance.dataset(table).to_table()


def twice(store: Path) -> None:
    table, rows = _feature_rows(store)
    lance.write_dataset(rows.slice(0, 1), table, mode="append")


def lost(store: Path) -> None:
    table, rows = _feature_rows(store)
    lance.write_dataset(rows.slice(1), table, mode="overwrite")


def changed(store: Path) -> None:
    table, rows = _feature_rows(store)
    column = rows.column("vector").combine_chunks()
    values = column.flatten().to_numpy().copy()
    values[0] = np.nextafter(values[0], np.float16(2))
    vector = pa.FixedSizeListArray.from_arrays(pa.array(values), column.type.list_size)
    lance.write_dataset(rows.set_column(2, rows.field("vector"), vector), table, mode="overwrite")


def forgotten(store: Path) -> None:
    told = invariant.sealed(store / "penult.json")
    (store / "penult.json").write_text(json.dumps(told | {"tables": {}, "seal": "0" * 64}))


def relabelled(store: Path) -> None:
    lance.dataset(store / "labels.lance").update({"label": "'z'"}, where="label = 'a'")


def uncatalogued(store: Path) -> None:
    lance.dataset(store / "catalog.lance").delete("uri LIKE '%05%'")


def pending(store: Path) -> None:
    (store / "staging" / "20260101T000000000000Z-embed-000000").mkdir()


def rotten(store: Path) -> None:
    ledger = invariant.sealed(store / "catalog.lance" / "ledger.json")
    path = store / "catalog.lance" / next(name for name in ledger["files"] if name.endswith(".txn"))
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (twice, "more than one row"),
        (lost, "no set has them"),
        (changed, "wrong checksums"),
        (forgotten, "seal does not match"),
        (relabelled, "labels: .* 10 different"),
        (uncatalogued, "catalog, embedded: 1 lost"),
        (pending, "staging still holds"),
        (rotten, "sha256"),
    ],
)
def test_the_check_can_fail(whole: Job, tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    store = Path(shutil.copytree(whole.store, tmp_path / "store"))
    damage(store)
    with pytest.raises(AssertionError, match=says):
        invariant.check(store, whole.contents, vectors("fake"), labels=whole.labels)


def test_other_vectors_are_noticed(whole: Job) -> None:
    other = {digest: vector + 1 for digest, vector in vectors("fake").items()}
    with pytest.raises(AssertionError, match="is off by 1"):
        invariant.check(whole.store, whole.contents, other)
