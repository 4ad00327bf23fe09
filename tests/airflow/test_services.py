"""A backfill, the Dag that waits for promotions, and an approval, by Airflow's own scheduler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from nights import Night
from photos import FOLDER, airflow, arrive, champion, correct
from services import Api, running, wait_for


@pytest.fixture(scope="module")
def api(nights: dict[str, Night]) -> Iterator[Api]:
    """Airflow at work, with a backfill that was asked for before: SQLite has one writer at a time."""
    airflow("dags", "reserialize")
    arrive("october", "2026-10")
    dates = ["--from-date", "2026-10-30", "--to-date", "2026-11-01"]
    airflow("backfill", "create", "--dag-id", "penult_nightly", *dates, "--max-active-runs", "1")
    with running() as started:
        yield started


class Run:
    """One run of a Dag."""

    def __init__(self, api: Api, dag: str, run_id: str) -> None:
        self._api = api
        self._run_id = run_id
        self._path = f"/dags/{dag}/dagRuns/{quote(run_id)}"

    def ended(self) -> str:
        """Wait for the run's end; return its state."""

        def state() -> str | None:
            found = self._api("GET", self._path)["state"]
            return found if found in ("success", "failed") else None

        return wait_for(self._path, state)

    @property
    def tasks(self) -> dict[str, str]:
        """The state of each task."""
        found = self._api("GET", f"{self._path}/taskInstances")["task_instances"]
        return {task["task_id"]: task["state"] for task in found}

    def told(self, task: str) -> Any:
        """What a task has returned."""
        path = f"{self._path}/taskInstances/{task}/xcomEntries/return_value?deserialize=true"
        return self._api("GET", path)["value"]

    def answer(self, option: str) -> str:
        """Wait until the run asks for an approval, and answer; return what was asked."""
        wait_for("a question", lambda: self.tasks["approve"] == "awaiting_input")
        # Airflow 3.3 takes a task for lost if the answer comes before the scheduler has noted that the task waits.
        noted = f"Received executor event with state success .*task_id='approve', run_id='{re.escape(self._run_id)}'"
        wait_for("the scheduler", lambda: re.search(noted, (FOLDER / "scheduler.log").read_text()))
        path = f"{self._path}/taskInstances/approve/-1/hitlDetails"
        asked = self._api("GET", path)
        self._api("PATCH", path, {"chosen_options": [option]})
        return f"{asked['subject']} {asked['body']}"


def runs(api: Api, dag: str, count: int, kind: str) -> list[Run]:
    """Wait until a Dag has so many runs of a kind; return them, oldest first."""

    def found() -> list[dict[str, Any]]:
        told = api("GET", f"/dags/{dag}/dagRuns?order_by=id&run_type={kind}")["dag_runs"]
        return told if len(told) >= count else []

    return [Run(api, dag, run["dag_run_id"]) for run in wait_for(f"{count} runs of {dag}", found)]


def approval(api: Api, date: str) -> Run:
    """Start the Dag that asks for a logical date."""
    started = api("POST", "/dags/penult_approval/dagRuns", {"logical_date": f"{date}T00:00:00Z"})
    return Run(api, "penult_approval", started["dag_run_id"])


def events(api: Api) -> list[dict[str, Any]]:
    """What each promotion has told, oldest first."""
    return [event["extra"] for event in api("GET", "/assets/events?order_by=timestamp")["asset_events"]]


def test_who_waits_for_promotions_is_told_of_the_newest(api: Api, nights: dict[str, Night]) -> None:
    [run] = runs(api, "penult_serve", 1, "asset_triggered")
    assert run.ended() == "success"
    assert run.told("reload") == nights["corrected labels"].events[-1]


def test_a_backfill_uses_its_dates_sources_and_leaves_the_champion_alone(api: Api, nights: dict[str, Night]) -> None:
    first, second = runs(api, "penult_nightly", 2, "backfill")
    assert (first.ended(), second.ended()) == ("success", "success")
    outcome = first.told("retrain")
    assert (outcome["date"], outcome["embed"]["embedded"], outcome["decision"]) == ("2026-10-30", 30, "kept")
    assert "later date" in outcome["reason"]
    done = {"plan": "success", "retrain": "success", "check": "success", "publish": "skipped"}
    assert first.tasks == done
    assert second.tasks == done | {"retrain": "skipped", "check": "skipped"}  # nothing has changed since
    before = nights["again"]
    assert (champion()["history"], events(api)) == (before.history, before.events)


def test_nothing_is_promoted_without_approval(api: Api) -> None:
    before, told = champion(), events(api)
    correct("threes-and-eights", "2026-11-08")
    run = approval(api, "2026-11-08")
    asked = run.answer("Reject")
    assert run.ended() == "success"
    outcome = run.told("retrain")
    assert outcome["decision"] == "kept" and outcome["difference"]["ci"][0] > 0
    assert outcome["challenger"]["head_id"] in asked
    skipped = {"promote": "skipped", "publish": "skipped"}
    assert run.tasks == {"retrain": "success", "check": "success", "approve": "success"} | skipped
    assert (champion(), events(api)) == (before, told)


def test_an_approved_head_is_the_champion_and_others_are_told(api: Api) -> None:
    before, told = champion(), events(api)
    arrive("last")
    run = approval(api, "2026-11-09")
    run.answer("Approve")
    assert run.ended() == "success"
    assert set(run.tasks.values()) == {"success"}
    head = run.told("retrain")["challenger"]
    now = champion()
    assert now["champion"] == head["head_id"] and now["history"][:-1] == before["history"]
    assert now["history"][-1]["reason"] == "approved in Airflow"
    *earlier, event = events(api)
    assert earlier == told and (event["head_id"], event["score"]) == (head["head_id"], head["score"])
    newest = runs(api, "penult_serve", 2, "asset_triggered")[-1]
    assert newest.ended() == "success" and newest.told("reload") == event
