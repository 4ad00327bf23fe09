"""Published versions: ``current`` is always whole, a killed publication goes on, nothing of others is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import seeded
from featurestore.errors import EngineError, StoreError, UsageError
from pipelines.backbones import networks
from pipelines.embedding.embed import embed
from pipelines.export import FORMATS
from pipelines.folders import whole_folder
from pipelines.options import EmbedOptions, ExportOptions, TrainOptions
from pipelines.retraining import publishing
from pipelines.retraining.options import PublishOptions
from pipelines.retraining.publishing import publish, published
from pipelines.training import train_head

SERVED = ("labels.txt", "model.json", "model.keras")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Exports without a model; the heads that were exported."""
    done: list[str] = []

    def export(store: Any, to: Path, options: ExportOptions, head_id: str, say: Any) -> None:
        with whole_folder(to) as fresh:
            for name in SERVED:
                told = {"format": options.format, "model": "model.keras", "head_id": head_id}
                (fresh / name).write_text(json.dumps(told))
        done.append(head_id)

    monkeypatch.setattr(publishing, "export", export)
    return done


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "models" / "photos"


def put(to: Path, head_id: str, name: str | None = None, keep: int = 2, format: str = "keras") -> str | None:
    lines: list[str] = []
    before = os.path.realpath(to / "current")
    place = publish("store", head_id, PublishOptions(str(to), format), name or f"2026-{head_id}", keep, lines.append)
    assert lines == [f"Published: {place}"] * (before != os.path.realpath(to / "current"))
    return place


def versions(to: Path) -> list[str]:
    return sorted(path.name for path in to.iterdir() if path.name != "current")


def assert_whole(folder: Path) -> str:
    """A folder has all its files, and all of one head; that head."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(SERVED)
    (head_id,) = {json.loads((folder / name).read_text())["head_id"] for name in SERVED}
    return head_id


def test_real_heads_one_after_the_other(tmp_path: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_digits(n_class=3)
    for number in range(60):
        path = tmp_path / "corpus" / f"class {data.target[number]}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[number] * 15).astype(np.uint8)).resize((40, 30)).save(path)
    with seeded.small(tmp_path) as backbone:
        weights = str(backbone.published(top=False))
        embed(str(tmp_path / "corpus"), tmp_path / "store", EmbedOptions(backbone.name, weights, input_size=32))
        published_one_by_one(tmp_path / "store", to, monkeypatch)


def published_one_by_one(store: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PublishOptions(str(to))
    monkeypatch.setattr(networks, "build", cache(networks.build))
    heads = [train_head(store, TrainOptions(family))["head_id"] for family in ("ncm", "logreg")]
    assert published(to) is None
    for number, head_id in enumerate(heads):
        assert publish(store, head_id, options, f"2026-11-0{number}", 5, lambda _: None) == str(
            to / f"2026-11-0{number}"
        )
        assert published(to) == head_id
        model = FORMATS["keras"].load(to / "current" / "model.keras")
        assert model(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "export", lambda *_: pytest.fail("exported again"))
        assert publish(store, heads[0], options, "2026-11-00", 5, lambda _: None)  # back to it
    assert published(to) == heads[0] and versions(to) == ["2026-11-00", "2026-11-01"]

    row = FORMATS["keras"]

    def wrong(path: Path) -> Any:
        run = row.load(path)
        return lambda pixels: run(pixels) + 1

    monkeypatch.setitem(FORMATS, "keras", row._replace(load=wrong))
    with pytest.raises(EngineError, match="differs from the head"):
        publish(store, heads[1], options, "2026-11-02", 5, lambda _: None)
    assert published(to) == heads[0] and versions(to) == ["2026-11-00", "2026-11-01"]


def test_without_a_folder_nothing_is_published(made: list[str]) -> None:
    assert publish("store", "a", PublishOptions(), "x", 5, lambda _: None) is None and not made


def test_old_versions_go_and_the_current_one_stays(made: list[str], to: Path) -> None:
    for head_id in "abcde":
        put(to, head_id, keep=3)
    assert versions(to) == ["2026-c", "2026-d", "2026-e"] and published(to) == "e"
    put(to, "c", keep=2)  # back to an old one
    assert versions(to) == ["2026-c", "2026-e"] and published(to) == "c" and made == [*"abcde"]
    put(to, "f", "2025-f", keep=1)  # the name says nothing of the age
    assert versions(to) == ["2025-f", "2026-e"] and assert_whole(to / "current") == "f"
    assert (to / "current").readlink() == Path("2025-f")  # the folder can be moved
    for name in ("2025-f", "2026-e"):
        os.utime(to / name / "model.json", ns=(0, 0))  # a copy may have lost all times
    put(to, "g", "2026-g")
    assert versions(to) == ["2026-e", "2026-g"]


def test_what_is_not_whole_or_another_export_keeps_its_name(made: list[str], to: Path) -> None:
    for head_id in "ab":
        put(to, head_id, keep=9)
    assert put(to, "a", "2026-b", keep=9) == str(to / "2026-b-2") and published(to) == "a"
    for _ in range(2):
        assert put(to, "a", "2026-b", keep=9, format="openvino") == str(to / "2026-b-3") and made == [*"abaa"]
    for number, (name, text) in enumerate(
        [("model.json", "{"), ("model.json", "[1]"), ("model.json", "{}"), ("labels.txt", None), ("model.keras", None)]
    ):
        place = Path(put(to, f"broken{number}") or "")
        (place / name).unlink() if text is None else (place / name).write_text(text)
        assert published(to) is None
        assert put(to, f"broken{number}") == f"{place}-2" and published(to) == f"broken{number}"
        assert place.exists()


def test_nothing_of_others_is_removed(made: list[str], to: Path) -> None:
    put(to, "a")
    others = [to / "notes", to / "mine", to / "link"]
    (to / "notes").write_text("x")
    (to / "mine").mkdir()
    (to / "mine" / "model.json").write_text('{"model": "x"}')
    (to / "link").symlink_to("2026-a")
    for head_id in "bcd":
        put(to, head_id)
    assert all(os.path.lexists(path) for path in others) and (to / "mine" / "model.json").exists()
    assert versions(to) == ["2026-c", "2026-d", "link", "mine", "notes"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "parent"])
def test_a_current_of_somebody_else_is_left_alone(kind: str, made: list[str], to: Path) -> None:
    to.mkdir(parents=True)
    current = to / "current"
    {
        "folder": lambda: shutil.copytree(to, current),
        "file": lambda: current.write_text("mine"),
        "link": lambda: current.symlink_to("/somewhere/else"),
        "parent": lambda: current.symlink_to(".."),
    }[kind]()
    got = {"link": "/somewhere/else", "parent": ".."}.get(kind, "no link")
    said = f"Expected: {current}, the link to the newest version. Got: {got}, which is not penult's: move it away"
    with pytest.raises(UsageError, match=re.escape(said)):
        put(to, "a")
    assert not made and [path.name for path in to.iterdir()] == ["current"] and published(to) is None


def test_a_copy_in_the_links_place_is_not_what_penult_serves(made: list[str], to: Path) -> None:
    put(to, "a")
    (to / "current").unlink()
    (to / "2026-a").rename(to / "current")
    assert published(to) is None
    with pytest.raises(UsageError, match="which is not penult's"):
        put(to, "b")
    assert assert_whole(to / "current") == "a"


def test_the_link_outlives_a_power_cut(made: list[str], to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[Path, str]] = []
    monkeypatch.setattr(publishing, "flush", lambda path: flushed.append((path, os.path.realpath(path / "current"))))
    put(to, "a")
    assert flushed == [(to, str(to / "2026-a"))]


def test_a_place_that_is_no_folder_or_refuses(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"Expected: a folder to publish in\. Got: .*file, a file"):
        put(tmp_path / "file", "a")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "no", "/there/current")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(StoreError, match="/there/current: Operation not permitted"):
        put(tmp_path / "to", "a")
    monkeypatch.undo()


def test_a_link_that_leads_nowhere_any_more_is_mended(made: list[str], to: Path) -> None:
    put(to, "a")
    shutil.rmtree(to / "2026-a")
    assert published(to) is None
    put(to, "a")
    assert assert_whole(to / "current") == "a" and made == ["a", "a"]


# --- killed anywhere


class Killed(BaseException):
    """The process is no more."""


CHANGES = ("mkdir", "rename", "replace", "symlink", "unlink", "rmdir", "fsync")


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let a change to the disk fail, and all that come after it, as whoever is killed cleans nothing up."""
    made: list[str] = []

    def dying(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) >= number:
                raise Killed
            return change(*given, **options)

        return run

    for name in CHANGES:
        monkeypatch.setattr(os, name, dying(name, getattr(os, name)))
    return made


