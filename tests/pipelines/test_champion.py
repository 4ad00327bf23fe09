"""The head in use: put there, taken back, listed; from the command line, from Python, and by two at once."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import commit, pictures
from faults.races import ended, party
from featurestore import aliases, layout
from featurestore.errors import StoreLocked, StoreNotFound
from featurestore.storage.files import read_sealed, write_sealed
from featurestore.store import FeatureStore
from heads import artifact
from pipelines import commands
from pipelines.maintenance import doctor, verify
from pipelines.options import TrainOptions
from pipelines.stored_heads import champion, promote, rollback
from pipelines.training import train_head


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three heads on some features without images."""
    made = FeatureStore.create(tmp_path_factory.mktemp("champion") / "store")
    rows = [replace(one, uri=f"file:///gone/{one.uri}.png") for one in pictures(range(60))]
    commit(made, "20260101T000000000000Z-embed-000000", rows)
    for head in ("ncm", "knn", "ridge"):
        train_head(made.path, TrainOptions(head))
    return Path(made.path)


@pytest.fixture
def store(template: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore(shutil.copytree(template, tmp_path / "store"))


@pytest.fixture(autouse=True)
def by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "operator")


class Ended(NamedTuple):
    code: int
    told: Any
    said: str


def penult(store: FeatureStore, *arguments: str) -> Ended:
    """Run a command as its entry point does: exit code, JSON, and what was said to people."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["penult", *arguments, "--store", str(store.path), "--json"])
        with pytest.raises(SystemExit) as end:
            commands.main()
    lines = out.getvalue().splitlines()
    return Ended(int(end.value.code or 0), json.loads(lines[-1]) if lines else None, err.getvalue())


def heads(store: FeatureStore) -> list[str]:
    return [run.run_id for run in store.runs() if run.kind == "train"]


def pointed(store: FeatureStore, alias: str = "champion") -> list[str]:
    return [move.head_id for move in aliases.history(store.path, alias)]


def damage(store: FeatureStore, head_id: str) -> None:
    """Flip one bit of a head's numbers."""
    path = Path(store.run_folder(head_id)) / artifact.ARRAYS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def own_score(store: FeatureStore, head_id: str) -> float:
    return artifact.load(store.run_folder(head_id))[1]["metrics"]["top1"]


# --- on the command line


def test_promoted_and_taken_back(store: FeatureStore) -> None:
    a, b, c = heads(store)
    for head, before in ((a, None), (b, a), (c, b)):
        assert penult(store, "promote", head).told == {"alias": "champion", "head_id": head, "before": before}
    for now, before in ((b, c), (a, b)):
        done = penult(store, "rollback")
        assert done.told == {"alias": "champion", "head_id": now, "before": before}
        assert done.said == f"champion is {now}, before: {before}.\n"
    assert pointed(store) == [a, b, c, b, a]
    assert penult(store, "rollback") == (
        1,
        None,
        f"penult: champion is {a}, and no head was before it: `penult promote HEAD` takes another one.\n",
    )
    assert pointed(store) == [a, b, c, b, a]
    penult(store, "promote", c)  # what was taken back is no step of the way back any more
    assert penult(store, "rollback").told["head_id"] == a
    assert verify(store.path) == []


