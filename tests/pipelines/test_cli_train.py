"""Training and its options from the command line, on a store of real digits with twelve features each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from conftest import CountingEngine, write_picture
from featurestore.errors import PenultError, UsageError
from featurestore.runs import RunRecord
from featurestore.splits import Split
from featurestore.store import FeatureStore
from heads import registry
from heads.comparison import compare as comparison
from heads.comparison.search import from_options
from heads.protocols import table
from pipelines import demo
from pipelines.commands import app
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.embedding.labels import import_labels
from pipelines.options import CompareOptions, EmbedOptions, FitData, ReportOptions
from pipelines.sources import corpus as sources
from pipelines.training import compare_heads, load_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits 5 to 9 of scikit-learn, embedded by block means instead of a CNN."""
    folder = tmp_path_factory.mktemp("train")
    demo.write_digits(folder / "digits")
    for number in range(5):
        shutil.rmtree(folder / "digits" / str(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "open_engine", lambda *_args, **_options: CountingEngine(64))
        worker.engine_for.cache_clear()
        embed(str(folder / "digits"), folder / "store")
    worker.engine_for.cache_clear()
    return folder / "store"


def penult(*arguments: str | Path) -> Result:
    """Run a command in this process; errors are left to be looked at."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def json_of(done: Result) -> Any:
    assert done.exception is None, done.exception
    return json.loads(done.stdout.splitlines()[-1])


def record(store: Path, run_id: str) -> RunRecord:
    return RunRecord.read(FeatureStore(store).run_folder(run_id))


def test_a_dense_head_with_every_option(store: Path, tmp_path: Path) -> None:
    told = json_of(
        penult(
            *("train", "--store", store, "--head", "dense", "--hidden", "16,8", "--dropout", "0.1"),
            *("--optimizer", "rmsprop", "--learning-rate", "1e-2", "--epochs", "5", "--batch-size", "20"),
            *("--patience", "0", "--tensorboard", tmp_path / "logs", "--json"),
        )
    )
    assert told["params"] == {
        "hidden": [16, 8],
        "dropout": 0.1,
        "optimizer": "rmsprop",
        "learning_rate": 0.01,
        "epochs": 5,
        "batch_size": 20,
        "patience": 0,
    }
    assert [epoch["epoch"] for epoch in told["history"]] == [1, 2, 3, 4, 5]
    assert record(store, told["run_id"]).result["history"] == told["history"]
    assert "<h2>Training</h2>" in Path(told["report"]).read_text()
    assert {path.name for path in (tmp_path / "logs" / told["run_id"]).iterdir()} == {"train", "validation", "test"}
    assert "misclassified" not in told


def test_misclassified_pictures_are_listed_where_asked(store: Path) -> None:
    done = penult("train", "--store", store, "--C", "0.5", "--print-misclassified", "--json")
    told = json_of(done)
    rows = told["misclassified"]
    assert told["params"]["C"] == 0.5
    assert len(rows) == round((1 - told["test"]) * told["n"]["test"]) > 10
    assert f"{len(rows)} test images predicted wrong, the surest first:" in done.stderr
    for row in rows:
        assert f"{row['probability']:6.1%}  {row['predicted']}, is {row['true']}  {row['uri']}" in done.stderr
        assert Path(sources.path_of(row["uri"])).parent.name == row["true"] != row["predicted"]
    assert "misclassified" not in record(store, told["run_id"]).result


@pytest.mark.parametrize("command", ["train", "compare"])
def test_shares_are_read_as_percent_too(store: Path, command: str) -> None:
    arguments = (command, "--store", store, "--head" if command == "train" else "--heads", "ncm", "--json")
    percent = json_of(penult(*arguments, "--val", "10%", "--test", "0.2"))
    assert percent["n"]["test"] == pytest.approx(0.2 * 896, abs=45)
    assert percent["n"]["val"] == pytest.approx(0.1 * 896, abs=35)
    asked = record(store, percent["run_id"]).parameters
    assert (asked["val"], asked["test"]) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--val", "10"), "Expected: a share below 1, such as 0.1 or 10%. Got: 10. For 10 percent say 10% or 0.1."),
        (("--test", "a tenth"), "Expected: a share below 1, such as 0.1 or 10%. Got: a tenth."),
        (("--val", "-1"), "Got: -1."),
        (("--val", "nan"), "Got: nan."),
        (("--test", "100%"), "Got: 100%."),
        (("--hidden", "64,x", "--head", "dense"), "Expected: --hidden with widths such as 1024,512. Got: 64,x."),
        (("--hidden", "64"), "Head 'logreg' has no parameter 'hidden': choose from C."),
        (("--head", "ncm", "--C", "1"), "Head 'ncm' has no parameter 'C': it has none."),
        (("--C", "1", "--param", "C=2"), "C is given twice: leave --param C=2 out."),
        (("--head", "dense", "--hidden", "0"), "Parameter hidden: Expected"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_are_wrong(store: Path, options: tuple[str, ...], message: str) -> None:
    done = penult("train", "--store", store, *options)
    assert isinstance(done.exception, UsageError) and done.output == ""
    assert message in str(done.exception)


PROTOCOLS = {
    "dinov2-logreg": ["C"],
    "dinov2-knn": ["k"],
    "big-vision-fewshot": ["shots", "top1_range", "top1_by_seed"],
    "clip-benchmark": ["weight_decay", "mean_per_class_recall"],
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_published_evaluation_is_told_and_recorded_and_keeps_no_head(store: Path, name: str) -> None:
    done = penult("compare", "--store", store, "--protocol", name, "--val", "0.2", "--json")
    told = json_of(done)
    data = load_dataset(FeatureStore(store), FitData(split=Split(0.2)))
    evaluated = table.evaluate(data, name)
    assert told["scores"] == [{"feature_set": data.feature_set, **row} for row in evaluated.rows]
    assert set(told["scores"][0]) - {"feature_set", "top1", "top1_ci"} == set(PROTOCOLS[name])
    assert (told["protocol"], told["n"]["classes"], sum(told["n"].values())) == (name, 5, len(data) + 5)
    assert f"Paper: {told['paper']}" in done.stderr and f"Code: {told['code']}" in done.stderr
    for row in told["scores"]:
        assert f"{row['top1']:.1%}" in done.stderr
    kept = record(store, told["run_id"])
    assert (kept.kind, kept.result, kept.parameters["val"]) == ("protocol", told, 0.2)
    assert not (FeatureStore(store).run_folder(told["run_id"]) / "head.npz").exists()
    best, worst = (f"{pick(row['top1'] for row in told['scores']):.1%}" for pick in (max, min))
    summary = f"{name} {best} on test" if best == worst else f"{name} {worst} to {best} on test"
    assert summary in penult("runs", "--store", store).stderr.replace("\n", " ")


def test_a_published_evaluation_of_several_sets_is_on_the_images_of_both(
    tmp_path: Path, engine: CountingEngine
) -> None:
    for number in range(120):
        write_picture(tmp_path / "corpus" / "ab"[number % 2] / f"{number}.png", number)
    first = embed(str(tmp_path / "corpus"), tmp_path / "store").feature_set
    for number in range(120, 140):
        write_picture(tmp_path / "corpus" / "ab"[number % 2] / f"{number}.png", number)
    second = embed(str(tmp_path / "corpus"), tmp_path / "store", EmbedOptions(dtype="float32")).feature_set
    sets = ("--set", first, "--set", second)
    done = penult("compare", "--store", tmp_path / "store", *sets, "--protocol", "dinov2-knn", "--json")
    told = json_of(done)
    assert [(row["feature_set"], row["k"]) for row in told["scores"]] == [
        (name, k) for name in (first, second) for k in (10, 20)
    ]
    assert told["n"]["train"] + told["n"]["val"] + told["n"]["test"] == 120
    assert told["seconds"].keys() == {first, second} and len(told["notes"]) == 1
    assert first in done.stderr and second in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--C", "1"), "leave --C out."),
        (("--heads", "knn", "--cv", "5", "--csv", "b.csv"), "leave --heads and --cv and --csv out."),
        (("--hidden", "8", "16"), "leave --hidden out."),
        (("--views", "2", "--memory-limit", "1GB"), "leave --memory-limit and --views out."),
        (("--track", "sqlite:///m.db", "--experiment", "x"), "leave --track and --experiment out."),
        (("--val", "0"), "clip-benchmark chooses on validation, and the val split of "),
        (("--protocol", "clip"), "There is no protocol 'clip': choose one of dinov2-logreg, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_published_evaluation_cannot_be_made_with(store: Path, options: tuple[str, ...], message: str) -> None:
    done = penult("compare", "--store", store, "--protocol", "clip-benchmark", *options)
    assert isinstance(done.exception, PenultError) and done.output == ""
    assert message in str(done.exception)


def test_the_help_names_every_protocol() -> None:
    said = " ".join(penult("compare", "--help").output.replace("-\n", "-").split()).replace("- ", "-")
    assert all(name in said for name in table.PROTOCOLS) and table.PROTOCOLS.keys() == PROTOCOLS.keys()


def test_nets_are_listed_as_words(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES["dense"].defaults, "epochs", 2)  # type: ignore[arg-type]
    monkeypatch.setattr(comparison, "CURVE_SECONDS", 0)  # no learning curve, which would fit the winner again and again
    told = json_of(penult("compare", "--store", store, "--hidden", "8", "16,8", "--heads", "dense", "--json"))
    assert sorted(row["params"]["hidden"] for row in told["leaderboard"]) == [[8], [16, 8]]
    for words, message in ((["8"], "Expected: an option. Got: '8'"), (["--hidden", "8", "x"], "widths such as")):
        done = penult("compare", "--store", store, *words)
        assert isinstance(done.exception, UsageError) and message in str(done.exception)


def test_the_gallery_seed_changes_the_pictures_and_nothing_else(store: Path) -> None:
    def told(seed: int) -> dict[str, Any]:
        return compare_heads(
            store, CompareOptions(search=from_options(["ncm"]), report=ReportOptions(gallery_seed=seed))
        )

    def pictures(outcome: dict[str, Any]) -> list[str]:
        html = Path(outcome["report"]).read_text()
        return [part.partition('"')[0] for part in html.split('<figure title="')[1:]]

    first, again, other = told(0), told(0), told(1)
    assert pictures(first) == pictures(again) != pictures(other)
    assert first["winner"]["test"] == other["winner"]["test"]


def test_nohash_files_stay_together(tmp_path: Path, engine: CountingEngine) -> None:
    """retrain.py's rule: what agrees up to ``_nohash_`` is one, within its class; a label file has the last word."""
    corpus = tmp_path / "corpus"
    numbers = iter(range(1000))
    for label in "ab":
        for person in range(20):
            for take in range(3):
                write_picture(corpus / label / f"p{person}_nohash_{take}.png", next(numbers))
        for single in range(10):
            write_picture(corpus / label / f"single_{single}.png", next(numbers))
    groups = {Path(sources.path_of(e.uri)).name: e.group for e in sources.list_source(corpus) if e.label == "b"}
    assert groups["p3_nohash_0.png"] == groups["p3_nohash_2.png"] == "b/p3"
    assert groups["single_0.png"] is None
    embed(str(corpus), tmp_path / "store")

    def places() -> dict[tuple[str, str], set[str]]:
        data = load_dataset(FeatureStore(tmp_path / "store"), FitData(split=Split(0.3, 0.3)))
        found: dict[tuple[str, str], set[str]] = {}
        for uri, label, split in zip(data.uris, data.y, data.splits, strict=True):
            person, mark, _ = Path(sources.path_of(uri)).name.partition("_nohash_")
            if mark:
                found.setdefault((label, person), set()).add(split)
        return found

    split = places()
    assert len(split) == 40 and all(len(of_one) == 1 for of_one in split.values())
    assert set.union(*split.values()) == {"train", "val", "test"}
    assert any(split["a", f"p{i}"] != split["b", f"p{i}"] for i in range(20))

    files = sorted(corpus.glob("*/*_nohash_*"))
    rows = [f"{path},{path.parent.name},one{i % 3}" for i, path in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    import_labels(str(tmp_path / "labels.csv"), tmp_path / "store")
    assert any(len(of_one) > 1 for of_one in places().values())


def test_a_corpus_without_nohash_has_no_groups(corpus: Path) -> None:
    assert {entry.group for entry in sources.list_source(corpus)} == {None}
    assert np.unique([entry.label for entry in sources.list_source(corpus)]).tolist() == ["a", "b", "c"]
