"""Tell MLflow what was trained, compared and put in use; what goes wrong there ends no job and costs no result."""

from pipelines.tracking.client import require
from pipelines.tracking.heads import track_aliases, track_run

__all__ = ["require", "track_aliases", "track_run"]