def test_the_history_tells_when_why_who_and_how_good(store: FeatureStore) -> None:
    a, b, _ = heads(store)
    penult(store, "promote", a, "--reason", "the first")
    promote(store, b, score=0.5, date="2026-11-01", run_id="night-1", reason="better", by="penult retrain")
    penult(store, "rollback", "--reason", "it confuses a and b")
    done = penult(store, "champion")
    assert done.code == 0 and done.told.keys() == {"champion", "history"} and done.told["champion"] == a
    at = [datetime.fromisoformat(row.pop("at")) for row in done.told["history"]]
    assert at == sorted(at) and at[0].utcoffset() is not None
    score = own_score(store, a)
    assert done.told["history"] == [
        {
            **{"head_id": a, "date": None, "run_id": None, "reason": "the first"},
            **{"score": score, "by": "operator", "undo": False},
        },
        {
            **{"head_id": b, "date": "2026-11-01", "run_id": "night-1", "reason": "better"},
            **{"score": 0.5, "by": "penult retrain", "undo": False},
        },
        {
            **{"head_id": a, "date": None, "run_id": None, "reason": "it confuses a and b"},
            **{"score": score, "by": "operator", "undo": True},
        },
    ]
    titles, *rows, last = done.said.splitlines()
    assert titles.split() == ["head", "since", "date", "score", "why", "by"] and last == f"champion is {a}."
    assert [row.split()[0] for row in rows] == [a, b, a]
    assert "the first" in rows[0] and f"{score:.1%}" in rows[0] and rows[0].rstrip().endswith("operator")
    assert "2026-11-01" in rows[1] and "50.0%" in rows[1] and rows[1].rstrip().endswith("penult retrain")
    assert "rollback: it confuses a and b" in rows[2]


def test_where_there_is_no_champion(store: FeatureStore) -> None:
    a, b, _ = heads(store)
    for alias in ("champion", "challenger"):
        said = f"{alias} points at no head yet: `penult promote` puts one in use.\n"
        assert penult(store, "champion", "--alias", alias) == (0, {"champion": None, "history": []}, said)
        assert penult(store, "rollback", "--alias", alias) == (1, None, f"penult: {said}")
    penult(store, "promote", a, "--alias", "challenger")
    penult(store, "promote", b, "--alias", "challenger")
    assert penult(store, "rollback", "--alias", "challenger").told["alias"] == "challenger"
    assert penult(store, "champion", "--alias", "challenger").told["champion"] == a
    assert penult(store, "champion").told["champion"] is None and aliases.names(store.path) == ["challenger"]


def test_a_damaged_head_is_never_put_in_use(store: FeatureStore) -> None:
    a, b, c = heads(store)
    for head in (a, b, c):
        penult(store, "promote", head)
    damage(store, b)
    before = Path(layout.alias(store.path, "champion")).read_bytes()
    refused = penult(store, "promote", b)
    assert refused.code == 1 and "sha256" in refused.said
    done = penult(store, "rollback")
    assert done.code == 1 and done.told is None and "Traceback" not in done.said
    assert done.said.startswith(f"penult: champion stays {c}, as the head before it cannot be used: ")
    assert b in done.said and done.said.endswith(f"; `penult promote {a}` takes the one before that.\n")
    assert Path(layout.alias(store.path, "champion")).read_bytes() == before
    damage(store, a)
    assert penult(store, "rollback").said.endswith("; `penult promote HEAD` takes another.\n")
    assert pointed(store) == [a, b, c]
    damage(store, a)  # mended
    assert penult(store, "promote", a).code == 0
    assert penult(store, "rollback").told["head_id"] == c


def test_what_is_in_use_is_no_candidate(store: FeatureStore) -> None:
    a, b, c = heads(store)
    for head in (c, a, b, a):
        penult(store, "promote", head)
    damage(store, b)
    assert f"`penult promote {c}`" in penult(store, "rollback").said


@pytest.mark.parametrize("gone", ["head", "features"])
def test_a_head_without_its_files_or_its_features_is_never_put_in_use(store: FeatureStore, gone: str) -> None:
    a, b, _ = heads(store)
    for head in (a, b):
        penult(store, "promote", head)
    description = store.run_folder(a) / artifact.DESCRIPTION
    told = read_sealed(description)
    if gone == "head":
        shutil.rmtree(store.run_folder(a))
    else:
        write_sealed(description, told | {"meta": told["meta"] | {"feature_set": "gone-00000000"}})
    for command in (["promote", a], ["rollback"]):
        done = penult(store, *command)
        assert done.code == 1 and done.said.startswith("penult: ") and len(done.said.splitlines()) == 1, done
        assert (a if gone == "head" else "gone-00000000") in done.said
    assert pointed(store) == [a, b]


