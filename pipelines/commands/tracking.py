"""The options ``--track`` and ``--experiment``, and what the commands that have them do before and after their work."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated

from featurestore.options import Option
from pipelines.options import TrackOptions

_URI = "Tell this MLflow server or database too, such as sqlite:///mlflow.db."
TRACKED = {"uri": Option(_URI, flag="--track", metavar="URI")}
Track = Annotated[TrackOptions, TRACKED]


def check_tracking(track: TrackOptions) -> None:
    """Raise UsageError, before the work begins, for what cannot be tracked."""
    track.check()
    if track.uri is not None:
        from pipelines.tracking import require

        require()


def track_run(track: TrackOptions, store: PurePath, run_id: str) -> None:
    """Write a run to MLflow where that is asked for; say what goes wrong."""
    if track.uri is not None:
        from pipelines import tracking
        from pipelines.commands import output

        tracking.track_run(store, run_id, track, output.say)


def track_aliases(track: TrackOptions, store: PurePath) -> None:
    """Write where the aliases point to MLflow, likewise."""
    if track.uri is not None:
        from pipelines import tracking
        from pipelines.commands import output

        tracking.track_aliases(store, track, output.say)
