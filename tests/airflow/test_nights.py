"""The Dag of every night in a real Airflow, on real images with real weights."""

from __future__ import annotations

import json

from airflow.dag_processing.dagbag import DagBag
from airflow.models.asset import AssetEvent
from airflow.utils.session import create_session

from nights import Night
from photos import FOLDER, STORE, airflow

DONE = {"plan": "success", "retrain": "success", "check": "success"}


def test_the_dags_are_read_without_errors() -> None:
    said = airflow("dags", "list-import-errors", "--local", "--output", "json")
    assert json.loads(said.splitlines()[-1]) == []
    bag = DagBag(FOLDER / "dags")
    assert set(bag.dags) == {"penult_nightly", "penult_serve", "penult_approval"} and not bag.import_errors
    assert all(dag.max_active_runs == 1 for dag in bag.dags.values())


def test_new_images_make_the_first_champion(nights: dict[str, Night]) -> None:
    night = nights["new images"]
    assert (night.state, night.tasks) == ("success", DONE | {"publish": "success"})
    assert (night.outcome["decision"], night.outcome["embed"]["embedded"]) == ("promoted", 300)
    head = night.outcome["challenger"]
    assert [move["head_id"] for move in night.history] == [head["head_id"]]
    [event] = night.events
    assert (event["head_id"], event["score"]) == (head["head_id"], head["score"])
    assert event["rows"] == night.outcome["n"]["train"] > 150


def test_a_retry_goes_on_where_the_first_attempt_was_killed(nights: dict[str, Night]) -> None:
    night = nights["new images"]
    assert not (FOLDER / "kill").exists()
    assert (night.tries["retrain"], night.tries["publish"]) == (2, 1)
    assert night.outcome["repeated"] is False


def test_corrected_labels_make_another_champion(nights: dict[str, Night]) -> None:
    night, before = nights["corrected labels"], nights["new images"]
    assert (night.state, night.tasks) == ("success", DONE | {"publish": "success"})
    assert (night.outcome["decision"], night.outcome["embed"]["embedded"]) == ("promoted", 0)
    assert night.outcome["labels"]["changed"] > 50 and night.outcome["difference"]["ci"][0] > 0
    assert night.outcome["champion"]["head_id"] == before.outcome["challenger"]["head_id"]
    heads = [night.outcome["champion"]["head_id"], night.outcome["challenger"]["head_id"]]
    assert [event["head_id"] for event in night.events] == [move["head_id"] for move in night.history] == heads


def test_a_night_without_news_is_skipped(nights: dict[str, Night]) -> None:
    night, before = nights["nothing"], nights["corrected labels"]
    skipped = dict.fromkeys(("retrain", "check", "publish"), "skipped")
    assert (night.state, night.tasks) == ("success", skipped | {"plan": "success"})
    assert (night.events, night.history) == (before.events, before.history)


def test_a_corrupt_batch_is_blocked_once_and_says_why(nights: dict[str, Night]) -> None:
    night, before = nights["corrupt batch"], nights["corrected labels"]
    assert (night.state, night.tasks) == ("failed", DONE | {"check": "failed", "publish": "upstream_failed"})
    assert night.tries["check"] == 1
    assert night.outcome["decision"] == "blocked" and "failures" in night.outcome["reason"]
    assert night.outcome["embed"]["failed"] == 20
    assert (night.events, night.history) == (before.events, before.history)


def test_a_night_run_again_repeats_its_outcome_and_tells_nobody(nights: dict[str, Night]) -> None:
    night, before = nights["again"], nights["corrected labels"]
    assert (night.state, night.tasks) == ("success", DONE | {"publish": "skipped"})
    assert night.outcome == before.outcome | {"repeated": True}
    assert (night.events, night.history) == (before.events, before.history)


def test_the_asset_is_the_champion_of_the_store(nights: dict[str, Night]) -> None:
    with create_session() as session:
        assert {event.asset.uri for event in session.query(AssetEvent)} == {f"x-penult://{STORE}/champion"}
