"""A night of `examples/airflow/penult_nightly.py`, and what is left of it in Airflow and in the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.dag_processing.dagbag import DagBag
from airflow.models.asset import AssetEvent
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session

from photos import FOLDER, champion


@dataclass(frozen=True)
class Night:
    """What Airflow knows of one run of the Dag, and the champion's history after it."""

    state: str
    tasks: dict[str, str]
    tries: dict[str, int]
    outcome: dict[str, Any] | None
    events: list[dict[str, Any]]
    history: list[dict[str, Any]]


def play(date: str) -> Night:
    """Run the Dag for a logical date, as `airflow dags test` does."""
    dag = DagBag(FOLDER / "dags").dags["penult_nightly"]
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
    run = dag.test(logical_date=datetime.fromisoformat(date).replace(tzinfo=UTC))
    tasks = run.get_task_instances()
    with create_session() as session:
        sent = (
            session.query(XComModel).filter_by(run_id=run.run_id, task_id="retrain", key="return_value").one_or_none()
        )
        return Night(
            str(run.state),
            {task.task_id: str(task.state) for task in tasks},
            {task.task_id: task.try_number for task in tasks},
            sent and XComModel.deserialize_value(sent),
            [event.extra for event in session.query(AssetEvent).order_by(AssetEvent.id)],
            champion()["history"],
        )
