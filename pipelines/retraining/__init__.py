"""The scheduled job: embed what is new, compare heads, set the winner against the champion, promote it by rule.

Each night is one run, idempotent by its recipe and its logical date, and explained by its record.
Imports all other jobs.
"""

from typing import TYPE_CHECKING, Any

from pipelines.retraining.options import RetrainOptions

if TYPE_CHECKING:
    from pipelines.retraining.nightly import retrain

__all__ = ["RetrainOptions", "retrain"]


def __getattr__(name: str) -> Any:
    """Import the job when it is asked for: the command line needs the options alone to be shown."""
    if name == "retrain":
        from pipelines.retraining.nightly import retrain

        return retrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
