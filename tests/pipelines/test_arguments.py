"""Every option of every command against values of the wrong type, sign, size and spelling, and what is near."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from conftest import CountingEngine, write_picture
from featurestore import options
from featurestore.errors import StoreNotFound, UsageError
from featurestore.splits import Split
from featurestore.store import FeatureStore
from heads.comparison import search
from heads.comparison.compare import compare
from heads.comparison.space import Evaluation
from pipelines import commands, maintenance, training
from pipelines.backbones import MAX_INPUT_SIZE, graphs
from pipelines.backbones.engine_options import BATCH_SIZES, MAX_BATCH_PIXELS, EngineOptions, check_request
from pipelines.backbones.engines import open_engine
from pipelines.backbones.table import Tap, resolve
from pipelines.commands import base, train
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.images.augmentation import Augmentation
from pipelines.options import CompareOptions, EmbedOptions, FitData, ReportOptions, TrainOptions
from pipelines.predict import predict
from pipelines.stored_heads import find_head
from pipelines.training import compare_heads, train_head
from pipelines.written_options import CropFlags

HUGE = "9" * 30
COMMAND = get_command(commands.app)  # made once: typer makes it anew for every call, which takes most of its time

# What is wrong for an option, by the type it has for the command line …
WRONG = {
    str(int): ["", "x", "-1", "1.5", "1e3", "nan", HUGE],
    str(float): ["", "x", "-1", "-0.001", "nan", "inf", "-inf", "1e999"],
    str(bool): ["true", "maybe", ""],
    "SHARE": ["", "x", "-1", "1", "100%", "101", "nan", "inf", "10%%", "1 0"],
    "TIME": ["", "x", "-1", "-1s", "yesterday", "1 month", "1M", "nan", "inf", "5mm", "h", "1w2", "1.2.3s", "9" * 400],
    "SIZE": ["", "x", "0GB", "-1GB", "5", "5TGB", "GB", "nanGB", "infGB", "1e3GB", "9" * 400 + "GB"],
}
# … and, for texts, by what they say.
WORDS = ["", "nosuch", "nosuch,", "ｆｌｏａｔ１６", "a b"]
TEXTS = {
    "--C": ["", "x", "-1", "0", "nan", "inf", "1,", "1:2", "1:2:0", "1:2:-1", f"1:2:{HUGE}", "0:1:3", "1:nan:3"],
    "--hidden": ["", "x", "0", "-1", "1.5", "8,", "8,0", HUGE, ",".join(["8"] * 99)],
    "--fewshot-k": ["", "x", "0", "-1", "1.5", "1,", HUGE, "500"],
    "--param": ["", "x", "x=1", "C=nan", "C=[", "C=true", "C=" + "[" * 10_000, f"C=1{'0' * 400}"],
    "--search": ["", "nosuch.toml", "."],
    "--alias": ["", "Champion", "2026", "a b", "x" * 65],
    "--label-set": ["", "a b", "a'b", "x" * 65],
    "--runner": ["", "dask", "DaskRunner", "portable", "direct", "DirectRunner", "x.y.DaskRunner", "prism"],
    "--dtype": ["float64", "int8", "banana", ">f2", "", "Float16"],
    **dict.fromkeys(
        (
            *("--backbone", "--pooling", "--precision", "--engine", "--flip", "--fill", "--optimizer", "--schedule"),
            *("--format", "--class-weight", "--heads", "--prefer", "--protocol"),
        ),
        WORDS,
    ),
    "train --head": WORDS,
    "--storage-option": ["", "x", "endpoint", "endpoint=", "secret_access_key=x", "ENDPOINT=x"],
    "--date": ["", "x", "yesterday", "2026", "2026-13-01", "2026-02-30", "1.11.2026"],
    "--log-format": ["", "yaml", "JSON"],
    "--experiment": [""],
}
# Names of what a store may hold: a sentence, and exit code 1, as for a store that is not there.
HELD = {"--set", "--head", "--store"}
# Any text may be right here, or only the work itself can tell.
FREE = {
    "--weights": "a path",
    "--to": "a path",
    "--tensorboard": "a path; one that cannot be written is tested below",
    "--layer": "only the built network knows its layers; see test_backbones.py",
    "--unfreeze-from": "only the built network knows its layers; see test_finetune.py",
    "--csv": "a path; see test_leaderboard.py",
    "--track": "only the server can tell; see test_tracking.py",
    "--cache": "a path; one that cannot be written keeps no copies",
    "--image-column": "only a table knows its columns; see test_tables.py",
    "--label-column": "only a table knows its columns; see test_tables.py",
    "--init": "a path",
    "--spec": "a path; what is in it is tested in test_foreign.py",
    "--reason": "any words; see test_champion.py",
    "--views-set": "is used with --views alone; see test_views.py",
}
# What else an option of train needs to be looked at.
OF_DENSE = ("--hidden", "--dropout", "--optimizer", "--learning-rate", "--epochs", "--batch-size", "--patience")


class Option(NamedTuple):
    command: str
    name: str
    kind: str

    @property
    def wrong(self) -> list[str] | None:
        for name in (f"{self.command} {self.name}", self.name):
            if self.kind == "text" and name in TEXTS:
                return TEXTS[name]
        return WRONG.get(self.kind)

    @property
    def is_held(self) -> bool:
        return self.name in HELD and f"{self.command} {self.name}" not in TEXTS


def every_option() -> list[Option]:
    """All options, as the command line itself lists them, with their types."""
    found = []
    registered = commands.app.registered_commands
    callbacks = {command.name or command.callback.__name__: command.callback for command in registered}
    for command, about in COMMAND.commands.items():
        types = get_type_hints(callbacks[command])
        for parameter in about.params:
            if parameter.param_type_name == "option" and "--help" not in parameter.opts:
                kinds = [str(kind) for kind in (int, float, bool) if kind in inner(types[parameter.name])]
                kind = parameter.metavar if parameter.metavar in WRONG else (kinds or ["text"])[0]
                found.append(Option(command, parameter.opts[0], kind))
    return found


def inner(annotation: Any) -> list[Any]:
    """A type, or those that a union or a list is made of."""
    return [kind for part in get_args(annotation) for kind in inner(part)] or [annotation]


OPTIONS = every_option()
GOLDEN = Path(__file__).parents[1] / "golden" / "models"


class World(NamedTuple):
    folder: Path
    store: Path
    commands: dict[str, list[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Sixty images, a store with their features, a head, and a run that is under way; and each command's least."""
    folder = tmp_path_factory.mktemp("arguments")
    for number in range(60):
        write_picture(folder / "corpus" / "ab"[number % 2] / f"{number:02}.png", number)
    (folder / "spec.toml").write_text('size = 64\nlayout = "NHWC"\n')
    labels = folder / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{path},x\n" for path in (folder / "corpus").rglob("*.png")))
    store = folder / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_engine", lambda *_args, **_options: CountingEngine(8))
        worker.engine_for.cache_clear()
        embed(str(folder / "corpus"), store)
        train_head(store, TrainOptions("ncm"))
        (store / "runs" / "unfinished").mkdir()
        (store / "runs" / "unfinished" / "report.html").write_text("fresh work")
        least = {
            "demo": [str(folder / "demo")],
            "embed": [str(folder / "corpus")],
            "label": [str(labels)],
            "forget": [str(folder / "corpus")],
            "trial": [str(folder / "corpus"), "--backbone=efficientnet-lite0", "--backbone=efficientnet-lite1"],
            "finetune": ["--unfreeze-from", "top_conv"],
            "predict": [str(folder / "corpus" / "a" / "00.png")],
            "export": ["--to", str(folder / "exported")],
            "retrain": [str(folder / "nightly.toml")],
            "copy": [str(store), str(folder / "copy")],
            "backbones add": ["mine", *map(str, (GOLDEN / "net.onnx", "--spec", folder / "spec.toml")), "--unproved"],
            "backbones bench": ["efficientnet-lite0"],
            "backbones import": ["timm:nosuch", "--to", str(folder / "imported")],
        }
        yield World(folder, store, least)
        worker.engine_for.cache_clear()


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def penult(*arguments: str | Path) -> Ended:
    """Run the command line in this process, as its entry point does."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr("sys.argv", ["penult", *map(str, arguments)])
        patch.setattr(base, "app", COMMAND)
        try:
            commands.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def ask(world: World, option: Option, value: str) -> Ended:
    takes_store = any(other.name == "--store" for other in OPTIONS if other.command == option.command)
    store = ["--store", str(world.store)] if takes_store and option.name != "--store" else []
    dense = ["--head", "dense"] if option.command == "train" and option.name in OF_DENSE else []
    least = world.commands.get(option.command, [])
    return penult(option.command, *least, *store, *dense, f"{option.name}={value}")


def sentence(ended: Ended) -> str:
    """What was said, one sentence: penult's own, or the one that ends click's."""
    lines = ended.err.strip().splitlines()
    if lines[-1].startswith("Error: "):
        assert len(lines) <= 5 and (len(lines) == 1 or lines[0].startswith("Usage:")), ended.err
    else:
        assert len(lines) == 1 and lines[0].startswith("penult: ") and lines[0].endswith("."), ended.err
    return lines[-1]


def test_every_option_has_wrong_values_or_a_reason_for_none() -> None:
    unknown = [o for o in OPTIONS if o.wrong is None and o.name not in FREE and o.name not in HELD]
    assert not unknown, f"say in tests/pipelines/test_arguments.py what is wrong for {unknown}"
    names = {option.name for option in OPTIONS} | {f"{option.command} {option.name}" for option in OPTIONS}
    assert not (TEXTS.keys() | HELD | FREE.keys() | {*OF_DENSE}) - names


@pytest.mark.parametrize(
    "option",
    [option for option in OPTIONS if not option.is_held and option.name not in FREE],
    ids=lambda option: f"{option.command}{option.name}",
)
def test_wrong_values_end_in_a_sentence_and_leave_the_store_as_it_was(world: World, option: Option) -> None:
    before = contents(world.folder)
    for value in option.wrong or ():
        ended = ask(world, option, value)
        assert (ended.code, ended.out) == (2, ""), (value, ended)
        said = sentence(ended)
        words = [option.name.strip("-").replace("-", space) for space in "-_ "] + re.split("[,=]", value[:50])
        assert not value or any(word and word in said for word in words), said
    assert contents(world.folder) == before


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.is_held], ids=lambda option: f"{option.command}{option.name}"
)
def test_names_that_a_store_does_not_have_end_in_a_sentence(world: World, option: Option) -> None:
    before = contents(world.folder)
    if option.name == "--store" and option.command in ("backbones add", "embed", "retrain", "trial"):
        return  # which would be made
    for value in ("nosuch", "../../etc", "\udcff"):
        ended = ask(world, option, value)
        assert (ended.code, ended.out) == (1, ""), (value, ended)
        sentence(ended)
        assert contents(world.folder) == before, value


@settings(max_examples=60)
@given(option=st.sampled_from([o for o in OPTIONS if o.kind in WRONG and o.kind != str(bool)]), text=st.text())
def test_no_text_that_is_no_number_becomes_one(world: World, option: Option, text: str) -> None:
    if re.search("[0-9]", text) or any(character.isdigit() for character in text):
        text = "x" + text
    ended = ask(world, option, text)
    assert ended.code == 2 and ended.out == "" and "Traceback" not in ended.err
    assert (world.store / "runs" / "unfinished" / "report.html").exists()


# --- times, shares, amounts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("1.5m", 90), ("5m", 300), ("30min", 1800), ("2h", 7200), ("2 hours", 7200),
        ("1 hr", 3600), ("2 days", 172_800), ("7d", 604_800), ("1w", 604_800), ("1 week", 604_800), ("0", 0), ("0s", 0),
        ("2d12h", 216_000), ("1h 30min", 5400), (" 10 secs ", 10), ("0d", 0),
    ],
)  # fmt: skip
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert options.seconds(text) == seconds


UNITS = sorted(options.SECONDS)


@given(parts=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(UNITS)), min_size=1, max_size=4), gap=st.booleans())
def test_a_time_is_the_sum_of_its_parts(parts: list[tuple[int, str]], gap: bool) -> None:
    space = " " if gap else ""
    text = space.join(f"{amount}{space}{unit}" for amount, unit in parts)
    assert options.seconds(text) == sum(amount * options.SECONDS[unit] for amount, unit in parts)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "0.25s"), (7200, "2h"), (5400.0, "1h30m"), (777_661.5, "1w2d1m1.5s"), (31_536e6, "52142w6d")],
)  # fmt: skip
def test_a_time_is_told_as_it_is_written(seconds: float, text: str) -> None:
    assert options.time_text(seconds) == text


@given(seconds=st.floats(0, options.MAX_SECONDS))
def test_a_told_time_is_read_back(seconds: float) -> None:
    assert options.seconds(options.time_text(seconds)) == pytest.approx(seconds, rel=1e-12, abs=6e-4)


@given(text=st.text(alphabet="0123456789.smhdwekya -+", max_size=8))
def test_no_time_is_0_unless_0_was_written(text: str) -> None:
    try:
        seconds = options.seconds(text)
    except UsageError:
        return
    assert (seconds == 0) == (not re.search("[1-9]", text)) and re.search("[0-9]", text)


def test_a_wrong_time_from_python_is_refused_too(world: World) -> None:
    for seconds in (-1, math.nan, math.inf):
        with pytest.raises(UsageError, match="--older-than"):
            maintenance.gc(world.store, seconds)
        with pytest.raises(UsageError, match="--budget"):
            compare_heads(world.store, CompareOptions(evaluation=Evaluation(budget=seconds)))
    with pytest.raises(UsageError, match="--memory-limit"):
        compare_heads(world.store, CompareOptions(memory_limit=0))
    assert (world.store / "runs" / "unfinished" / "report.html").exists()


def test_a_percentage_that_is_no_share_is_said_plainly() -> None:
    for text, said in (
        ("100%", "Expected: a share below 1, such as 0.1 or 10%. Got: 100%."),
        ("15", "Expected: a share below 1, such as 0.1 or 10%. Got: 15. For 15 percent say 15% or 0.15."),
    ):
        with pytest.raises(UsageError) as caught:
            options.share(text)
        assert str(caught.value) == said
    assert options.share("10%") == options.share("0.1") == 0.1


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("0", 0),
        ("0%", 0),
        ("0.999", 0.999),
        ("99.5%", 0.995),
        (" 10 % ", 0.1),
        ("50%", 0.5),
        (0.15, 0.15),
        ("1e-3", 0.001),
    ],
)
def test_shares_as_people_write_them(text: str, share: float) -> None:
    assert options.share(text) == share


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("1", " For 1 percent say 1% or 0.01."),
        ("99.5", " For 99.5 percent say 99.5% or 0.995."),
        ("100", ""),
        ("100%", ""),
        ("15%%", ""),
        ("150%", ""),
        ("-0.1", ""),
        ("nan", ""),
        ("x", ""),
        ("", ""),
    ],
)
def test_what_is_no_share(text: str, more: str) -> None:
    with pytest.raises(UsageError) as caught:
        options.share(text)
    assert str(caught.value) == f"Expected: a share below 1, such as 0.1 or 10%. Got: {text or 'nothing'}.{more}"


def test_times_have_a_longest_and_budgets_a_shortest() -> None:
    most = 1000 * 365 * 24 * 3600
    assert options.seconds(f"{most}") == options.budget(f"{1000 * 365}d") == most
    for wrong, said in (
        (f"{most + 1}", f"Expected: a time of at most a thousand years. Got: {most + 1}."),
        ("2x", "Expected: a time such as 90s, 30min, 12h, 2d or 1w. Got: 2x."),
        ("1h 5", "Expected: a time such as 90s, 30min, 12h, 2d or 1w. Got: 1h 5."),
        ("", "Expected: a time such as 90s, 30min, 12h, 2d or 1w. Got: nothing."),
    ):
        for function in (options.seconds, options.budget):
            with pytest.raises(UsageError) as caught:
                function(wrong)
            assert str(caught.value) == said
    assert options.budget("0.5s") == 0.5 and options.seconds(7 * 86_400) == 604_800  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^Expected: a time above 0, such as 60s, 5m or 1h\. Got: 0s\.$"):
        options.budget("0s")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("500MB", 500_000_000), ("4GB", 4_000_000_000), ("2GiB", 2_147_483_648), ("1.5 tb", 1_500_000_000_000),
        ("1TiB", 2**40), ("3mib", 3 * 2**20), (" 1GB ", 10**9), ("0.000001MB", 1), (f"{2**20}TiB", 2**60),
        ("0.0000009MB", None), (f"{2**20 + 1}TiB", None), ("0GB", None), ("5", None), ("GB", None), ("1 kB", None),
        ("", None), ("1GB1", None),
    ],
)  # fmt: skip
def test_amounts_of_memory_as_people_write_them(text: str, count: int | None) -> None:
    if count is not None:
        assert options.memory(text) == count
        return
    with pytest.raises(UsageError) as caught:
        options.memory(text)
    said = f"Expected: an amount of memory such as 500MB, 4GB or 2GiB. Got: {text or 'nothing'}."
    assert str(caught.value) == said


def test_lists_of_numbers_and_parameters() -> None:
    assert options.whole_numbers("--x", "1,5, 10") == (1, 5, 10)
    for text in ("1,,2", "1.5"):
        with pytest.raises(UsageError, match=rf"^Expected: --x such as 1,5\. Got: {re.escape(text)}\.$"):
            options.whole_numbers("--x such as 1,5", text)
    given = ["k=3", "metric=cosine", "x=[1, 2]", "y=", "z=a=b", "n=null", "deep=" + "[" * 100_000]
    assert train.parameters(given, {"C": 0.0, "seed": None}) == {
        **{"C": 0.0, "k": 3, "metric": "cosine", "x": [1, 2], "y": "", "z": "a=b", "n": None},
        "deep": "[" * 100_000,
    }
    assert train.parameters(None, {"C": None}) == {}
    for wrong, said in (
        (["k"], "Expected: --param NAME=VALUE. Got: 'k'."),
        (["C=1"], "C is given twice: leave --param C=1 out."),
        (["k=1", "k=2"], "k is given twice: leave --param k=2 out."),
    ):
        with pytest.raises(UsageError) as caught:
            train.parameters(wrong, {"C": 2.0})
        assert str(caught.value) == said


@pytest.mark.parametrize(
    ("chosen", "crop"),
    [((), "squash"), (("squash",), "squash"), (("center",), "center"), (("pad",), "pad"), (("pad", "squash"), None)],
)
def test_one_rule_for_rectangles(chosen: tuple[str, ...], crop: str | None) -> None:
    given = {name: name in chosen for name in ("squash", "center", "pad")}
    if crop is not None:
        assert CropFlags(**given).put_into(EmbedOptions()).crop == crop
        return
    with pytest.raises(UsageError, match=r"^Give one of --squash, --center-crop and --pad\.$"):
        CropFlags(**given).put_into(EmbedOptions())


def test_json_is_one_line_in_the_letters_that_stdout_has(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"b": "Käse", "a": [1, None]}
    for encoding, expected in (
        ("utf-8", '{"b": "Käse", "a": [1, null]}\n'),
        ("ascii", '{"b": "K\\u00e4se", "a": [1, null]}\n'),
    ):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding, newline="\n"))
        base.print_json(False, value)
        assert raw.getvalue() == b""
        base.print_json(True, value)
        assert raw.getvalue().decode() == expected  # flushed, too
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, "utf-8", newline="\n"))
    base.print_json(True, "\udcff")
    assert raw.getvalue() == b'"\\udcff"\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        base.print_json(True, math.nan)
    monkeypatch.setattr("sys.stdout", io.StringIO())  # of no encoding
    base.print_json(True, "Käse")
    assert sys.stdout.getvalue() == '"Käse"\n'  # type: ignore[attr-defined]


def test_errors_are_a_sentence_and_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code, said in (
        (UsageError("Give one."), 2, "penult: Give one.\n"),
        (StoreNotFound("There is none."), 1, "penult: There is none.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "penult: The disk: No space left on device: make room"),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(base, "app", fail)
        err = io.StringIO()
        with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            commands.main()
        assert ended.value.code == code and err.getvalue().startswith(said)


def test_help_is_wide_plain_and_says_the_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ended = penult()
    assert ended.code == 2 and "Usage:" in ended.out + ended.err and "Commands:" in ended.out + ended.err
    told = penult("--help").out
    said = " ".join(told.split())
    assert "[OPTIONS] COMMAND [ARGS]..." in said and "Embed an image corpus once with a frozen CNN" in said
    assert "Exit codes: 0 done, 1 an error, 2 usage, 3 more failures than --max-failure-rate" in said
    assert "completion" not in said and "╭" not in told
    assert max(map(len, penult("embed", "--help").out.splitlines())) in range(101, 111)
    assert "[env var: PENULT_STORE" in penult("embed", "--help").out


# --- the same from Python ---------------------------------------------------------------------------------------------


def test_limits_of_memory_are_said() -> None:
    with pytest.raises(UsageError, match=r"--input-size in pixels, a whole number from 32 to 2,048. Got: 99999"):
        resolve(input_size=99_999)
    most = MAX_BATCH_PIXELS // 224**2
    assert most == 668
    with pytest.raises(UsageError, match=r"--batch-size at 224 pixels.* from 1 to 668. Got: 100000"):
        open_engine(resolve(), EngineOptions(batch_size=100_000))
    check_request(EngineOptions(batch_size=most), 224)
    check_request(EngineOptions(batch_size=BATCH_SIZES["openvino"]), MAX_INPUT_SIZE)  # its own is never refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "float64"},
        {"views": -1},
        {"views": 1000, "augmentation": Augmentation()},
        {"views": 1, "augmentation": Augmentation(seed=-1)},
        {"label_set": "a b"},
        {"shard_images": 2**70},
        {"engine": EngineOptions(precision="f16")},
        {"engine": EngineOptions(batch_size=100_000)},
        {"runner": "DirectRunner"},
        {"backbone": "ResNet5"},
    ],
    ids=str,
)
def test_options_are_refused_before_a_store_is_made(
    corpus: Path, tmp_path: Path, engine: CountingEngine, wrong
) -> None:
    with pytest.raises(UsageError):
        embed(str(corpus), tmp_path / "store", replace(EmbedOptions(), **wrong))
    assert not (tmp_path / "store").exists() and engine.images == 0


@pytest.mark.parametrize(
    "option", ["--views=1000", "--views=-1", "--view-seed=-1", "--max-failure-rate=5", "--max-failure-rate=nan"]
)
def test_what_comes_after_the_first_set_is_refused_before_it(
    corpus: Path, tmp_path: Path, engine: CountingEngine, option: str
) -> None:
    ended = penult("embed", corpus, "--store", tmp_path / "store", "--views=2", option)
    assert ended.code == 2 and engine.images == 0 and not (tmp_path / "store").exists()


def test_no_rows_are_no_answer(world: World) -> None:
    with pytest.raises(UsageError, match="at least one image"):
        predict([], world.store)
    opened = FeatureStore(world.store)
    for ask_for in (lambda: opened.features(split="Train"), lambda: opened.dataset().part("")):
        with pytest.raises(UsageError, match="one of train, val, test"):
            ask_for()


@pytest.mark.parametrize(
    "wrong",
    [
        {"head": "nosuch"},
        {"head": "logreg", "params": {"C": -1}},
        {"class_weight": "balanced"},
        {"seed": -1},
        {"report": ReportOptions(gallery_seed=-5)},
        {"data": FitData(split=Split(seed=-1))},
        {"data": FitData(views=-1)},
        {"data": FitData(label_set="a b")},
    ],
    ids=str,
)
def test_a_fit_is_refused_before_the_store_is_opened(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        train_head(tmp_path / "nowhere", TrainOptions(**{"head": "ncm"} | wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"evaluation": Evaluation(seeds=0)},
        {"evaluation": Evaluation(seeds=-1)},
        {"evaluation": Evaluation(folds=1)},
        {"evaluation": Evaluation(fewshot=(0,))},
        {"evaluation": Evaluation(budget=-1.0)},
        {"memory_limit": 0},
        {"report": ReportOptions(gallery_seed=-5)},
        {"data": FitData(split=Split(0.6, 0.5))},
    ],
    ids=str,
)
def test_a_comparison_is_refused_before_the_store_is_opened(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        compare_heads(tmp_path / "nowhere", CompareOptions(**wrong))


def test_tensorboard_is_tried_before_the_fit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "load_dataset", lambda *_: pytest.fail("features were read"))
    there = world.folder / "labels.csv"
    for command in ("train", "compare"):
        ended = penult(command, "--store", world.store, "--tensorboard", there / "below")
        assert ended.code == 2 and "--tensorboard" in sentence(ended) and "Not a directory" in ended.err


def test_few_shot_says_which_classes_are_too_small() -> None:
    from builders import DATASET

    train = DATASET.part("train")
    small, large = sorted([int((train.y == name).sum()) for name in set(train.y)])[:: len(set(train.y)) - 1]
    assert small < large
    told = compare(DATASET, search.from_options(["ncm"]), Evaluation(fewshot=(1, large)))
    (note,) = [note for note in told.winner.notes if "Few-shot" in note]
    assert f"with {large:,} images per class" in note and f"the smallest {small:,}" in note
    with pytest.raises(UsageError, match=f"--fewshot-k of at most {large:,}.* Got: {large + 1}"):
        compare(DATASET, search.from_options(["ncm"]), Evaluation(fewshot=(large + 1,)))


def test_a_search_without_its_file_does_not_send_to_the_doctor(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match=r"--search, a TOML file") as caught:
            search.from_file(path)
        assert "doctor" not in str(caught.value)


# --- heads and images by their names --------------------------------------------------------------------------------


def test_a_head_answers_to_a_beginning_and_to_an_ending(world: World) -> None:
    opened = FeatureStore(world.store)
    (first,) = [run.run_id for run in opened.runs() if run.kind == "train"]
    second = train_head(world.store, TrainOptions("ncm"))["head_id"]
    assert find_head(opened, None) == second
    for head in (first, second):
        assert find_head(opened, head) == find_head(opened, head[-6:]) == find_head(opened, head[:22]) == head
    for name, said in ((first[:8], "2 of them, the newest: "), ("nosuch", "no such head"), ("", "no such head")):
        with pytest.raises(StoreNotFound, match=f"{said}.*{second}, {first}"):
            find_head(opened, name)
    picture = world.folder / "corpus" / "a" / "00.png"
    ended = penult("predict", picture, "--store", world.store, "--head", second[-6:], "--json")
    assert ended.code == 0 and json.loads(ended.out)[0]["uri"] == picture.as_uri()


def test_an_exact_head_is_taken_though_others_end_so(world: World, tmp_path: Path) -> None:
    (tmp_path / "runs" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "a-b").mkdir()
    for folder in (tmp_path / "runs").iterdir():
        (folder / "run.json").touch()
        (folder / "head.json").touch()
    opened = FeatureStore(world.store)
    opened.path = tmp_path
    assert find_head(opened, "b") == "b" and find_head(opened, "-b") == "a-b"


def test_people_read_the_names_that_they_gave(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    (world.folder / "odd\x1b[2J.png").write_bytes((world.folder / "corpus" / "a" / "00.png").read_bytes())
    given = ["corpus/a/00.png", "./corpus/a/../b/01.png", "odd\x1b[2J.png"]
    ended = penult("predict", *given, "--store", "store", "--json")
    lines = ended.err.splitlines()
    assert all(name in lines for name in given[:2]) and "\x1b" not in ended.err and "odd%1B%5B2J.png" in ended.err
    told = json.loads(ended.out)
    assert [set(row) for row in told] == [{"uri", "label", "probability", "top"}] * 3
    assert told[0]["uri"] == (world.folder / "corpus/a/00.png").as_uri()


# --- surroundings -----------------------------------------------------------------------------------------------------


def run_with(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=300)


def test_json_and_help_on_an_ascii_stdout(world: World, tmp_path: Path) -> None:
    name = tmp_path / "Käse.lance"
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    source = tmp_path / "labels.csv"
    source.write_text(f"path,label\n{world.folder / 'corpus' / 'a' / '00.png'},Käse\n", encoding="utf-8")
    embed(str(world.folder / "corpus"), name)
    done = run_with(ascii_only, "label", source, "--store", name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii"))["labels"] == {"Käse": 1}
    done = run_with(ascii_only, "embed", "--help")
    assert done.returncode == 0 and done.stderr == b""


class Homeless:
    """A user id that the system's list does not have."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        for variable in ("HOME", "XDG_CACHE_HOME", "PENULT_CACHE"):
            patch.delenv(variable, raising=False)

        def unknown(uid: int) -> Sequence[str]:
            raise KeyError(f"getpwuid(): uid not found: {uid}")

        patch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize("home", [None, "unwritable"])
