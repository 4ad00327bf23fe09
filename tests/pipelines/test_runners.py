"""Beam runners: which there are, what they need to be told, and whether anything answers there."""

from __future__ import annotations

import socket

import pytest

from featurestore.errors import RunnerError, UsageError
from object_servers import free_ports
from pipelines import runners
from pipelines.options import EmbedOptions

DASK = "--dask_client_address"


@pytest.mark.parametrize("runner", runners.RUNNERS.values(), ids=lambda runner: runner.name)
def test_a_runner_is_found_in_every_spelling_that_beam_takes(runner: runners.Runner) -> None:
    from apache_beam.runners.runner import create_runner

    for name in (runner.name, runner.name.lower(), runner.name.upper(), runner.name[: -len("Runner")], runner.path):
        assert runners.find(name) is runner
    if runner.name != "DataflowRunner":  # which needs packages of its cloud
        assert type(create_runner(runner.path)).__name__ == runner.name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("direct", "it may start another runner"),
        ("DIRECTRUNNER", "it may start another runner"),
        ("SwitchingDirectRunner", "it may start another runner"),
        ("apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner", "it may start another runner"),
        ("PrismRunner", "start Prism, and use PortableRunner"),
        ("x.y.DaskRunner", None),
        ("", None),
        ("runner", None),
    ],
)
def test_other_runners_are_refused_with_a_list(name: str, why: str | None) -> None:
    with pytest.raises(UsageError) as refused:
        EmbedOptions(runner=name).check()
    said = str(refused.value)
    assert refused.value.exit_code == 2
    assert said.startswith(
        "Expected: --runner FnApiRunner, DaskRunner, PortableRunner, FlinkRunner, SparkRunner or DataflowRunner. "
        f"Got: {name!r}."
    )
    assert ("is refused: " in said) == (why is not None) and (why or "") in said


@pytest.mark.parametrize(
    ("runner", "arguments", "expected"),
    [
        (
            "DaskRunner",
            (),
            f"Expected: -- {DASK}=… or --dask_scheduler_file=… after --runner DaskRunner. Got: nothing.",
        ),
        ("dask", (DASK,), "Got: --dask_client_address."),
        ("dask", (f"{DASK}=",), f"Got: {DASK}=."),
        ("PortableRunner", ("--environment_type=EXTERNAL",), "Expected: -- --job_endpoint=… after --runner"),
    ],
)
def test_where_an_engine_is_has_to_be_said(runner: str, arguments: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UsageError) as refused:
        EmbedOptions(runner=runner, runner_arguments=arguments).check()
    assert expected in str(refused.value)


@pytest.mark.parametrize("arguments", [(f"{DASK}=tcp://h:1",), (DASK, "tcp://h:1"), ("--dask_scheduler_file=f",)])
def test_an_engine_that_is_named_is_let_pass(arguments: tuple[str, ...]) -> None:
    EmbedOptions(runner="DaskRunner", runner_arguments=arguments).check()


@pytest.mark.parametrize(
    ("runner", "option", "form"), [("DaskRunner", DASK, "tcp://"), ("portable", "--job_endpoint", "")]
)
def test_an_engine_that_is_not_there_is_told_from_one_that_is(runner: str, option: str, form: str) -> None:
    found = runners.find(runner)
    with socket.create_server(("127.0.0.1", 0)) as server:
        found.reach([f"{option}={form}127.0.0.1:{server.getsockname()[1]}"])
    address = f"{form}127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(
        RunnerError, match=f"^Nothing answers at {address} .Connection refused.: start what {found.name} "
    ):
        found.reach([option, address])


@pytest.mark.parametrize("address", ["embed", "tcp://h:x", "tcp://[::1", "h"])
def test_an_address_of_another_form_is_left_to_beam(address: str) -> None:
    runners.find("PortableRunner").reach([f"--job_endpoint={address}"])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunnerError, match=r"^DaskRunner needs distributed: install penult\[dask\]\.$"):
        runners.find("DaskRunner").reach([f"{DASK}=tcp://127.0.0.1:1"])
    runners.find("PortableRunner").reach(["--job_endpoint=embed"])


def test_what_penult_asks_of_a_runner_comes_before_what_the_user_asks() -> None:
    def given(name: str) -> list[str]:
        first, *rest = runners.find(name).arguments(["--x=1"], 7)
        assert first == f"--runner={runners.find(name).path}"
        return rest

    assert given("dask") == ["--dask_npartitions=7", "--x=1"]  # of its own, each shard
    assert given("fnapi") == given("portable") == given("flink") == ["--x=1"]
