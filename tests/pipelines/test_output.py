"""What people read on stderr, word for word: every function of ``output`` on numbers chosen by hand."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.color import ColorSystem
from rich.console import Console

from featurestore.errors import StoreLocked, UsageError
from featurestore.maintenance.repair import Repair
from featurestore.maintenance.verify import Finding
from featurestore.options import size_text
from pipelines import maintenance, signals
from pipelines.commands import base, output
from pipelines.commands.output import console, stores
from pipelines.embedding.embed import EmbedResult
from pipelines.embedding.labels import LabelResult
from pipelines.maintenance import DoctorResult
from pipelines.predict import Prediction

NAMES = {f"class-{number}": 9000 - 1000 * number for number in range(8)}
NO_LABELS: dict[str, Any] = {"classes": {}, "class_count": 0, "unlabelled": 0, "splits": {}, "changed": []}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Call a function; the lines that it has written to stderr, and nothing to stdout."""

    def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
        function(*arguments, **options)
        out, err = capsys.readouterr()
        assert not out
        return [line.rstrip() for line in err.splitlines()]

    return run


def made(**values: Any) -> EmbedResult:
    return EmbedResult("run-1", "set-1", "f", **values)


# --- lines and tables


def test_lines_are_not_folded_and_mean_what_they_say(said: Callable[..., list[str]]) -> None:
    long = "[bold]not markup[/bold] 1.5 " + "x" * 500
    assert said(output.say, long) == [long]


def test_a_table_has_its_rows_and_says_how_many_more_there_are(said: Callable[..., list[str]]) -> None:
    rows = [
        {"a_name": "[x]", "n": n, "b": True, "none": None, "side": [2, 3], "params": {"C": 1}} for n in range(7, 12)
    ]
    shown = said(output.table, rows, limit=4)
    assert shown[0].split() == ["a", "name", "n", "b", "none", "side", "params"]
    assert [line.split() for line in shown[1:5]] == [["[x]", str(n), "True", "2×3", "C=1"] for n in range(7, 11)]
    assert shown[5:] == ["… and 1 more"]
    assert shown[1].index("7") == shown[4].index("10") + 1  # numbers stand at the right
    assert shown[1].index("True") == shown[0].index("b")  # and all else at the left
    assert len(said(output.table, rows, limit=5)) == len(said(output.table, rows)) == 6
    assert said(output.table, []) == []
    assert said(output.table, [{"a": {}, "b": 0.5}])[1].split() == ["no", "parameters", "0.5"]


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, said: Callable[..., list[str]]) -> None:
    now = [100.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def work() -> None:
        with output.bar("embed") as progress:
            for seconds, done in ((9.5, 1), (10, 1500), (19, 1600), (20, 4000), (21, 5000)):
                now[0] = 100 + seconds
                progress(done, 12_000)

    assert said(work) == ["embed: 1,500 of 12,000, 150.0 per second", "embed: 4,000 of 12,000, 200.0 per second"]


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "_console", Console(file=screen, force_terminal=True, width=80))
    with output.bar("embed") as progress:
        assert "embed" in screen.getvalue() and "0/?" in screen.getvalue()  # nothing says yet how many there are
        progress(3, 12)
    assert "3/12" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the last line is wiped


def test_numbers_have_no_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch, said: Callable[..., list[str]]) -> None:
    monkeypatch.setattr(console._console, "_force_terminal", True)
    monkeypatch.setattr(console._console, "_color_system", ColorSystem.STANDARD)
    assert said(output.say, "1,234 images in 'a' of /b") == ["1,234 images in 'a' of /b"]


