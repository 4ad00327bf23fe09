"""The Beam runners that an embed job may run on, and what each needs to be told after ``--``.

What a runner reports is not relied on: the journal says which shards are finished.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from featurestore.errors import RunnerError, UsageError

CONNECT_SECONDS = 10.0
IN_PROCESS, DASK = "FnApiRunner", "DaskRunner"


@dataclass(frozen=True)
class Runner:
    """One runner: Beam's class, and the options of which one must be given.

    Attributes:
        path: of the class.
        places: options that say where the engine is; the first is its address.
        added: options that penult gives, with the number of tasks in them; those of the user come after.
        package: which it needs, and the extra of penult that brings it.
    """

    path: str
    places: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    package: str | None = None
    extra: str | None = None

    @property
    def name(self) -> str:
        """The short name."""
        return self.path.rpartition(".")[2]

    @property
    def in_process(self) -> bool:
        """Whether all of it runs in this process."""
        return self.name == IN_PROCESS

    def check(self, arguments: Sequence[str]) -> None:
        """Raise UsageError unless the options say where the engine is."""
        if self.places and not any(value_of(arguments, place) for place in self.places):
            raise UsageError(
                f"Expected: -- {' or '.join(f'{place}=…' for place in self.places)} after --runner {self.name}. "
                f"Got: {' '.join(arguments) or 'nothing'}."
            )

    def reach(self, arguments: Sequence[str]) -> None:
        """Raise RunnerError if a package is missing, or nothing listens at the engine's address.

        An address in another form than host and port is left to Beam.
        """
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise RunnerError(f"{self.name} needs {self.package}: install penult[{self.extra}].")
        address = (value_of(arguments, self.places[0]) if self.places else None) or ""
        try:
            told = urlsplit(address if "://" in address else f"//{address}")
            host, port = told.hostname, told.port
        except ValueError:
            return
        if host and port:
            try:
                socket.create_connection((host, port), CONNECT_SECONDS).close()
            except OSError as error:
                raise RunnerError(
                    f"Nothing answers at {address} ({error.strerror or error}): start what {self.name} runs on, or "
                    f"correct {self.places[0]}."
                ) from error

    def arguments(self, given: Sequence[str], tasks: int) -> list[str]:
        """Return the options for Beam: those that are given, and what penult adds."""
        return [f"--runner={self.path}", *(option.format(tasks=tasks) for option in self.added), *given]


_BEAM = "apache_beam.runners"
RUNNERS = {
    runner.name: runner
    for runner in (
        Runner(f"{_BEAM}.portability.fn_api_runner.FnApiRunner"),
        Runner(
            f"{_BEAM}.dask.dask_runner.DaskRunner",
            ("--dask_client_address", "--dask_scheduler_file"),
            ("--dask_npartitions={tasks}",),
            "distributed",
            "dask",
        ),
        Runner(f"{_BEAM}.portability.portable_runner.PortableRunner", ("--job_endpoint",)),
        Runner(f"{_BEAM}.portability.flink_runner.FlinkRunner"),
        Runner(f"{_BEAM}.portability.spark_runner.SparkRunner"),
        Runner(f"{_BEAM}.dataflow.dataflow_runner.DataflowRunner"),
    )
}
NAMES = f"{', '.join(list(RUNNERS)[:-1])} or {list(RUNNERS)[-1]}"
REFUSED = {  # by the end of a name
    "direct": "it may start another runner, which it looks for on the network",
    "prism": "it looks for Prism on the network: start Prism, and use PortableRunner",
}


def find(name: str) -> Runner:
    """Return a runner by its short name, in any spelling that Beam takes, or by its class.

    Raises:
        UsageError: there is no such runner, or it is refused.
    """
    known = {spelling: runner for runner in RUNNERS.values() for spelling in _spellings(runner.name)}
    found = known.get(name.lower()) or next((runner for runner in RUNNERS.values() if runner.path == name), None)
    if found is not None:
        return found
    plain = name.rpartition(".")[2].lower().removesuffix("runner")
    why = next((f" {name} is refused: {why}." for end, why in REFUSED.items() if plain.endswith(end)), "")
    raise UsageError(f"Expected: --runner {NAMES}. Got: {name!r}.{why}")


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """Return the value of an option among words of a command line; None if it is not there."""
    for at, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[at + 1 : at + 2]), "")
    return None


def _spellings(name: str) -> tuple[str, str]:
    return name.lower(), name.lower().removesuffix("runner")