# --- from Python


def test_a_night_that_is_repeated_moves_nothing(store: FeatureStore) -> None:
    """Nor does it undo what people have done after it."""
    a, b, c = heads(store)
    first = promote(store, a, reason="x")
    file = Path(layout.alias(store.path, "champion"))
    whole = file.read_bytes()
    assert promote(store, a, reason="y", date="2026-11-01") == first | {"before": a}
    assert file.read_bytes() == whole
    for _ in range(2):
        assert promote(store, b, run_id="night-1")["head_id"] == b
    rollback(store)
    assert promote(store, b, run_id="night-1") == {"alias": "champion", "head_id": a, "before": a}
    assert pointed(store) == [a, b, a]
    assert promote(store, c, run_id="night-1")["head_id"] == c  # it did not move it there
    assert promote(store, b, run_id="night-2")["head_id"] == b


def test_a_rollback_notes_the_score_that_the_head_had(store: FeatureStore) -> None:
    a, b, _ = heads(store)
    promote(store, a, score=0.25)
    promote(store, b, score=1)  # no float, and yet a score
    rollback(store)
    assert [row["score"] for row in champion(store)["history"]] == [0.25, 1, 0.25]


def test_words_are_one_line_that_can_be_shown(store: FeatureStore) -> None:
    a, b, c = heads(store)
    promote(store, a, reason=" two\nlines,\ta tab, \x1b[1m and \udcff ", by="\udcff")
    promote(store, b, reason="é" * 1000)
    promote(store, c, reason="é" * 1001)
    first, second, third = aliases.history(store.path, "champion")
    assert (first.reason, first.by) == ("two lines, a tab, \ufffd[1m and \ufffd", "\ufffd")
    assert (second.reason, third.reason) == ("é" * 1000, "é" * 999 + "…")


def test_a_user_without_a_name(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    promote(store, heads(store)[0])
    assert aliases.history(store.path, "champion")[0].by is None
    assert penult(store, "champion").code == 0


# --- the file


def test_a_file_of_the_first_version_is_read_and_added_to(store: FeatureStore) -> None:
    a, b, c = heads(store)
    path = layout.alias(store.path, "champion")
    path.parent.mkdir()
    old = [{"head_id": a, "moved": "2026-01-01T00:00:00+00:00"}, {"head_id": b, "moved": "2026-01-02T00:00:00+00:00"}]
    write_sealed(path, {"name": "champion", "moves": old})
    unknown = {"date": None, "run_id": None, "reason": "", "score": None, "by": None, "undo": False}
    told = penult(store, "champion").told
    assert told["history"] == [{"head_id": row["head_id"], "at": row["moved"], **unknown} for row in old]
    assert verify(store.path) == []
    penult(store, "promote", c)
    assert read_sealed(path)["moves"][:2] == old  # as they were written
    assert [penult(store, "rollback").told["head_id"] for _ in range(2)] == [b, a]
    assert aliases.history(store.path, "champion")[-1].score == own_score(store, a)


def test_what_a_newer_penult_notes_is_passed_by_and_kept(store: FeatureStore) -> None:
    a, b, _ = heads(store)
    promote(store, a)
    path = layout.alias(store.path, "champion")
    told = read_sealed(path)
    told["moves"][0]["weather"] = told["mood"] = "fair"
    write_sealed(path, told)
    assert verify(store.path) == [] and penult(store, "champion").told["champion"] == a
    promote(store, b)
    now = read_sealed(path)
    assert now["moves"][0] == told["moves"][0] and now["mood"] == "fair" and pointed(store) == [a, b]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda told: told | {"moves": []},
        lambda told: told | {"moves": {}},
        lambda told: {"name": "champion"},
        lambda told: told | {"moves": [1]},
        lambda told: told | {"moves": [{"head_id": "x"}]},
        *(
            lambda told, wrong=wrong: told | {"moves": [told["moves"][0] | wrong]}
            for wrong in (
                *({"head_id": "../x"}, {"head_id": None}, {"moved": 1}, {"date": 1}, {"run_id": 1}, {"reason": None}),
                *({"score": "1"}, {"by": 1}, {"undo": None}),
            )
        ),
    ],
)
def test_a_damaged_history_is_found(store: FeatureStore, damaged: Callable[[Any], Any]) -> None:
    promote(store, heads(store)[0])
    path = layout.alias(store.path, "champion")
    write_sealed(path, damaged(read_sealed(path)))
    (finding,) = verify(store.path)
    assert finding.path == "aliases/champion.json"
    for command in ("champion", "rollback", "promote"):
        done = penult(store, command)
        assert done.code == 1 and "Expected: where the alias champion points" in done.said
    assert doctor(store.path).artifacts == ["aliases/champion.json"] and verify(store.path) == []