@pytest.mark.parametrize("keep", [2, 3])
def test_killed_anywhere_and_run_again(keep: int, made: list[str], tmp_path: Path) -> None:
    before = tmp_path / "before"
    for head_id in "abc":
        put(before, head_id, keep=5)
    for number in range(1, 1000):
        to, ended = tmp_path / str(number), False
        shutil.copytree(before, to, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            try:
                put(to, "d", keep=keep)
                ended = True
            except Killed:
                pass
        assert assert_whole(to / "current") == published(to)
        assert published(to) in ("c", "d")
        made.clear()
        there = (to / "2026-d").exists()
        put(to, "d", keep=keep)
        assert assert_whole(to / "current") == "d" and made == ([] if there else ["d"])
        assert versions(to) == [f"2026-{head_id}" for head_id in "bcd"][-keep:]
        if ended:
            break
    assert ended and number > 30


def test_killed_by_the_first_publication(made: list[str], tmp_path: Path) -> None:
    for number in range(1, 1000):
        to, ended = tmp_path / "to" / str(number), False
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            try:
                put(to, "a")
                ended = True
            except Killed:
                pass
        assert published(to) in (None, "a")
        put(to, "a")
        assert assert_whole(to / "current") == "a" and versions(to) == ["2026-a"]
        if ended:
            break
    assert ended and number > 10


# --- readers meanwhile


def test_who_reads_meanwhile_always_finds_a_whole_version(made: list[str], to: Path) -> None:
    put(to, "000")
    over, wrong, seen, times = threading.Event(), [], set(), [0, 0, 0]

    def read(reader: int) -> None:
        while not over.is_set():
            try:
                for name in SERVED:
                    seen.add(json.loads((to / "current" / name).read_text())["head_id"])
                assert_whole((to / "current").resolve(strict=True))
                times[reader] += 1
            except BaseException as error:
                wrong.append(error)
                return

    readers = [threading.Thread(target=read, args=[number]) for number in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 60):
        before = list(times)
        put(to, f"{number:03}", keep=5)
        while not wrong and any(now == then for now, then in zip(times, before, strict=True)):
            time.sleep(0.001)  # nobody reads so slowly that five versions are published meanwhile
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong and len(seen) > 5
