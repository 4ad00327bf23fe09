"""The durable state of a night: which of its steps are done, so that a night that was killed goes on after the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from featurestore import layout
from featurestore.runs import utc_now
from featurestore.storage.files import delete, exists, listed, make_folder, read_sealed, write_sealed
from featurestore.storage.lock import locked
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from pipelines.retraining.recipe import Recipe

KIND = "retrain"

Progress = Callable[[int, int], None]


class Night:
    """One recipe on one logical date.

    Attributes:
        told: what is kept of it: "recipe" (its name), "digest", "date", "run_id", "started", "steps" (what each step
            came to, by name), "seconds" (of each step); "error", why an attempt ended; once it has ended "outcome", the
            object that ``penult retrain --json`` prints; and once nothing is left to do "state", see ``state_of``.
    """

    def __init__(self, path: PurePath, told: dict[str, Any]) -> None:
        self.told = told
        self._path = path

    @classmethod
    def begin(cls, store: FeatureStore, recipe: Recipe) -> Night:
        """Return the state of a recipe's night, read or begun; ``night_lock`` must be held."""
        path = layout.night(store.path, recipe.date.isoformat(), recipe.digest)
        if exists(path):
            return cls(path, read_sealed(path, required=True))
        told = {
            "recipe": recipe.name,
            "digest": recipe.digest,
            "date": recipe.date.isoformat(),
            "run_id": store.new_run_id(KIND),
            "started": utc_now(),
            "steps": {},
            "seconds": {},
        }
        make_folder(path.parent)
        return cls(path, told)

    @property
    def run_id(self) -> str:
        """The id of the night's run."""
        return str(self.told["run_id"])

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What the night came to; None if it has not ended."""
        return self.told.get("outcome")

    def step(self, name: str, do: Callable[[], Any]) -> Any:
        """Return what a step came to, as JSON; do it, and note that durably, unless it was done before."""
        if name not in self.told["steps"]:
            began = time.perf_counter()
            came_to = do()
            self.told["seconds"][name] = round(time.perf_counter() - began, 3)
            self.note(**{name: came_to})
        return self.told["steps"][name]

    def note(self, **steps: Any) -> None:
        """Note what steps came to, durably."""
        self.told["steps"] |= steps
        self._write()

    def end(self, outcome: dict[str, Any]) -> None:
        """Note what the night came to, durably; its steps are not needed any more."""
        self.told |= {"outcome": outcome, "steps": {}}
        self.told.pop("error", None)
        self._write()

    def close(self, state: dict[str, Any]) -> None:
        """Note that nothing is left to do, and the store's state, durably."""
        self.told["state"] = state
        self._write()

    def fail(self, error: str) -> None:
        """Note why an attempt ended, for `penult runs`; the next attempt goes on."""
        self.told["error"] = error
        self._write()

    def remove(self) -> None:
        """Remove the night's state."""
        delete(self._path)

    def _write(self) -> None:
        write_sealed(self._path, self.told)


@dataclass(frozen=True)
class Console:
    """How a night speaks to people: lines, and a bar per long piece of work. By default it is silent."""

    say: Callable[[str], None] = lambda _: None
    bar: Callable[[str], AbstractContextManager[Progress | None]] = lambda _: nullcontext()


@dataclass(frozen=True)
class Work:
    """What the steps of a night share."""

    store: FeatureStore
    recipe: Recipe
    night: Night
    console: Console

    @cached_property
    def earlier(self) -> list[Night]:
        """The nights of this recipe that began before tonight and have ended, oldest first."""
        return [
            night
            for night in nights(self.store.path)
            if night.told["recipe"] == self.recipe.name
            and night.run_id < self.night.run_id
            and night.outcome is not None
        ]


def state_of(store: FeatureStore, champion: str | None) -> dict[str, Any]:
    """Return what decides whether a night has anything to do: the versions of the tables, and the champion."""
    return {"catalog": store.catalog.state(), "labels": store.labels.state(), "champion": champion}


def nights(store: PurePath) -> list[Night]:
    """Return the nights of a store, in the order in which they began."""
    paths = [path for path in listed(store / layout.NIGHTS) if path.suffix == layout.JSON]
    found = [Night(path, read_sealed(path, required=True)) for path in paths]
    return sorted(found, key=lambda night: night.run_id)


@contextmanager
def night_lock(store: PurePath) -> Iterator[None]:
    """Let one night at a time be under way in a store.

    Raises:
        StoreLocked: another night is.
    """
    make_folder(store / layout.NIGHTS)
    with locked(store / layout.NIGHTS):
        yield