# --- as JSON


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on stderr is JSON; afterwards all is as before."""
    output.log_as("json")
    yield
    output.log_as("text")
    logger = logging.getLogger("penult")
    assert console.LOGS["json"] not in logger.handlers and logger.propagate
    assert signals.farewell("x") == "penult: x"


def objects(lines: list[str], level: str = "info") -> list[dict[str, Any]]:
    """What the lines say besides their time, which is now, and their level."""
    found = [json.loads(line) for line in lines]
    for one in found:
        assert "".join(lines).isascii() and one.pop("level") == level
        time = datetime.fromisoformat(one.pop("time"))
        assert time.utcoffset() == timedelta(0) and abs(datetime.now(UTC) - time) < timedelta(minutes=1)
    return found


def test_a_line_as_json(as_json: None, said: Callable[..., list[str]]) -> None:
    text = 'two\nlines, "quoted", [bold]ü\udcff' + "x" * 500
    assert objects(said(output.say, text)) == [{"message": text}]


def test_a_table_as_json_is_an_object_per_row(as_json: None, said: Callable[..., list[str]]) -> None:
    rows = [{"a_name": "ü", "n": n, "side": [2, 3], "score": math.nan, "where": Path("/a")} for n in range(3)]
    told = [row | {"score": None, "where": "/a"} for row in rows]
    assert objects(said(output.table, rows)) == [{"row": row} for row in told]
    assert objects(said(output.table, rows, limit=2)) == [
        {"row": told[0]},
        {"row": told[1]},
        {"message": "… and 1 more"},
    ]
    assert said(output.table, []) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_as_json_is_a_line_now_and_then(
    terminal: bool, as_json: None, monkeypatch: pytest.MonkeyPatch, said: Callable[..., list[str]]
) -> None:
    now = [100.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(console._console, "_force_terminal", terminal)

    def work() -> None:
        with output.bar("embed") as progress:
            for seconds, done in ((9.5, 1), (10, 1500), (19, 1600), (20, 4000)):
                now[0] = 100 + seconds
                progress(done, 12_000)

    assert objects(said(work)) == [{"what": "embed", "done": done, "total": 12_000} for done in (1500, 4000)]


def test_warnings_as_json_come_once(as_json: None, said: Callable[..., list[str]]) -> None:
    root = logging.StreamHandler(sys.stderr)  # as a library may set up
    logging.getLogger().addHandler(root)
    try:
        lines = said(logging.getLogger("penult").warning, "%s is locked", "a store")
        assert said(logging.getLogger("penult").info, "not asked for") == []
    finally:
        logging.getLogger().removeHandler(root)
    assert objects(lines, "warning") == [{"message": "a store is locked"}]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StoreLocked("It is locked."), "It is locked."),
        (
            OSError(errno.ENOSPC, "no", "/a"),
            "/a: No space left on device: make room there, then run the same command again; what was finished is kept.",
        ),
    ],
)
def test_the_last_line_of_an_error_as_json(
    error: Exception, message: str, as_json: None, monkeypatch: pytest.MonkeyPatch, said: Callable[..., list[str]]
) -> None:
    def failing() -> None:
        raise error

    def run() -> None:
        with pytest.raises(SystemExit) as end:
            base.main()
        assert end.value.code == getattr(error, "exit_code", 1)

    monkeypatch.setattr(base, "app", failing)
    assert objects(said(run), "error") == [{"message": message}]
    output.log_as("text")
    assert said(run) == [f"penult: {message}"]


def test_a_signals_last_line_as_json(as_json: None) -> None:
    code = "from pipelines import signals\nfrom pipelines.commands import output\nimport time\n"
    code += "output.log_as('json')\nwith signals.time_limit(0.1):\n    time.sleep(50)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert objects(done.stderr.splitlines(), "error")[0]["message"].startswith("Out of time (--timeout 0.1s);")


def test_there_is_no_other_form_of_log() -> None:
    with pytest.raises(UsageError, match=r"Expected: --log-format text or json\. Got: 'yaml'\."):
        output.log_as("yaml")


# --- embed


def test_what_an_embed_run_did(said: Callable[..., list[str]]) -> None:
    ignored = {".txt": 3, "hidden": 40, ".db": 2, "a": 9, "b": 8, "c": 7, "d": 6}
    labels = {
        "classes": NAMES,
        "class_count": 1008,
        "unlabelled": 1200,
        "splits": {"train": 30_000, "val": 6000},
        "changed": [{"from": None, "to": "cat", "images": 1100}, {"from": "dog", "to": None, "images": 2}],
    }
    result = made(
        seen=12_345, new=1001, changed=2002, unchanged=9342, deduplicated=1003, embedded=2000, failed=1004,
        failures={"truncated": 1000, "empty": 4}, failed_before=1005, removed=1006, recovered=["run-0"],
        ignored=ignored, problems=["a lost folder"], labels=labels, columns={"path": "Path", "label": "label"},
        notes=["as [is]"], seconds={"total": 12.34, "list": 1.0}, images_per_second=162.07,
    )  # fmt: skip
    assert said(output.embedded, result) == [
        "Recovered what run run-0 had finished before it died.",
        "Problem: a lost folder",
        "Ignored files that are no images: 40 hidden, 9 a, 8 b, 7 c, 6 d, 3 .txt.",
        "12,345 files seen: 1,001 new, 2,002 changed, 9,342 unchanged.",
        "2,000 embedded in 12.3 s (162.1 per second), 1,003 copies of known contents, 1,004 failed.",
        "  failed: 1,000 truncated",
        "  failed: 4 empty",
        "1,005 files that failed before were left alone; --retry-failed tries them again.",
        "Note: as [is]",
        "Columns: path from 'Path', label.",
        "1,008 classes: the largest class-0 9,000, class-1 8,000, class-2 7,000; the smallest class-7 2,000, "
        "class-6 3,000, class-5 4,000. 1,200 images without a label.",
        "Given splits: train 30,000, val 6,000.",
        "1,102 labels changed: no label → cat 1,100, dog → no label 2.",
        "1,006 images removed, which no source lists any more.",
        "Feature set: set-1",
    ]


def test_where_nothing_was_to_be_embedded(said: Callable[..., list[str]]) -> None:
    quiet = ["0 files seen: 0 new, 0 changed, 0 unchanged.", "Nothing to embed: the store has it all."]
    assert said(output.embedded, made()) == [*quiet, "Feature set: set-1"]
    for one in ("embedded", "deduplicated", "failed"):
        busy = said(output.embedded, made(**{one: 1}, seconds={"total": 2.0}, images_per_second=0.5))
        numbers = [int(name == one) for name in ("embedded", "deduplicated", "failed")]
        assert busy[1] == "{} embedded in 2.0 s (0.5 per second), {} copies of known contents, {} failed.".format(
            *numbers
        )


@pytest.mark.parametrize(
    ("labels", "lines"),
    [
        ({}, []),
        (NO_LABELS, []),
        (NO_LABELS | {"unlabelled": 1234}, ["None of the 1,234 images has a label."]),
        (NO_LABELS | {"classes": {"cat": 5}, "class_count": 1}, ["1 class: cat 5."]),
        (
            NO_LABELS | {"classes": {"cat": 5, "dog": 4, "owl": 3}, "class_count": 3, "unlabelled": 1},
            ["3 classes: cat 5, dog 4, owl 3. 1 images without a label."],
        ),
        (
            NO_LABELS | {"classes": {"a": 5, "b": 4, "c": 3, "d": 2}, "class_count": 4},
            ["4 classes: the largest a 5, b 4, c 3; the smallest d 2."],
        ),
        (
            NO_LABELS | {"changed": [{"from": "a", "to": str(n), "images": n} for n in range(14)]},
            [f"91 labels changed: {', '.join(f'a → {n} {n}' for n in range(12))}, and 2 more kinds."],
        ),
        (
            NO_LABELS | {"changed": [{"from": "a", "to": str(n), "images": 1} for n in range(12)]},
            [f"12 labels changed: {', '.join(f'a → {n} 1' for n in range(12))}."],
        ),
    ],
)
def test_how_a_source_was_understood(said: Callable[..., list[str]], labels: dict[str, Any], lines: list[str]) -> None:
    assert said(output.embedded, made(labels=labels))[2:-1] == lines


@pytest.mark.parametrize("count", [12, 13, 1012])
def test_of_many_problems_some_are_told(said: Callable[..., list[str]], count: int) -> None:
    lines = said(output.embedded, made(problems=[f"p{n}" for n in range(count)]))[:-3]
    more = [f"Problem: and {count - 12:,} more; --json lists them."] if count > 12 else []
    assert lines == [f"Problem: p{n}" for n in range(12)] + more


# --- labels


def test_what_a_label_import_changed(said: Callable[..., list[str]]) -> None:
    result = LabelResult(
        "run-2", "default", rows=5000, added=1001, changed=1002, unchanged=2997, unknown=1003,
        labels={"cat": 2500, "dog": 1300}, class_count=1004, unlabelled=1200, splits={"test": 1005},
        examples=[("file:///a.jpg", None, "cat"), ("file:///b.jpg", "dog", None)],
        changes=[{"from": None, "to": "cat", "images": 2}], columns={"path": "uri", "label": "Label"},
        notes=["a note"], problems=["a problem"],
    )  # fmt: skip
    assert said(output.labelled, result) == [
        "Note: a note",
        "Columns: path from 'uri', label from 'Label'.",
        "1,004 classes: cat 2,500, dog 1,300. 1,200 images without a label.",
        "Given splits: test 1,005.",
        "2 labels changed: no label → cat 2.",
        "5,000 rows: 1,001 added, 1,002 changed, 2,997 unchanged, 1,004 labels.",
        "  file:///a.jpg: no label → cat",
        "  file:///b.jpg: dog → no label",
        "Problem: a problem",
        "1,003 rows name images that the catalog does not have: embed them, or check the paths.",
    ]
    assert said(output.labelled, LabelResult("run-2", "default")) == [
        "0 rows: 0 added, 0 changed, 0 unchanged, 0 labels."
    ]


# --- care


def test_what_is_damaged(said: Callable[..., list[str]]) -> None:
    assert said(output.verified, []) == ["Everything is as it was written."]
    rows = tuple(f"{n:02}" for n in range(1013))
    for count, more in ((0, []), (12, []), (13, ["  … and 1 more"]), (1013, ["  … and 1,001 more"])):
        finding = Finding("a/b", "is cut off", rows[:count])
        lines = ["a/b: is cut off", *(f"  image {row}" for row in rows[: min(count, 12)]), *more]
        assert said(output.verified, [finding]) == lines


def test_what_was_repaired(said: Callable[..., list[str]]) -> None:
    nothing = ["Nothing is damaged."]
    assert said(output.repaired, DoctorResult()) == nothing
    assert said(output.repaired, DoctorResult(todo=["look"])) == [*nothing, "To do: look"]
    assert said(output.repaired, DoctorResult(artifacts=["runs/x"])) == []
    result = DoctorResult(
        [Repair("catalog.lance", ["a", "b"], 0, 1001, 1002), Repair("labels.lance", back_to=3), Repair("x", ["."])],
        embedded=1003,
        todo=["first", "second"],
    )
    assert said(output.repaired, result) == [
        "catalog.lance: 2 files put aside, back to version 0, 1,001 rows put back, 1,002 rows lost.",
        "labels.lance: back to version 3.",
        "x: 1 files put aside.",
        "1,003 images embedded anew.",
        "To do: first",
        "To do: second",
    ]


def test_what_was_freed_and_forgotten(said: Callable[..., list[str]]) -> None:
    assert stores.FORGOTTEN == "removed images" and "removed images" in (maintenance.gc.__doc__ or "")
    assert said(output.freed, {"old versions": 1_234_567_890, "removed images": 1234}) == [
        "old versions: 1,234.6 MB freed",
        "removed images: 1,234",
    ]
    result = {"source": "file:///my%20photos", "images": 1234, "removed": 1000}
    end = "it listed 1,234 images; 1,000 of them are removed, as no other source lists them."
    assert said(output.forgotten, result) == [f"Forgot /my photos: {end}"]
    assert said(output.forgotten, result | {"source": None}) == [f"Forgot unknown origin: {end}"]
    assert said(output.forgotten, result | {"source": "file:///%FF"}) == [f"Forgot /\\xff: {end}"]


def test_the_files_that_failed(said: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = [
        {"uri": "file:///a,b.jpg", "error_type": "empty", "error": "It is empty."},
        {"uri": "file:///c.jpg", "error_type": "corrupt", "error": 'It says "no", ü.'},
    ]
    assert said(output.failed, rows) == [
        "file:///a,b.jpg: empty: It is empty.",
        'file:///c.jpg: corrupt: It says "no", ü.',
        "2 files failed; `penult embed SOURCE --retry-failed` tries them again.",
    ]
    path = tmp_path / "failed.csv"
    assert said(output.write_csv, path, rows) == [f"2 failed files are listed in {path}."]
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["uri", "error_type", "error"], *([*row.values()] for row in rows)]
    assert path.read_bytes().endswith(b'"It says ""no"", \xc3\xbc."\r\n') and path.read_bytes().count(b"\n") == 3


# --- heads

SCORES = {"test": 0.9, "test_ci": [0.81, 0.949], "val": 0.876}


def test_one_heads_scores(said: Callable[..., list[str]]) -> None:
    result = SCORES | {"head": "logreg", "baseline": 0.3333, "head_id": "id-1"}
    first = (
        "logreg: top-1 90.0% on test (95 % interval 81.0% to 94.9%), 87.6% on validation; the most frequent class "
        "alone gives 33.3%."
    )
    assert said(output.trained, result) == [first, "Head: id-1"]
    more = {
        "excluded": {"ambiguous label": 1234, "no label": 2},
        "ambiguous_uris": ["file:///a%20b.jpg", "file:///c.jpg"],
        "notes": ["a note"],
        "misclassified": [
            {"probability": 0.987, "predicted": "cat", "true": "dog", "uri": "file:///d.jpg"},
            {"probability": 0.05, "predicted": "owl", "true": "dog", "uri": "file:///e.jpg"},
        ],
    }
    assert said(output.trained, result | more) == [
        first,
        "Left out: 1,234 with ambiguous label, such as /a b.jpg and /c.jpg.",
        "Left out: 2 with no label.",
        "Note: a note",
        "2 test images predicted wrong, the surest first:",
        "   98.7%  cat, is dog  file:///d.jpg",
        "    5.0%  owl, is dog  file:///e.jpg",
        "Head: id-1",
    ]


def row(head: str, **more: Any) -> dict[str, Any]:
    scored = {"val": 0.9, "val_ci": [0.8, 0.95], "fit_seconds": 1.234, "class_weight": None}
    return {"head": head, "params": {}, **scored, **more}


def compared(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    winner = row("logreg", params={"C": 0.1}, calibration=None, head_id="id-1", **SCORES)
    plain = {"n": {"train": 1500, "test": 1400}, "learning_curve": None, "fewshot": [], "report": "r.html"}
    return {
        "leaderboard": rows,
        "chosen_by": "validation",
        "chosen": 0,
        "simplest": 0,
        "winner": winner,
        **plain,
        **more,
    }


def test_a_leaderboard_and_its_winner(said: Callable[..., list[str]]) -> None:
    rows = [
        row("logreg", params={"C": 0.1}, class_weight="balanced", tied=True, val_range=[0.7, 0.91], note="a note"),
        row("logreg", params={"C": 10.0}),
        row("ncm", val=None, val_ci=None, error="no numbers", tied=True, fit_seconds=0),
    ]
    winner = row(
        "logreg", params={"C": 0.1}, head_id="id-1", **SCORES,
        calibration={"ece_after": 0.012, "ece_before": 0.0456, "temperature": 1.234},
    )  # fmt: skip
    shot = [{"k": 5, "head": "ncm", "val": 0.5, "val_range": [0.4, 0.6]}]
    curve = {"at_twice": {"n": 3000, "val": 0.92, "low": 0.91, "high": 0.93}}
    lines = said(
        output.compared, compared(*rows, winner=winner, fewshot=shot, learning_curve=curve, notes=["last"], excluded={})
    )
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in lines[:4]]
    assert [[cell.strip() for cell in line] for line in cells] == [
        ["head", "parameters", "val", "interval", "seconds", "note"],
        [
            *("logreg", "C 0.1, balanced", "90.0%", "80.0% to 95.0%", "1.23"),
            "tied with the first, seeds from 70.0% to 91.0%, a note",
        ],
        ["logreg", "C 10.0", "90.0%", "80.0% to 95.0%", "1.23"],
        ["ncm", "failed", "0.00", "no numbers"],
    ]
    assert lines[4:7] == [
        "Winner by validation: logreg C 0.1. On test: 90.0% (95 % interval 81.0% to 94.9%, 1,400 images).",
        "Calibration error on test: 1.2% with temperature 1.2, 4.6% without.",
        "With 3,000 training images instead of 1,500: about 92.0% on validation (91.0% to 93.0%).",
    ]
    assert lines[7].split() == ["images", "per", "class", "head", "val", "range"]
    assert lines[8].split() == ["5", "ncm", "50.0%", "40.0%", "to", "60.0%"]
    assert lines[9:] == ["Note: last", "Head: id-1", "Report: r.html"]


def test_the_simplest_tied_head_is_told(said: Callable[..., list[str]]) -> None:
    rows = (row("logreg", params={"C": 0.1}), row("ncm", tied=True, p_corrected=0.216))
    named, taken = (said(output.compared, compared(*rows, simplest=1, chosen=chosen)) for chosen in (0, 1))
    assert named[4] == "ncm is simpler and tied with it (p = 0.22): `--prefer simple` keeps that one."
    assert taken[4] == "It is the simplest of the heads that are tied with the first."


def test_what_a_comparison_has_not_found_is_not_told(said: Callable[..., list[str]]) -> None:
    for curve in (None, {"at_twice": None}):
        lines = said(output.compared, compared(row("ncm"), learning_curve=curve))
        assert [line.split()[0] for line in lines] == ["head", "ncm", "Winner", "Head:", "Report:"]
    for count, more in ((20, []), (22, ["… and 2 more"])):
        lines = said(output.compared, compared(*[row("ncm")] * count))
        assert lines[21:-3] == more
    lines = said(output.compared, compared(row("ncm"), row("svm", feature_set="other")))
    assert [line.split()[0] for line in lines[:3]] == ["set", "ncm", "other"]


def test_what_fine_tuning_has_brought(said: Callable[..., list[str]]) -> None:
    result = {
        "n": {"test": 1234}, "best_epoch": 3, "epochs": 20, "before": SCORES,
        "after": {"test": 0.95, "test_ci": [0.9, 0.98], "val": 0.96}, "p_value": 0.01234,
        "left_out": {"without a file": 1001}, "notes": ["a note"], "seconds": {"train": 12.34, "score": 5.0},
        "images_per_second": 98.76, "backbone": "ft:x", "head_id": "id-1", "report": "r.html",
    }  # fmt: skip
    assert said(output.finetuned, result) == [
        "Best on validation: epoch 3 of 20.",
        "Before: top-1 90.0% on test (95 % interval 81.0% to 94.9%, 1,234 images), 87.6% on validation.",
        "After: top-1 95.0% on test (95 % interval 90.0% to 98.0%, 1,234 images), 96.0% on validation.",
        "Exact McNemar test of the difference: p = 0.012.",
        "Left out: 1,001 without a file.",
        "Note: a note",
        "Seconds: train 12.3, score 5.0; trained on 98.8 images per second.",
        "Backbone: ft:x",
        "Head: id-1",
        "Report: r.html",
    ]


def test_predictions_and_why_there_are_none(said: Callable[..., list[str]]) -> None:
    good = Prediction("file:///a.jpg", "cat", 0.9, [("cat", 0.9), ("[dog]", 0.0123)], given="./a.jpg")
    bad = Prediction("file:///b%0A.jpg", error_type="empty", error="It is empty.", given="b\n.jpg")
    assert said(output.predicted, [good, bad]) == [
        "./a.jpg",
        "   90.0%  cat",
        "    1.2%  [dog]",
        "file:///b%0A.jpg",
        "  empty: It is empty.",
    ]
    assert Prediction("file:///c.jpg").name == "file:///c.jpg"


def test_where_an_exported_model_is(said: Callable[..., list[str]]) -> None:
    parity = {"pictures": 16, "max_difference": 1.23e-6, "batch_1_against_n": 0.0004}
    told = {"path": "m", "input_size": 224, "classes": 1234, "bytes": 12_345_678, "labels": "labels.txt"}
    assert said(output.exported, told | {"parity": parity}) == [
        "m: 224×224 RGB in, 1,234 classes out, 12.3 MB with labels.txt.",
        "Checked on 16 images: probabilities within 1e-06 of the head's on stored features, one image at a time "
        "within 0.0004 of all at once.",
    ]


# --- status and runs


def counted(**more: Any) -> dict[str, Any]:
    catalog = {"ok": 1001, "contents": 1000, "failed": 0, "removed": 0}
    return {
        "store": "s", "bytes": 999, "catalog": catalog, "failures": {}, "sources": [], "sets": [], "labels": {},
        "differing_labels": {}, "runs": {"count": 0, "last": []},
    } | more  # fmt: skip


def test_what_a_store_holds(said: Callable[..., list[str]]) -> None:
    assert said(output.status, counted()) == [
        "s: 1,001 images, 999 B",
        "  1,001 read (1,000 different contents), 0 failed",
        "0 runs.",
    ]
    one_set = {
        "name": "net-1", "layer": "top", "input_size": 224, "width": 1280, "dtype": "float16", "precision": "f32",
        "rows": 1234, "coverage": 0.987, "bytes": 1500,
    }  # fmt: skip
    full = counted(
        catalog={"ok": 1001, "contents": 1000, "failed": 1002, "removed": 1003},
        failures={"truncated": 1002},
        sources=[{"source": "file:///my%20photos", "listed": 5}, {"source": None, "listed": 7}],
        sets=[one_set],
        labels={"default": 1234, "other": 5},
        differing_labels={
            "default": {"contents": 1100, "ambiguous": 1050, "examples": ["0123456789abcdef", "ba9876543210fedc"]},
            "other": {"contents": 0, "ambiguous": 0, "examples": []},
        },
        runs={"count": 9, "last": [{"run_id": "run-8"}, {"run_id": "run-9"}]},
    )
    lines = said(output.status, full)
    assert lines[:5] == [
        "s: 2,003 images, 999 B",
        "  1,001 read (1,000 different contents), 1,002 failed",
        "    1,002 truncated",
        "    `penult status --failed` names them.",
        "  1,003 removed, which no source lists any more",
    ]
    assert [line.split("  ")[0] for line in lines[5:8]] == ["source", "/my photos", "unknown origin"]
    assert lines[8].split() == ["set", "layer", "input", "stored", "as", "precision", "rows", "coverage", "size"]
    assert lines[9].split() == ["net-1", "top", "224", "1280", "×", "float16", "f32", "1,234", "98.7%", "1.5", "kB"]
    assert lines[10:] == [
        "Label set default: 1,234 rows.",
        "  1,100 contents have copies with different labels; 1,050 of them are left out of training, for example "
        "0123456789ab, ba9876543210.",
        "Label set other: 5 rows.",
        "9 runs, the last ones:",
        "  run-8",
        "  run-9",
    ]


@pytest.mark.parametrize(
    ("stopped", "why"),
    [
        ("decided", "as every difference was sure or small."),
        ("max_share", "at --max-share."),
        ("budget", "with its --budget."),
    ],
)
def test_a_trial(said: Callable[..., list[str]], stopped: str, why: str) -> None:
    spent = {"images_per_second": 80.54, "left": 13_590, "hours": 1.25, "bytes": 35_600_000}
    result = {
        **{"run_id": "run-1", "recommendation": "Take b.", "stopped": stopped, "planned_looks": 3, "head": "logreg"},
        **{"confidence": 1 - 0.05 / 6, "seconds": 61.84},
        "backbones": [
            {"backbone": "a", "images": 1034, "accuracy": 0.8149, **spent},
            {
                **{"backbone": "b", "images": 429, "accuracy": 0.84, "gain": 0.0251, "gain_ci": [0.001, 0.0492]},
                **{"verdict": "better", **spent, "images_per_second": None, "hours": None},
            },
        ],
    }
    told = said(output.tried, result)
    assert [" ".join(line.split()) for line in told] == [
        "backbone images accuracy gain interval verdict per second left would take and",
        "a 1,034 81.5% in use 80.5 13,590 1.2 hours 35.6 MB",
        "b 429 84.0% +2.5 +0.1 to +4.9 better 13,590 an unknown time 35.6 MB",
        f"The trial ended {why} All its intervals hold together with 95 %: 3 looks were planned, so that each has "
        "99.17 %. Accuracy is that of cross-validated logreg.",
        "Embedding the sample took 61.8 s; `penult embed` computes what is left, and only that.",
        "Take b.",
        "Run: run-1",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1550, "1.6 kB"), (999_900, "999.9 kB"), (10**6, "1.0 MB"),
        (10**9, "1.0 GB"), (999_900_000_000, "999.9 GB"), (10**12, "1.0 TB"), (12_345 * 10**12, "12345.0 TB"),
    ],
)  # fmt: skip
def test_sizes_in_words(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("kind", "result", "outcome", "name"),
    [
        ("embed", {"embedded": 1001, "failed": 1002, "feature_set": "s"}, "1,001 embedded, 1,002 failed", "s"),
        ("forget", {"removed": 1003}, "1,003 images removed", ""),
        ("label", {"added": 1004, "changed": 1005}, "1,004 added, 1,005 changed", ""),
        ("finetune", {"before": {"test": 0.8}, "after": {"test": 0.876}}, "80.0% → 87.6% on test", ""),
        ("train", {"head": "ncm", "test": 0.5, "feature_set": "s"}, "ncm 50.0% on test", "s"),
        ("compare", {"winner": {"head": "svm", "test": 0.75}, "feature_set": "s"}, "svm 75.0% on test", "s"),
    ],
)
def test_a_run_as_a_row(kind: str, result: dict[str, Any], outcome: str, name: str) -> None:
    record: Any = SimpleNamespace(kind=kind, result=result, run_id="run-1", started="2026-01-02")
    assert output.run_row(record) == {"run": "run-1", "started": "2026-01-02", "outcome": outcome, "set": name}