# --- the rule


STEPS = st.lists(st.sampled_from([0, 1, 2, None]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, limit=st.sampled_from([1000, 3]))
def test_a_rollback_is_the_undo_of_a_promotion(template: Path, steps: list[int | None], limit: int) -> None:
    """Against a plain stack; where old moves are dropped, its older part is unknown and the rest is the same."""
    store = FeatureStore(template)
    three, stack, moves = heads(store), list[str](), list[str]()
    shutil.rmtree(template / "aliases", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aliases, "MAX_HISTORY", limit)
        for step in steps:
            before = list(moves)
            if step is not None:
                promote(store, three[step])
                if [three[step]] != stack[-1:]:
                    stack.append(three[step])
                    moves.append(three[step])
            elif len(stack) > 1 and len(aliases.standing(store.path, "champion")) > 1:
                rollback(store)
                stack.pop()
                moves.append(stack[-1])
            else:
                with pytest.raises(StoreNotFound):
                    rollback(store)
                assert moves == before and (limit == 3 or len(stack) < 2)
            known = [move.head_id for move in aliases.standing(store.path, "champion")]
            assert stack[len(stack) - len(known) :] == known and bool(known) == bool(stack)
            assert limit == 3 or known == stack
            assert pointed(store) == moves[-limit:] and aliases.resolve(store.path, "champion") == (stack or [None])[-1]
    shutil.rmtree(template / "aliases", ignore_errors=True)


def test_what_a_rollback_went_back_to_may_be_older_than_the_history(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = heads(store)
    monkeypatch.setattr(aliases, "MAX_HISTORY", 3)
    for head in (a, b, c):
        promote(store, head)
    rollback(store)
    promote(store, a)
    assert pointed(store) == [c, b, a]
    assert rollback(store)["head_id"] == b


# --- two at once


def promote_often(store: Path, first: str, second: str) -> None:
    """Promote two heads by turns, until told to end; says which it has promoted."""
    opened, done = FeatureStore(store), []
    print("ready", flush=True)
    sys.stdin.readline()
    while len(done) < 30:
        with contextlib.suppress(StoreLocked):
            promote(opened, (first, second)[len(done) % 2])
            done.append((first, second)[len(done) % 2])
    print(json.dumps(done))


def test_two_processes_that_promote_at_once_lose_no_move(store: FeatureStore) -> None:
    a, b, c = heads(store)
    d = train_head(store.path, TrainOptions("logreg"))["head_id"]
    with party(promote_often, store.path, a, b) as one, party(promote_often, store.path, c, d) as other:
        told = [json.loads(ended(process)[-1]) for process in started(one, other)]
    moves = pointed(store)
    assert [[head for head in moves if head in mine] for mine in ({a, b}, {c, d})] == told
    assert len(moves) == 60 and verify(store.path) == []


def started(*processes: Any) -> Iterator[Any]:
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    yield from processes


def test_one_at_a_time(store: FeatureStore) -> None:
    a, b, _ = heads(store)
    promote(store, a)
    promote(store, b)
    with store.lock():
        for command in (["promote", a], ["rollback"]):
            assert penult(store, *command).code == 75
        assert penult(store, "champion").told["champion"] == b
    assert pointed(store) == [a, b]