def test_without_a_home_graphs_are_converted_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: str | None
) -> None:
    Homeless(monkeypatch)
    monkeypatch.chdir(tmp_path)
    if home:
        (tmp_path / home).touch()  # a file: no folder can be made in it, not even by root
        monkeypatch.setenv("HOME", str(tmp_path / home))

    def convert(_tap: object, path: Path) -> None:
        path.write_bytes(b"graph")
        path.with_suffix(".bin").write_bytes(b"weights")

    monkeypatch.setattr(graphs, "_convert", convert)
    monkeypatch.setattr(Tap, "fetch", lambda _tap: None)

    class Core:
        def read_model(self, *content: bytes) -> tuple[bytes, ...]:
            return content

    assert graphs.graph(Core(), resolve()) == (b"graph", b"weights")
    assert "PENULT_CACHE" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ([home] if home else [])

    caplog.clear()
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    assert graphs.graph(Core(), resolve()) == (b"graph", b"weights") and not caplog.text
    (kept,) = (tmp_path / "cache" / "graphs").iterdir()
    assert (kept / "graph.xml").read_bytes() == b"graph"


@pytest.mark.parametrize("kept", [True, False])
def test_a_graph_that_is_handed_over_is_brought_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Into the folder that is there to keep it, where a damaged one is brought again; else each time."""
    if kept:
        monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "cache"))
    else:
        Homeless(monkeypatch)
    brought: list[str] = []

    class Handed:
        key = "0f3a"

        def write(self, path: Path) -> None:
            brought.append(self.key)
            path.write_bytes(b"graph")
            path.with_suffix(".bin").write_bytes(b"weights")

    class Core:
        def read_model(self, *content: bytes) -> tuple[bytes, ...]:
            return content

    monkeypatch.setattr(Tap, "fetch", lambda _tap: pytest.fail("weights were asked for"))
    for _ in range(2):
        assert graphs.graph(Core(), resolve(), Handed()) == (b"graph", b"weights")
    assert len(brought) == (1 if kept else 2)
    if kept:
        (tmp_path / "cache" / "graphs" / "0f3a" / "graph.bin").write_bytes(b"Weights")
        assert graphs.graph(Core(), resolve(), Handed()) == (b"graph", b"weights") and len(brought) == 2


def test_without_a_home_tensorflow_makes_no_folder_of_that_name(tmp_path: Path) -> None:
    code = (
        "import os, pwd\n"
        "os.environ.pop('HOME', None)\n"
        "pwd.getpwuid = {}.__getitem__\n"
        "from heads.backend import import_tensorflow\n"
        "import_tensorflow().keras.backend"
    )
    place = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    place.pop("KERAS_HOME", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=place)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_import_of_tensorflow_is_silent(tmp_path: Path) -> None:
    """Its banner is not shown, and what other threads say later is."""
    (tmp_path / "tensorflow.py").write_text("import os\nos.write(2, b'a banner')\n")
    code = (
        "import os\n"
        "from heads import backend\n"
        "first = backend.import_tensorflow()\n"
        "os.write(2, b'an error')\n"
        "backend._silent_stderr = None\n"
        "assert backend.import_tensorflow() is first"
    )
    place = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), *sys.path]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=place)
    assert (done.returncode, done.stderr) == (0, "an error")


def test_backbones_are_listed_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    Homeless(monkeypatch)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    assert penult("backbones", "--json").code == 0
