"""Nights of ``penult retrain``, with a counting engine in the CNN's place; kills and a week are in tests/faults."""

from __future__ import annotations

import copy
import datetime
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import CountingEngine
from featurestore import aliases, layout
from featurestore.errors import PenultError, SourceError, TooManyFailures, UsageError
from featurestore.snapshot import Snapshot
from featurestore.splits import SPLITS, TEST, TRAIN, Split
from featurestore.store import FeatureStore
from pipelines.commands import app
from pipelines.embedding import worker
from pipelines.maintenance import gc, verify
from pipelines.options import TrainOptions
from pipelines.retraining import RetrainOptions, retrain
from pipelines.retraining.night import Console, nights
from pipelines.retraining.options import CHECKS
from pipelines.stored_heads import promote
from pipelines.training import train_head

pytestmark = pytest.mark.usefixtures("few_resamples")

KEYS = {
    "run_id", "recipe", "date", "repeated", "decision", "reason", "embed", "labels", "checks", "champion", "challenger",
    "difference", "n", "report", "published", "seconds",
}  # fmt: skip
LEAST = """
[source]
location = "photos"

[compare]
heads = ["ncm", "logreg"]

[promote]
rule = "better"
"""
NEAREST = LEAST.replace('"ncm", "logreg"', '"ncm"')  # for tests in which the heads do not matter
COLOURS = {"red": (150, 60, 60), "green": (60, 150, 60), "blue": (60, 60, 150)}
PER_CLASS = 80

Night = Callable[..., dict[str, Any]]


class World:
    """A folder of coloured squares, a recipe, a store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.recipe = folder, folder / "store", folder / "nightly.toml"
        self.number = 0
        folder.mkdir(exist_ok=True)
        self.write(LEAST)

    def write(self, recipe: str) -> None:
        self.recipe.write_text(recipe)

    def add(self, per_class: int = PER_CLASS, noise: int = 60, folder: str = "photos", **labels: str) -> list[Path]:
        """Add pictures of each colour, filed under its name or the one given instead."""
        added = []
        for name, colour in COLOURS.items():
            for _ in range(per_class):
                random = np.random.default_rng(self.number)
                pixels = np.clip(random.normal(colour, noise, (2, 2, 3)).round(), 0, 255).astype(np.uint8)
                path = self.folder / folder / labels.get(name, name) / f"{self.number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(path)
                added.append(path)
                self.number += 1
        return added

    def night(self, day: int, **options: Any) -> dict[str, Any]:
        return retrain(self.recipe, self.store, RetrainOptions(date=datetime.date(2026, 11, day), **options))

    def picture_paths(self) -> list[Path]:
        """The pictures in the order in which they were added."""
        return sorted(self.folder.glob("photos/*/*"), key=lambda path: path.name)

    @property
    def champion(self) -> str | None:
        return aliases.resolve(self.store, aliases.CHAMPION)

    def cli(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run the command; return its exit code, and the last line of stdout."""
        command = ["retrain", str(self.recipe), "--store", str(self.store), "--json", *words]
        result = CliRunner().invoke(app, command)
        error = result.exception
        if error is not None and not isinstance(error, PenultError | SystemExit):
            raise error
        code = error.exit_code if isinstance(error, PenultError) else result.exit_code
        return code, json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}


@pytest.fixture
def world(tmp_path: Path, engine: CountingEngine) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """The folder of a world after its first night, a copy of it, and what the night came to."""
    folder = tmp_path_factory.mktemp("first")
    world = World(folder / "world")
    world.add()
    worker.engine_for.cache_clear()
    with mock.patch.object(worker, "open_engine", lambda *_args, **_options: CountingEngine(8)):
        told = world.night(1)
    worker.engine_for.cache_clear()
    shutil.copytree(world.folder, folder / "copy")
    return world.folder, folder / "copy", told


@pytest.fixture
def begun(first_night: tuple[Path, Path, dict[str, Any]], engine: CountingEngine) -> Iterator[World]:
    """That world as the night left it; what a test does to it is undone."""
    folder, saved, _ = first_night
    world = World(folder)
    world.number = len(world.picture_paths())
    yield world
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)


@pytest.fixture
def first(first_night: tuple[Path, Path, dict[str, Any]]) -> dict[str, Any]:
    """What the first night of ``begun`` came to."""
    return copy.deepcopy(first_night[2])


