"""The night of penult_nightly.py, but a person says whether the challenger becomes the champion.

Its recipe has `[promote] margin = 1`, so that no head is promoted by rule but the first: a night's best head is only
the challenger. Copy this file instead of penult_nightly.py, not beside it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

PENULT = os.environ.get("PENULT_COMMAND", "/opt/penult/.venv/bin/penult")
STORE = os.environ.get("PENULT_STORE", "/srv/photos/photos.store")
RECIPE = os.environ.get("PENULT_APPROVAL_RECIPE", "/srv/photos/approval.toml")
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
    catchup=False,
    max_active_runs=1,  # the next night waits for the answer
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["penult"],
)
def penult_approval() -> None:
    """Retrain, check, ask, promote, publish: one night."""
    retrain = BashOperator(
        task_id="retrain",
        bash_command=RETRAIN,
        env=NIGHT,
        append_env=True,
        skip_on_exit_code=99,
        output_processor=json.loads,
    )

    @task.branch(retries=0)
    def check(outcome: dict[str, Any]) -> str | list[str]:
        """Fail if a check has blocked the night; ask only about a head that is shown to be better."""
        if outcome["decision"] == "blocked":
            raise AirflowFailException(outcome["reason"])
        if outcome["decision"] == "promoted":  # the first champion: there was none to compare it with
            return "publish"
        if not outcome["difference"] or outcome["difference"]["ci"][0] <= 0:
            print(outcome["reason"])
            return []
        return "approve"

    approve = ApprovalOperator(
        task_id="approve",
        subject="Promote tonight's head of {{ ti.xcom_pull('retrain')['date'] }}?",
        body=(
            "{% set night = ti.xcom_pull('retrain') %}"
            "{{ night.challenger.head_id }} scores {{ '%.1f' | format(100 * night.challenger.score) }} %, "
            "the champion {{ '%.1f' | format(100 * night.champion.score) }} %, "
            "on the same {{ night.n.test }} test images. The report: {{ night.report }}"
        ),
        defaults=ApprovalOperator.REJECT,  # when nobody answers
        response_timeout=timedelta(hours=20),
        ignore_downstream_trigger_rules=True,  # a no skips `publish` too
    )
    promote = BashOperator(
        task_id="promote",
        bash_command='"$PENULT" promote "$HEAD" --reason "approved in Airflow" --json',
        env=NIGHT | {"HEAD": "{{ ti.xcom_pull('retrain')['challenger']['head_id'] }}"},
        append_env=True,
        output_processor=json.loads,
    )

    @task(inlets=[CHAMPION], outlets=[CHAMPION], trigger_rule="none_failed_min_one_success")
    def publish(outcome: dict[str, Any], *, inlet_events: Any, outlet_events: Any) -> None:
        """Tell who waits for a new champion; the recipe's [publish] exports it on the next night."""
        if any(event.extra.get("run_id") == outcome["run_id"] for event in inlet_events[CHAMPION]):
            raise AirflowSkipException("This promotion has been told before.")
        outlet_events[CHAMPION].extra = {
            "head_id": outcome["challenger"]["head_id"],
            "score": outcome["challenger"]["score"],
            "rows": outcome["n"]["train"],
            "date": outcome["date"],
            "run_id": outcome["run_id"],
        }

    outcome = retrain.output
    told = publish(outcome)
    check(outcome) >> [approve, told]
    approve >> promote >> told


penult_approval()
