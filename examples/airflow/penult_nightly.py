"""Retrain every night with penult, and tell others when the champion has changed: copy this file into Airflow's Dags.

penult stays in a virtual environment of its own: Airflow and penult share nothing but the command line.
docs/schedule.md says why the Dag is cut as it is.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset, dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

PENULT = os.environ.get("PENULT_COMMAND", "/opt/penult/.venv/bin/penult")
STORE = os.environ.get("PENULT_STORE", "/srv/photos/photos.store")
RECIPE = os.environ.get("PENULT_RECIPE", "/srv/photos/photos.toml")
SCHEDULE = "0 3 * * *"  # UTC

CHAMPION = Asset(f"x-penult://{STORE}/champion")
NIGHT = {
    "PENULT": PENULT,
    "PENULT_STORE": STORE,
    "RECIPE": RECIPE,
    # A run that somebody starts by hand may have no logical date.
    "DATE": "{{ (dag_run.logical_date or dag_run.run_after) | ds }}",
}
# Airflow takes the last line of stdout and stderr together, so the outcome is printed last. Exit code 4: a check has
# blocked the night; its outcome is there all the same, and the next task says why.
RETRAIN = (
    'outcome=$("$PENULT" retrain "$RECIPE" --date "$DATE" --skip-code 99 --wait 30m --timeout 6h --json); code=$?; '
    'echo "$outcome"; [ $code -eq 4 ] || exit $code'
)


@dag(
    schedule=SCHEDULE,
    start_date=datetime(2026, 10, 1, tzinfo=UTC),
    catchup=False,  # nights that were missed: airflow backfill create
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["penult"],
)
def penult_nightly() -> None:
    """Plan, retrain, check, publish: one night."""
    plan = BashOperator(
        task_id="plan",
        bash_command='"$PENULT" retrain "$RECIPE" --date "$DATE" --plan --json',
        env=NIGHT,
        append_env=True,
        output_processor=json.loads,
    )
    retrain = BashOperator(
        task_id="retrain",
        bash_command=RETRAIN,
        env=NIGHT,
        append_env=True,
        skip_on_exit_code=99,  # nothing changed: the tasks below are skipped too
        output_processor=json.loads,
    )

    @task(retries=0)
    def check(outcome: dict[str, Any]) -> None:
        """Fail if a check of the data has blocked the night; trying again would change nothing."""
        if outcome["decision"] == "blocked":
            raise AirflowFailException(outcome["reason"])

    @task(inlets=[CHAMPION], outlets=[CHAMPION])
    def publish(outcome: dict[str, Any], *, inlet_events: Any, outlet_events: Any) -> None:
        """Tell who waits for a new champion, once per night that made one."""
        if outcome["decision"] != "promoted":
            raise AirflowSkipException(outcome["reason"])
        if any(event.extra.get("run_id") == outcome["run_id"] for event in inlet_events[CHAMPION]):
            raise AirflowSkipException("This promotion has been told before.")
        outlet_events[CHAMPION].extra = {
            "head_id": outcome["challenger"]["head_id"],
            "score": outcome["challenger"]["score"],
            "rows": outcome["n"]["train"],
            "date": outcome["date"],
            "run_id": outcome["run_id"],
            "published": outcome["published"],
        }

    outcome = retrain.output
    plan >> retrain
    check(outcome) >> publish(outcome)


@dag(schedule=[CHAMPION], catchup=False, max_active_runs=1, tags=["penult"])
def penult_serve() -> None:
    """Runs only after a promotion; here stands what has to follow one."""

    @task(inlets=[CHAMPION])
    def reload(*, inlet_events: Any) -> dict[str, Any]:
        """Return what the newest promotion told."""
        champion = inlet_events[CHAMPION][-1].extra
        print(f"{champion['head_id']} scored {champion['score']:.1%}; its export: {champion.get('published')}")
        return champion

    reload()


penult_nightly()
penult_serve()