def status_of(outcome: dict[str, Any], check: str) -> str:
    return next(row["status"] for row in outcome["checks"] if row["name"] == check)


def test_the_least_recipe_works_as_it_stands(world: World) -> None:
    world.add()
    code, told = world.cli("--date", "2026-11-01", "--skip-code", "99")
    assert code == 0
    assert told.keys() >= KEYS
    assert (told["decision"], told["date"], told["recipe"]) == ("promoted", "2026-11-01", "nightly")
    assert told["embed"]["embedded"] == 240 and told["labels"] == {"added": 240, "changed": 0}
    assert told["champion"] is None and told["difference"] is None and told["repeated"] is False
    assert told["challenger"]["head_id"] == world.champion == aliases.resolve(world.store, "challenger")
    assert told["challenger"]["head"] in ("ncm", "logreg") and told["challenger"]["score"] > 0.6
    assert told["n"]["train"] + told["n"]["val"] + told["n"]["test"] == 240 and told["n"]["classes"] == 3
    assert Path(told["report"]).is_file() and told["published"] is None
    (move,) = aliases.history(world.store, aliases.CHAMPION)
    assert (move.date, move.run_id, move.score) == ("2026-11-01", told["run_id"], told["challenger"]["score"])


def test_the_date_is_today_in_utc_where_none_is_given(world: World) -> None:
    world.add(20)
    before = datetime.datetime.now(datetime.UTC).date()
    told = retrain(world.recipe, world.store)
    assert before.isoformat() <= told["date"] <= datetime.datetime.now(datetime.UTC).date().isoformat()


def test_a_night_is_done_once(begun: World, first: dict[str, Any], engine: CountingEngine) -> None:
    begun.add(5)
    runs = FeatureStore(begun.store).runs()
    embedded = engine.images
    assert begun.night(1) == first | {"repeated": True}
    assert engine.images == embedded and len(FeatureStore(begun.store).runs()) == len(runs)
    second = begun.night(2)
    assert second["embed"]["new"] == 15
    fine = ("failures", "appeared", "vanished", "flips", "test_shrank", "small_classes")
    assert {status_of(second, check) for check in fine} == {"ok"}


TRACKED = LEAST + '\n[track]\nuri = "sqlite:///{folder}/m.db"\n'


