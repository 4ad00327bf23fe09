"""Photos, their labels, a recipe and a store in a temporary folder, and how to speak to penult and to Airflow.

Airflow reads its settings when it is first imported: this module is imported before it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = Path(tempfile.mkdtemp(prefix="penult-airflow-"))
BIN = Path(sys.executable).parent
PENULT = Path(os.environ.get("PENULT_COMMAND", ROOT / ".venv" / "bin" / "penult"))
STORE = FOLDER / "photos.store"
BATCHES, PHOTOS, LABELS = FOLDER / "batches", FOLDER / "photos", FOLDER / "labels"

os.environ |= {
    "AIRFLOW_HOME": str(FOLDER / "airflow"),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{FOLDER}/airflow.db?timeout=60",
    "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "PENULT_COMMAND": str(FOLDER / "penult"),
    "PENULT_STORE": str(STORE),
    "PENULT_RECIPE": str(FOLDER / "photos.toml"),
    "PENULT_APPROVAL_RECIPE": str(FOLDER / "approval.toml"),
}

RECIPE = """
[source]
location = "photos/{date:%Y-%m}"
max_failure_rate = 1.0

[labels]
file = "labels/{date}.csv"

[compare]
heads = ["ncm", "logreg"]
C = [0.1, 1]

[checks]
failures = "block"

[promote]
rule = "better"
"""

# The first attempt of the first night dies once the night has begun: a retry has to go on from there.
KILLED_ONCE = f"""#!/bin/sh
if [ -e "{FOLDER}/kill" ] && [ "$1 $5" != "retrain --plan" ]; then
    rm "{FOLDER}/kill"
    "{PENULT}" "$@" &
    while [ ! -d "{STORE}/nights" ]; do sleep 0.05; done
    kill -9 $!
    wait $!
    exit $?
fi
exec "{PENULT}" "$@"
"""


def airflow(*arguments: str) -> str:
    """Run Airflow's command line, and return what it prints."""
    ran = subprocess.run([BIN / "airflow", *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def champion() -> dict[str, Any]:
    """The champion and its history."""
    ran = subprocess.run([PENULT, "champion", "--json"], check=True, capture_output=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def arrive(batch: str, month: str = "2026-11") -> None:
    """Let a batch of images arrive."""
    shutil.copytree(BATCHES / batch, PHOTOS / month, dirs_exist_ok=True)


def correct(name: str, date: str) -> None:
    """Let somebody correct labels on a date."""
    shutil.copy(BATCHES / f"{name}.csv", LABELS / f"{date}.csv")
