"""The place where the nights are played, and the nights: both are made once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from photos import BATCHES, FOLDER, KILLED_ONCE, LABELS, PENULT, RECIPE, ROOT, airflow, arrive, correct

# The Dags end, so that the scheduler does not start the night of the day on which the tests are run.
START, END = "start_date=datetime(2026, 10, 1, tzinfo=UTC),", "end_date=datetime(2026, 11, 10, tzinfo=UTC),"


@pytest.fixture(scope="session", autouse=True)
def site() -> Iterator[None]:
    """The images, two recipes, the Dags in Airflow's folder, and its database; removed in the end."""
    (FOLDER / "photos.toml").write_text(RECIPE)
    (FOLDER / "approval.toml").write_text(f"{RECIPE}margin = 1\n")
    (FOLDER / "penult").write_text(KILLED_ONCE)
    (FOLDER / "penult").chmod(0o755)
    (FOLDER / "dags").mkdir()
    for path in (ROOT / "examples" / "airflow").glob("*.py"):
        text = path.read_text()
        assert START in text
        (FOLDER / "dags" / path.name).write_text(text.replace(START, f"{START} {END}"))
    LABELS.mkdir()
    subprocess.run([PENULT.parent / "python", Path(__file__).with_name("corpus.py"), BATCHES], check=True)
    airflow("db", "migrate")
    yield
    shutil.rmtree(FOLDER)


@pytest.fixture(scope="session")
def nights(site: None) -> dict[str, Any]:
    """Nights in November: new images, corrected labels, nothing, a corrupt batch, the second one again."""
    from nights import play  # which imports Airflow, when `photos` has set it up

    played = {}
    arrive("first")
    (FOLDER / "kill").touch()
    played["new images"] = play("2026-11-04")
    correct("ones-and-sevens", "2026-11-05")
    played["corrected labels"] = play("2026-11-05")
    played["nothing"] = play("2026-11-06")
    arrive("corrupt")
    played["corrupt batch"] = play("2026-11-07")
    played["again"] = play("2026-11-05")
    return played