def test_a_night_that_cannot_be_tracked_ends_as_any_other(begun: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    begun.write(TRACKED.replace("{folder}", str(begun.folder)))
    said: list[str] = []
    told = retrain(begun.recipe, begun.store, RetrainOptions(date=datetime.date(2026, 11, 2)), Console(said.append))
    assert told["decision"] == "unchanged" and nights(begun.store)[-1].told["state"]
    (line,) = [line for line in said if "mlflow" in line]
    assert line.startswith("Tracking needs the package mlflow: `pip install 'penult[track]'`")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # see test_tracking.py
def test_a_tracked_night_and_its_aliases(begun: World, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.chdir(begun.folder)
    begun.write(TRACKED.replace("{folder}", str(begun.folder)))
    begun.add(5)
    told = begun.night(2)
    challenger = told["challenger"]["head_id"]
    assert told["decision"] in ("kept", "promoted")
    there = client(f"sqlite:///{begun.folder}/m.db")
    (run,) = there.search_runs([there.get_experiment_by_name("penult").experiment_id])
    assert run.data.tags["penult.head_id"] == challenger and run.data.tags["penult.run_id"] == told["run_id"]
    marks = {tag.removeprefix("penult.alias.") for tag in run.data.tags if tag.startswith("penult.alias.")}
    assert marks == {name for name in aliases.names(begun.store) if aliases.resolve(begun.store, name) == challenger}
    assert "challenger" in marks and begun.champion in (challenger, first["challenger"]["head_id"])


def test_another_recipe_on_the_same_date_is_another_night(begun: World) -> None:
    begun.write("# a remark\n" + LEAST)
    assert begun.night(1)["repeated"]
    begun.write(NEAREST)
    told = begun.night(1)
    assert not told["repeated"] and told["challenger"]["head"] == "ncm" and told["test"]["decisions"] == 2
    renamed = 'name = "another"\n'
    begun.write(renamed + begun.recipe.read_text())
    assert begun.night(1)["repeated"], "a name decides nothing"
    begun.write(renamed + LEAST.replace('"ncm", "logreg"', '"logreg"'))
    assert begun.night(1)["test"]["decisions"] == 1, "the others are nights of another recipe"


def test_a_night_on_which_nothing_changed_fits_nothing(
    begun: World, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = begun.night(2)
    assert second["decision"] == "unchanged" and second["challenger"] is None and second["n"] == first["n"]
    assert second["champion"] == {key: first["challenger"][key] for key in ("head_id", "score", "ci")}
    code, third = begun.cli("--date", "2026-11-03", "--skip-code", "99")
    assert code == 99 and third["decision"] == "unchanged"
    assert third["reason"] == "Nothing has changed since the night of 2026-11-02."
    assert begun.cli("--date", "2026-11-03", "--skip-code", "99") == (99, third | {"repeated": True})
    assert begun.cli("--date", "2026-11-04")[0] == 0
    train_head(begun.store, TrainOptions(head="ncm"))
    promote(FeatureStore(begun.store), None)  # somebody promotes another head: there is something to decide
    assert begun.night(5)["decision"] in ("kept", "promoted")


def test_new_labels_alone_are_a_change(world: World) -> None:
    paths = world.add()
    world.write(LEAST + '\n[labels]\nfile = "labels/{date}.csv"\n')
    first = world.night(1)
    assert any("labels/2026-11-01.csv is not there" in note for note in first["notes"])
    (world.folder / "labels").mkdir()
    rows = [f"{path.as_uri()},blue" for path in paths[:7]]
    (world.folder / "labels" / "2026-11-02.csv").write_text("\n".join(["uri,label", *rows]))
    second = world.night(2)
    assert second["labels"] == {"added": 0, "changed": 7} and second["decision"] in ("kept", "promoted")
    (flips,) = (check for check in second["checks"] if check["name"] == "flips")
    assert flips["value"] == pytest.approx(7 / 240) and len(flips["images"]) == 7


def test_a_worse_head_is_kept_out_and_a_better_one_promoted(world: World) -> None:
    world.add()
    for wrong in ({"red": "green", "green": "blue", "blue": "red"},):
        world.add(25, **wrong)
    first = world.night(1)
    world.add(500, noise=70)
    second = world.night(2)
    assert second["champion"]["head_id"] == first["challenger"]["head_id"]
    difference = second["difference"]
    promoted = difference["ci"][0] > 0
    assert second["decision"] == ("promoted" if promoted else "kept")
    assert difference["value"] == pytest.approx(second["challenger"]["score"] - second["champion"]["score"])
    assert second["test"]["old"]["n"] + second["test"]["new"]["n"] == second["n"]["test"]
    assert second["test"]["decisions"] == 2 and second["test"]["new"]["n"] > second["test"]["old"]["n"]
    assert aliases.resolve(world.store, "challenger") == second["challenger"]["head_id"]


def test_label_set_and_split_are_the_recipes(world: World) -> None:
    world.add()
    world.write(LEAST + '\n[labels]\nlabel_set = "second"\n[split]\ntest = 0.4\nseed = 7\n')
    told = world.night(1)
    data = FeatureStore(world.store).dataset(None, "second", Split(test=0.4, seed=7))
    assert told["n"]["test"] == int((data.splits == TEST).sum()) == told["test"]["new"]["n"]
    assert told["labels"]["added"] == len(data) == 240
    assert FeatureStore(world.store).count_labels("default") == 0


def test_a_late_night_leaves_a_champion_of_a_later_date_alone(world: World) -> None:
    world.add()
    later = world.night(9)
    world.add(30)
    late = world.night(3)
    assert (late["decision"], late["reason"]) == ("kept", "The champion is of a later date, 2026-11-09.")
    assert world.champion == aliases.resolve(world.store, "challenger") == later["challenger"]["head_id"]


def test_a_date_in_the_source_is_the_logical_date(world: World) -> None:
    world.write(NEAREST.replace('"photos"', '["photos", "in/{date:%Y/%m}/{date:%d}"]'))
    world.add()
    world.add(10, folder="in/2026/11/01")
    world.add(5, folder="in/2026/11/02")
    assert world.night(1)["embed"]["new"] == 270
    assert world.night(2)["embed"]["new"] == 15
    with pytest.raises(SourceError, match="2026/11/03"):
        world.night(3)
    world.add(1, folder="in/2026/11/03")
    assert world.night(3)["embed"]["new"] == 3


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_that_blocks_ends_the_night_with_code_4(check: str, begun: World, first: dict[str, Any]) -> None:
    begun.write(LEAST + f'\n[checks]\n{check} = "block"\n')
    paths = begun.add(20, noise=10 if check == "drift" else 60)
    match check:
        case "failures":
            for path in paths[:9]:
                path.write_bytes(b"no picture")
        case "small_classes":
            (begun.folder / "photos" / "grey").mkdir()
            shutil.copy(paths[0], begun.folder / "photos" / "grey" / "1.png")
            paths[0].unlink()
        case "appeared":
            (begun.folder / "photos" / "red").rename(begun.folder / "photos" / "crimson")
            begun.write(LEAST + '\n[checks]\nappeared = "block"\nvanished = "off"\n[embed]\naccept_removed = true\n')
        case "vanished":
            shutil.rmtree(begun.folder / "photos" / "red")
        case "flips":
            rows = [f"{path.as_uri()},blue" for path in (begun.folder / "photos" / "red").iterdir()]
            (begun.folder / "corrected.csv").write_text("\n".join(["uri,label", *rows]))
            begun.write(LEAST + '\n[checks]\nflips = "block"\n[labels]\nfile = "corrected.csv"\n')
        case "drift":
            for path in paths:
                pixels = np.asarray(Image.open(path))
                Image.fromarray(pixels // 3).save(path)
        case "test_shrank":
            rows = [f"{uri},train" for uri in FeatureStore(begun.store).dataset().uris]
            (begun.folder / "splits.csv").write_text("\n".join(["uri,split", *rows]))
            begun.write(LEAST + '\n[checks]\ntest_shrank = "block"\n[labels]\nfile = "splits.csv"\n')
        case "copies":
            begun.write(LEAST + '\n[checks]\ncopies = "block"\ncopies_cosine = 0.5\n')
    code, told = begun.cli("--date", "2026-11-02")
    assert code == 4
    assert told["decision"] == "blocked" and status_of(told, check) == "block" and check in told["reason"]
    assert told["challenger"] is None and begun.champion == first["challenger"]["head_id"]
    assert told["champion"] == {"head_id": begun.champion, "score": None, "ci": None}
    assert Path(told["report"]).is_file()
    assert begun.cli("--date", "2026-11-02") == (4, told | {"repeated": True})
    if check != "failures":  # which looks at tonight's files alone
        assert begun.night(3)["decision"] == "blocked", "nothing has changed, and nothing was decided"
    begun.write(begun.recipe.read_text().replace('"block"', '"warn"'))
    told = begun.night(2)
    assert told["decision"] in ("kept", "promoted") and told["embed"]["new"] == 0
    assert status_of(told, check) == ("ok" if check == "failures" else "warn")  # none of tonight's new files failed


def test_too_many_failures_end_with_code_3_and_the_night_goes_on_when_they_are_mended(world: World) -> None:
    paths = world.add(20)
    whole = {path: path.read_bytes() for path in paths[:9]}
    for path in whole:
        path.write_bytes(b"no picture")
    assert world.cli("--date", "2026-11-01") == (3, {})
    (night,) = nights(world.store)
    assert night.outcome is None and "9 of 60 files failed" in night.told["error"]
    shown = CliRunner().invoke(app, ["runs", "--store", str(world.store), "--json"])
    assert "2026-11-01 not finished: 9 of 60 files failed" in json.loads(shown.stdout.splitlines()[-1])[-1]["outcome"]
    for path, data in whole.items():
        path.write_bytes(data)
    told = world.night(1)
    assert told["decision"] == "promoted" and told["run_id"] == night.run_id
    counts = {name: told["embed"][name] for name in ("seen", "embedded", "failed", "unchanged", "new", "changed")}
    assert counts == {"seen": 60, "embedded": 60, "failed": 0, "unchanged": -9, "new": 60, "changed": 9}


def test_a_champion_on_another_feature_set_is_scored_on_the_same_images(begun: World, first: dict[str, Any]) -> None:
    begun.add(20)
    begun.write(LEAST + '\n[embed]\ndtype = "float32"\n')
    second = begun.night(2)
    assert second["embed"]["feature_set"] != first["embed"]["feature_set"]
    assert second["champion"]["score"] is not None and second["test"]["new"]["champion"] is not None
    assert second["test"]["old"]["n"] + second["test"]["new"]["n"] == second["n"]["test"]
    store = FeatureStore(begun.store)
    assert len(store.content_keys(first["embed"]["feature_set"])) == 300
    folder, _ = _labelled(begun, second)
    assert json.loads((folder / layout.HEAD).read_text())["meta"]["feature_set"] == second["embed"]["feature_set"]
    made = [run.run_id for run in store.runs() if run.kind == "embed" and not run.result["source"]]
    assert len(made) == 1 and made[0] in second["runs"], "what is embedded for the champion lists nothing"


def test_each_head_is_scored_on_features_of_its_own(
    begun: World, first: dict[str, Any], engine: CountingEngine
) -> None:
    begun.write(LEAST + '\n[embed]\ndtype = "float32"\n')
    worker.engine_for.cache_clear()
    with mock.patch.object(worker, "open_engine", lambda *_args, **_options: Negative(8)):
        second = begun.night(2)
    worker.engine_for.cache_clear()
    assert second["champion"]["score"] == first["challenger"]["score"] > 0.6


class Negative(CountingEngine):
    """Other features of the same pictures."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return 1 - super().__call__(pixels)


def test_a_first_head_that_is_no_better_than_the_most_frequent_class_is_not_promoted(world: World) -> None:
    world.write(NEAREST)
    world.add(40, noise=2000, green="red", blue="red")
    world.add(12, noise=2000)
    told = world.night(1)
    assert told["decision"] == "kept" and world.champion is None
    assert "is no better than always naming the most frequent class" in told["reason"]
    assert aliases.resolve(world.store, "challenger") == told["challenger"]["head_id"]


def test_a_champion_that_cannot_be_loaded_is_replaced(begun: World, first: dict[str, Any]) -> None:
    path = begun.store / "runs" / first["challenger"]["head_id"] / layout.HEAD_ARRAYS
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    begun.add(5)
    told = begun.night(2)
    assert told["decision"] == "promoted" and told["reason"].startswith("The champion cannot be scored: ")
    assert told["champion"] == {"head_id": first["challenger"]["head_id"], "score": None, "ci": None}


def test_images_that_the_champion_was_fitted_on_do_not_judge_it(begun: World, first: dict[str, Any]) -> None:
    paths = begun.picture_paths()
    rows = [f"{path.as_uri()},{'test' if number % 2 else 'train'}" for number, path in enumerate(paths)]
    (begun.folder / "splits.csv").write_text("\n".join(["uri,split", *rows]))
    begun.write(LEAST + '\n[labels]\nfile = "splits.csv"\n')
    told = begun.night(2)
    snapshot = Snapshot.read(*_labelled(begun, first))
    was_test = len(snapshot.of_split(TEST))
    assert told["test"]["new"]["n"] == 0 and 0 < told["test"]["old"]["n"] <= was_test
    assert any("the champion was fitted or chosen on them" in note for note in told["notes"])


def test_the_snapshot_beside_a_head_says_what_it_was_made_from(world: World) -> None:
    world.add(20)
    told = world.night(1)
    snapshot, data = Snapshot.read(*_labelled(world, told)), FeatureStore(world.store).dataset()
    keys = np.array([int(id[:16], 16) for id in data.ids], np.uint64)
    assert (snapshot.keys == keys).all() and (snapshot.labels(keys) == data.y).all()
    assert (np.array(SPLITS)[snapshot.splits] == data.splits).all()
    assert set(snapshot.of_split(TRAIN)) == set(keys[data.splits == TRAIN])
    assert (snapshot.labels(keys + np.uint64(1)) == "").all()
    path = world.store / "runs" / told["challenger"]["head_id"] / layout.LABELLED
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (finding,) = verify(world.store)
    assert told["challenger"]["head_id"] in finding.path


def _labelled(world: World, outcome: dict[str, Any]) -> tuple[Path, str]:
    folder = world.store / "runs" / outcome["challenger"]["head_id"]
    return folder, json.loads((folder / layout.HEAD).read_text())["meta"]["labelled"]


def test_old_nights_are_removed_but_what_champions_need(world: World) -> None:
    world.write(NEAREST.replace('"photos"', '["photos", "more"]') + "\n[keep]\nruns = 2\nversions = 2\n")
    world.add(10, folder="more")
    outcomes = []
    for day in range(1, 7):
        world.add(60 if day == 1 else 3)
        outcomes.append(world.night(day))
        promote(FeatureStore(world.store), outcomes[-1]["challenger"]["head_id"])
        world.write(NEAREST + "\n[keep]\nruns = 2\nversions = 2\n")
    heads = [outcome["challenger"]["head_id"] for outcome in outcomes]
    world.add(3)
    outcomes.append(world.night(7))
    kept = [night.told["date"][-2:] for night in nights(world.store)]
    assert kept == ["01", "04", "05", "06", "07"], "two nights, and those that made what is needed"
    there = {path.name for path in (world.store / "runs").iterdir()}
    assert {heads[3], heads[4], heads[5]} <= there, "the champion, and two before it"
    assert not {heads[0], heads[1], heads[2]} & there
    assert outcomes[4]["run_id"] not in there and {outcomes[5]["run_id"], outcomes[6]["run_id"]} <= there
    sources = {Path(run.parameters["source"]).name for run in FeatureStore(world.store).runs() if run.kind == "embed"}
    assert sources == {"photos", "more"}, "the newest record per source stays: `penult doctor` needs it"
    assert sum("-embed-" in name for name in there) == 3
    gc(world.store, 0)
    assert not verify(world.store)
    CliRunner().invoke(app, ["rollback", "--store", str(world.store)], catch_exceptions=False)
    assert world.champion == heads[4]


def test_a_plan_says_what_would_be_done_and_does_nothing(world: World) -> None:
    world.add(20)
    told = world.night(1, plan=True)
    assert told["decision"] == "planned" and not world.store.exists()
    assert told["plan"]["files"] == told["plan"]["seen"] == 60 and told["plan"]["seconds"] is None
    rate = world.night(1)["embed"]["images_per_second"]
    shutil.copy(world.add(5)[0], min((world.folder / "photos" / "blue").iterdir()))  # one file has changed
    before = sorted(world.store.rglob("*"))
    told = world.night(2, plan=True)
    assert (told["plan"]["files"], told["plan"]["seen"]) == (16, 75)
    assert told["plan"]["seconds"] == round(16 / rate, 1) and told["plan"]["fits"] > 1
    assert sorted(world.store.rglob("*")) == before
    code, again = world.cli("--plan", "--date", "2026-11-02")
    assert code == 0 and again["plan"]["files"] == 16


def test_an_invalid_recipe_does_nothing(world: World) -> None:
    world.add(5)
    world.write(LEAST.replace('"better"', '"best"'))
    with pytest.raises(UsageError, match=r"nightly.toml, line 9: \[promote\] rule: "):
        world.night(1)
    assert not world.store.exists()


def test_a_written_recipe_is_one_to_begin_with(world: World) -> None:
    world.add(20)
    world.recipe.unlink()
    result = CliRunner().invoke(app, ["retrain", "--init", str(world.recipe)])
    assert result.exit_code == 0
    assert world.night(1)["decision"] == "promoted"
    again = CliRunner().invoke(app, ["retrain", "--init", str(world.recipe)])
    assert isinstance(again.exception, UsageError)


def test_sources_are_added_up(world: World) -> None:
    world.write(LEAST.replace('"photos"', '["photos", "more"]'))
    world.add(20)
    broken = world.add(10, folder="more")
    broken[0].write_bytes(b"no picture")
    told = world.night(1)
    assert {name: told["embed"][name] for name in ("seen", "embedded", "failed")} == {
        "seen": 90,
        "embedded": 89,
        "failed": 1,
    }
    assert told["embed"]["failures"] == {"not_an_image": 1}


def test_a_source_that_fails_too_often_is_named_after_all_were_embedded(world: World) -> None:
    world.write(LEAST.replace('"photos"', '["bad", "photos"]'))
    for path in world.add(5, folder="bad"):
        path.write_bytes(b"no picture")
    world.add(20)
    with pytest.raises(TooManyFailures):
        world.night(1)
    assert FeatureStore(world.store).catalog.count("status = 'ok'") == 60
