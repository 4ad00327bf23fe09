"""A trial of backbones: what it samples, when it stops, what it says, and that nothing is computed twice."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from command import json_of, penult
from conftest import ROOT, CountingEngine, first_canary, write_picture
from featurestore.errors import UsageError
from featurestore.splits import Split
from featurestore.store import FeatureStore
from heads.evaluation.difference import paired_difference, top1_gain
from pipelines.backbones.table import Tap
from pipelines.embedding import worker
from pipelines.embedding.embed import embed
from pipelines.options import EmbedOptions, TrialOptions
from pipelines.trial import costs, sample
from pipelines.trial.gains import gain_of
from pipelines.trial.sample import FEW, SHARES, Sample
from pipelines.trial.trial import trial
from pipelines.trial.verdict import BETTER, TIED, UNDECIDED, WORSE, Rival, confidence_of, duration, recommend, verdict

LITE = ("efficientnet-lite0", "efficientnet-lite1")
COUNTING = threading.Lock()
BOTH = ("--backbone", LITE[0], "--backbone", LITE[1])


# --- the sample


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """URIs and labels of classes of any size, in any order."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    rows = [(f"file:///{number}/{at}", f"class {number}") for number, size in enumerate(sizes) for at in range(size)]
    rows = draw(st.permutations(rows))
    return [uri for uri, _ in rows], [label for _, label in rows]


def sample_of(uris: list[str], labels: list[str], seed: int) -> Sample:
    """The same in chunks, as a store gives them."""
    half = len(uris) // 2
    return Sample.of(
        *(pa.chunked_array([column[:half], column[half:]], pa.string()) for column in (uris, labels)), seed
    )


@settings(max_examples=40)
@given(corpora(), st.integers(0, 9), st.lists(st.floats(0.001, 1), min_size=2, max_size=5), st.integers(1, 500))
def test_a_larger_share_holds_a_smaller_one_and_takes_its_part_of_each_class(
    corpus: tuple[list[str], list[str]], seed: int, shares: list[float], small: int
) -> None:
    uris, labels = corpus
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SMALL", small)
        found, before = sample_of(uris, labels, seed), np.zeros(len(uris), bool)
        larger = max(1, small / len(uris))
        for share in sorted(shares):
            taken = found.at(share)
            assert (taken | ~before).all()
            before = taken
            for name, size in Counter(labels).items():
                here = int(taken[np.array(labels) == name].sum())
                assert here == min(size, max(FEW, int(np.ceil(size * min(1, share * larger) - 1e-9))))
        again, share = sample_of(uris[::-1], labels[::-1], seed), shares[0]
        assert again.taken(share).to_pylist()[::-1] == found.taken(share).to_pylist()
    assert found.taken(1.0).to_pylist() == uris


def test_another_seed_takes_other_images() -> None:
    uris, labels = [f"file:///{n}" for n in range(30_000)], ["a", "b", "c"] * 10_000
    one, other = (sample_of(uris, labels, seed) for seed in (0, 1))
    assert one.enlarged == 1 and one.at(0.02).sum() == other.at(0.02).sum() == 600
    both = int((one.at(0.02) & other.at(0.02)).sum())
    assert 2 <= both <= 30  # 12 of 600 by chance


def test_looks_take_ever_more_images_and_end_at_the_largest_share() -> None:
    uris, labels = [f"file:///{n}" for n in range(30_000)], ["a", "b", "c"] * 10_000
    of_many = sample_of(uris, labels, 0)
    assert of_many.looks(0.05) == [0.02, 0.03, 0.05] and of_many.looks(0.04) == [0.02, 0.03, 0.04]
    assert of_many.looks(0.01) == [0.01] and of_many.looks(1.0) == [*SHARES, 1.0]
    few = sample_of(uris[:900], labels[:900], 0)  # of 25,000 they would be 500, 750 and 1,250
    assert [int(few.at(share).sum()) for share in few.looks(0.05)] == [501, 750, 900]
    assert few.looks(1.0) == [0.02, 0.03, 0.05]  # there are no more: nothing is looked at twice
    assert sample_of(uris[:15], labels[:15], 0).looks(0.05) == [0.02]


# --- what is decided


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.001, 0.03), BETTER),
        ((-0.03, -0.001), WORSE),
        ((0.0, 0.03), UNDECIDED),
        ((-0.03, 0.0), UNDECIDED),
        ((-0.006, 0.004), UNDECIDED),
        ((-0.004, 0.006), UNDECIDED),
        ((-0.005, 0.005), TIED),
        ((0.001, 0.004), TIED),  # better, but by so little that it does not matter
        ((-0.004, -0.001), TIED),
    ],
)
def test_an_interval_decides(interval: tuple[float, float], expected: str) -> None:
    assert verdict(interval, 0.005) == expected


B = Rival("b", 0.021, (0.012, 0.03), BETTER, 500, 3.42, 1_200_000_000)
C = Rival("c", 0.024, (0.001, 0.05), BETTER, 700, None, 900)
W = Rival("w", -0.02, (-0.03, -0.01), WORSE, 500, 1.0, 1)
T = Rival("t", 0.001, (-0.002, 0.004), TIED, 500, 1.0, 1)
U = Rival("u", 0.01, (-0.01, 0.03), UNDECIDED, 1250, 1.0, 1)


@pytest.mark.parametrize(
    ("rivals", "said"),
    [
        ([B, W, U], "Take b: +2.1 points (+1.2 to +3.0); 3.4 hours and 1.2 GB for the rest of the corpus."),
        ([B, C], "Take c: +2.4 points (+0.1 to +5.0); an unknown time and 900 B for the rest of the corpus."),
        (
            [W, T],
            "Stay with a: w is worse, -2.0 points (-3.0 to -1.0); t is as good, +0.1 points (-0.2 to +0.4).",
        ),
        (
            [W, U],
            "Undecided after 1,250 images: u +1.0 points (-1.0 to +3.0). More labels or a larger --max-share would "
            "tell.",
        ),
    ],
)
def test_one_sentence_says_what_to_do(rivals: list[Rival], said: str) -> None:
    assert recommend("a", rivals) == said


def test_times_in_words() -> None:
    assert [duration(hours) for hours in (30.25, 1.0, 0.999, 1 / 60, 0.016, 0.0)] == [
        "30.2 hours",
        "1.0 hours",
        "59.9 minutes",
        "1.0 minutes",
        "58 seconds",
        "0 seconds",
    ]


@pytest.mark.parametrize(("looks", "rivals"), [(3, 1), (3, 3), (9, 1)])
def test_looking_again_and_again_is_wrong_as_rarely_as_said(looks: int, rivals: int) -> None:
    """Backbones that are equally good, at nested looks; plain 95 % intervals are wrong far more often."""
    rng, sizes = np.random.default_rng(looks + rivals), np.round(500 * 1.4 ** np.arange(looks)).astype(int)
    wrong, plain = 0, 0
    trials = 1500
    for _ in range(trials):
        old = rng.random(sizes[-1]) < 0.9
        news = [np.where(rng.random(sizes[-1]) < 0.15, rng.random(sizes[-1]) < 0.9, old) for _ in range(rivals)]
        found = [
            [top1_gain(np.ones(n, bool), new[:n], old[:n], None, confidence)[1] for new in news for n in sizes]
            for confidence in (confidence_of(looks, rivals), 0.95)
        ]
        wrong += any(verdict(interval, 0) in (BETTER, WORSE) for interval in found[0])
        plain += any(verdict(interval, 0) in (BETTER, WORSE) for interval in found[1])
    assert wrong / trials < 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
    assert plain / trials > 0.08


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(50), 4).astype(str)])
def test_a_gain_at_95_percent_is_the_paired_difference(groups: np.ndarray | None) -> None:
    rng = np.random.default_rng(3)
    y = rng.choice(["a", "b", "c"], 200)
    new, old = (np.where(rng.random(200) < wrong, "a", y) for wrong in (0.2, 0.4))
    known = paired_difference("top1", y, new, old, groups)
    assert top1_gain(y, new, old, groups) == (pytest.approx(known.value), pytest.approx(known.ci))
    wide = top1_gain(y, new, old, groups, 0.99)[1]
    assert wide[0] < known.ci[0] < known.ci[1] < wide[1]
    value, (low, high) = gain_of(y, new, old, groups, 0.99)  # of a trial, for other heads too
    assert value == pytest.approx(known.value) and (low - value, high - value) == pytest.approx(
        1.2 * (np.array(wide) - value)
    )
    assert gain_of(y[:4], y[:4], y[:4][::-1], None, 0.9999999)[1] == (-1.0, 1.0)
    same = top1_gain(y, new, new, groups, 0.99)[1]
    assert same[0] < 0 < same[1] and same[1] == pytest.approx(-same[0])


# --- the whole way


class Seeing(CountingEngine):
    """Tells the classes of ``coloured`` apart as well as its backbone may: by the share of images that it sees right.

    Which it sees wrong depends on the image alone. Counts the images by their backbone.
    """

    def __init__(self, name: str, right: float, counts: Counter[str]) -> None:
        super().__init__(batch_size=8)
        self.name, self.right, self.counts = name, right, counts

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        vectors = super().__call__(pixels)
        if pixels[0].tobytes() in first_canary(pixels.shape[1]):
            return vectors
        with COUNTING:
            self.counts[self.name] += len(pixels)
        for vector, one in zip(vectors, pixels, strict=True):
            own = np.random.default_rng(list(one[::37, ::37].tobytes()))
            if own.random() > self.right:
                vector[:] = own.random(self.width)
        return vectors


@pytest.fixture
def sees(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put engines in the CNNs' place that see this share of images right; return how many each was shown."""

    def set_shares(**shares: float) -> Counter[str]:
        counts = Counter[str]()

        def open_engine(tap: Tap, *_: Any, **__: Any) -> Seeing:
            return Seeing(tap.backbone, shares[tap.backbone.removeprefix("efficientnet-")], counts)

        monkeypatch.setattr(worker, "open_engine", open_engine)
        worker.engine_for.cache_clear()
        return counts

    yield set_shares
    worker.engine_for.cache_clear()


def coloured(folder: Path, n: int, classes: int = 3) -> Path:
    """Images of one colour per class, each with some noise of its own."""
    for number in range(n):
        rng, kind = np.random.default_rng(number), number % classes
        pixels = rng.integers(0, 60, (16, 16, 3), np.uint8)
        pixels[..., kind] += 120
        path = folder / "abc"[kind] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a corpus of 5,000 images were a large one: the looks take 100, 150 and 252 images."""
    monkeypatch.setattr(sample, "SMALL", 5000)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


def tried(corpus: Path, place: Path, *arguments: object) -> dict[str, Any]:
    """The object that ``penult trial`` prints."""
    words = ["trial", str(corpus), "--store", str(place), "--json", *map(str, arguments)]
    return dict(json_of(penult(*words)))


def test_the_better_backbone_is_taken_and_the_rest_is_all_that_is_left(
    tmp_path: Path, place: Path, sees: Any, small: None
) -> None:
    counts = sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 300)
    told = tried(corpus, place, *BOTH)
    first, second = told["backbones"]
    assert told["recommendation"].startswith("Take efficientnet-lite1: +")
    assert (told["stopped"], told["looks"], told["planned_looks"]) == ("decided", 1, 3)
    assert told["confidence"] == pytest.approx(1 - 0.05 / 3)
    assert (first["embedded"], second["embedded"]) == (102, 102) == (counts[LITE[0]], counts[LITE[1]])
    assert second["accuracy"] - first["accuracy"] == pytest.approx(second["gain"]) and second["gain"] > 0.15
    assert second["gain_ci"][0] > 0 and second["verdict"] == "better" and "gain" not in first
    assert (first["left"], second["left"]) == (198, 198)
    assert (told["labelled"], told["unlabelled"]) == (300, 0)

    # the source is in the store as after an embed, and nothing of it was taken for removed
    opened = FeatureStore(place)
    assert opened.sources() == {corpus.as_uri(): (300, 0)} and opened.count_labels("default") == 300
    again = tried(corpus, place, *BOTH)
    assert counts == {LITE[0]: 102, LITE[1]: 102}
    assert [row["embedded"] for row in again["backbones"]] == [0, 0]
    assert again["backbones"][1]["gain_ci"] == second["gain_ci"]
    assert again["backbones"][0]["images_per_second"] > 0  # as its last run had it
    done = json_of(penult("embed", corpus, "--backbone", LITE[1], "--store", place, "--json"))
    assert (done["embedded"], done["unchanged"], done["removed"], done["labels_changed"]) == (198, 102, 0, 0)
    assert counts == {LITE[0]: 102, LITE[1]: 300}

    runs = [record for record in opened.runs() if record.kind == "trial"]
    assert [record.result["run_id"] for record in runs] == [told["run_id"], again["run_id"]]
    assert runs[0].result["recommendation"] == told["recommendation"]
    assert runs[0].parameters["backbones"] == list(LITE) and runs[0].parameters["source"] == str(corpus)
    rows = json_of(penult("runs", "--store", place, "--json"))
    assert told["recommendation"] in [row["outcome"] for row in rows]
    assert penult("verify", "--store", place).returncode == 0


def test_in_a_bucket_too(tmp_path: Path, bucket_place: PurePath, sees: Any, small: None) -> None:
    counts = sees(lite0=0.6, lite1=1.0)
    told = trial(str(coloured(tmp_path / "corpus", 120)), bucket_place, TrialOptions(LITE))
    assert told["recommendation"].startswith("Take efficientnet-lite1: +")
    assert counts == {LITE[0]: 102, LITE[1]: 102} and [row["left"] for row in told["backbones"]] == [18, 18]


def test_what_embedding_the_rest_costs(tmp_path: Path, place: Path, sees: Any, small: None) -> None:
    sees(lite0=0.6, lite1=1.0)
    told = tried(coloured(tmp_path / "corpus", 300), place, *BOTH)
    for row in told["backbones"]:
        runs = [r.result for r in FeatureStore(place).runs() if r.kind == "embed" and r.result["embedded"]]
        (run,) = [r for r in runs if r["feature_set"] == row["feature_set"]]
        seconds = run["seconds"]["total"] - run["seconds"]["plan"] - run["seconds"]["commit"]
        assert row["images_per_second"] == pytest.approx(102 / seconds, abs=0.06)
        assert row["hours"] == pytest.approx(198 * seconds / 102 / 3600, abs=6e-5)
        table = place / "features" / f"{row['feature_set']}.lance"
        size = sum(path.stat().st_size for path in table.rglob("*") if path.is_file())
        assert row["bytes"] == pytest.approx(198 * size / 102, abs=1)


def test_those_that_are_alike_are_tied_and_one_stays(tmp_path: Path, place: Path, sees: Any, small: None) -> None:
    sees(lite0=1.0, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 300)
    told = tried(corpus, place, *BOTH, "--margin", 5)
    assert told["recommendation"].startswith("Stay with efficientnet-lite0: efficientnet-lite1 is as good, ")
    assert (told["stopped"], told["looks"]) == ("decided", 1)
    assert tried(corpus, place, *BOTH, "--margin", 3.5)["looks"] == 2  # so narrow an interval takes more images
    end = tried(corpus, place, *BOTH, "--margin", 1)
    assert (end["stopped"], end["looks"]) == ("max_share", 3)
    assert end["recommendation"].startswith("Undecided after ")
    assert tried(corpus, place, *BOTH, "--margin", 1, "--max-share", "2%")["planned_looks"] == 1


def test_a_rival_that_is_decided_is_embedded_no_further(tmp_path: Path, place: Path, sees: Any, small: None) -> None:
    counts = sees(lite0=1.0, lite1=0.3, lite2=0.97)
    corpus = coloured(tmp_path / "corpus", 300)
    told = tried(corpus, place, *BOTH, "--backbone", "efficientnet-lite2")
    first, bad, close = told["backbones"]
    assert told["confidence"] == pytest.approx(1 - 0.05 / 6)
    assert (bad["verdict"], close["verdict"]) == ("worse", "undecided")
    assert counts == {LITE[0]: 252, LITE[1]: 102, "efficientnet-lite2": 252}
    assert bad["images"] < close["images"] == first["images"] and (bad["share"], close["share"]) == (0.02, 0.05)
    assert (bad["left"], close["left"]) == (198, 48)


def test_a_budget_ends_it_before_the_next_look(tmp_path: Path, place: Path, sees: Any, small: None) -> None:
    counts = sees(lite0=1.0, lite1=0.97)
    corpus = coloured(tmp_path / "corpus", 300)
    told = tried(corpus, place, *BOTH, "--budget", "0.001s")
    assert (told["stopped"], told["looks"], told["planned_looks"]) == ("budget", 1, 3)
    assert counts == {LITE[0]: 102, LITE[1]: 102} and told["seconds"] > 0.001
    assert tried(corpus, place, *BOTH, "--budget", "10min")["looks"] == 3  # what is there costs nothing


def test_images_of_test_are_not_looked_at(tmp_path: Path, place: Path, sees: Any) -> None:
    """A given test split is not even embedded."""
    counts = sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 200)
    rows = [
        f"{path},{path.parent.name},{'test' if number % 4 == 0 else 'train'}"
        for number, path in enumerate(sorted(corpus.rglob("*.png")))
    ]
    manifest = tmp_path / "corpus.csv"
    manifest.write_text("path,label,split\n" + "\n".join(rows))
    told = tried(manifest, place, *BOTH)
    assert told["labelled"] == 150 == counts[LITE[0]] == told["backbones"][0]["images"]

    worker.engine_for.cache_clear()
    other = tried(corpus, tmp_path / "other", *BOTH, "--test", "40%", "--split-seed", 7)
    placed = FeatureStore(tmp_path / "other").dataset(split=Split(0.15, 0.4, 7)).splits
    assert other["backbones"][0]["images"] == int(np.sum(placed != "test")) < 140


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path, place: Path, sees: Any) -> None:
    counts = sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 120)
    paths = sorted(corpus.rglob("*.png"))
    lines = [f"{path},{path.parent.name if number % 2 else ''}" for number, path in enumerate(paths)]
    manifest = tmp_path / "corpus.csv"
    manifest.write_text("path,label\n" + "\n".join(lines))
    words = ("trial", manifest, "--store", place, *BOTH, "--json")
    done = penult(*words)
    told = json_of(done)
    assert (told["labelled"], told["unlabelled"]) == (
        60,
        60,
    ) and "60 images have no label and are left out." in done.stderr
    assert counts == {LITE[0]: 60, LITE[1]: 60} and told["backbones"][0]["left"] == 60


def test_labels_that_people_gave_stay_their_own(tmp_path: Path, place: Path, sees: Any) -> None:
    """A label set of the store: the names of the folders do not get into it, and its images alone are sampled."""
    counts = sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 120)
    paths = sorted(corpus.rglob("*.png"))[:80]
    (tmp_path / "kinds.csv").write_text("path,label\n" + "\n".join(f"{p},kind {p.parent.name}" for p in paths))
    FeatureStore.create(place)
    assert penult("label", tmp_path / "kinds.csv", "--label-set", "kinds", "--store", place).returncode == 0
    told = tried(corpus, place, *BOTH, "--label-set", "kinds")
    assert (told["labelled"], told["unlabelled"]) == (80, 40) and counts[LITE[0]] == 80
    opened = FeatureStore(place)
    kinds = set(opened.label_rows("kinds").column("label").to_pylist())
    assert kinds == {"kind a", "kind b"} and opened.count_labels("default") == 120
    sourced = tried(corpus, place, *BOTH, "--label-set", "second")
    assert sourced["labelled"] == 120 and FeatureStore(place).count_labels("second") == 120


def test_the_default_set_stays_what_it_was(tmp_path: Path, place: Path, sees: Any, small: None) -> None:
    """A rival's set holds a sample: no head may be trained on it unasked."""
    sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 120)
    first, second = tried(corpus, place, *BOTH)["backbones"]
    assert FeatureStore(place).resolve() == first["feature_set"]
    whole = embed(str(corpus), place, EmbedOptions(LITE[1])).feature_set
    assert whole == second["feature_set"]
    tried(corpus, place, *BOTH)
    assert FeatureStore(place).resolve() == whole


def test_files_that_cannot_be_read_end_it_as_they_end_an_embed(tmp_path: Path, place: Path, sees: Any) -> None:
    counts = sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 120)
    for path in sorted(corpus.rglob("*.png"))[:12]:
        path.write_bytes(b"")
    words = ("trial", corpus, "--store", place, *BOTH)
    ended = penult(*words)
    assert ended.returncode == 3 and "12 of 120 files failed" in ended.stderr
    assert counts == {LITE[0]: 108}
    told = json_of(penult(*words, "--max-failure-rate", "0.2", "--json"))
    assert counts == {LITE[0]: 108, LITE[1]: 108} and told["backbones"][1]["images"] < 108


def test_a_source_that_lacks_most_images_ends_it(tmp_path: Path, place: Path, sees: Any) -> None:
    sees(lite0=0.6, lite1=1.0)
    corpus = coloured(tmp_path / "corpus", 180)
    tried(corpus, place, *BOTH)
    for path in sorted(corpus.rglob("*.png"))[:100]:
        path.unlink()
    words = ("trial", corpus, "--store", place, *BOTH)
    ended = penult(*words)
    assert ended.returncode == 3 and "100 of the 180 images" in ended.stderr
    told = json_of(penult(*words, "--accept-removed", "--json"))
    assert told["labelled"] == 80 and FeatureStore(place).sources()[corpus.as_uri()] == (80, 100)


@pytest.mark.parametrize(
    ("point", "when", "nth", "kept"),
    [
        ("featurestore.store:FeatureStore.commit", "before", 1, 0),  # of the listing
        ("featurestore.journal:Staging.finish", "before", 1, 0),
        ("featurestore.journal:Staging.finish", "after", 1, 120),
        ("featurestore.store:FeatureStore.commit", "after", 2, 120),
        ("featurestore.journal:Staging.finish", "after", 2, 240),
        ("pipelines.trial.trial:out_of_fold", "before", 1, 240),
    ],
)
def test_killed_it_goes_on_and_embeds_nothing_twice(
    tmp_path: Path, place: Path, point: str, when: str, nth: int, kept: int
) -> None:
    """By SIGKILL; then the same command."""
    corpus = tmp_path / "corpus"
    for number in range(120):
        write_picture(corpus / "abc"[number % 3] / f"{number:03}.png", number)
    words = ["trial", str(corpus), "--store", str(place), *BOTH]
    child = [sys.executable, "-m", "faults.child", "--fake"]
    common: dict[str, Any] = {"cwd": ROOT / "tests", "capture_output": True, "text": True, "timeout": 120}
    killed = subprocess.run([*child, "--at", point, when, str(nth), "SIGKILL", *words], **common)
    assert killed.returncode == -9, killed.stderr
    ended = subprocess.run([*child, *words, "--json"], **common)
    told = json.loads(ended.stdout.splitlines()[-1])
    assert [row["left"] for row in told["backbones"]] == [0, 0]
    assert sum(row["embedded"] for row in told["backbones"]) == 240 - kept and embedded(place) == 240


def embedded(place: Path) -> int:
    """How many vectors the store holds, each content and set once."""
    opened = FeatureStore(place)
    for name in opened.sets():
        keys = opened.content_keys(name)
        assert len(np.unique(keys)) == len(keys)
    return sum(len(opened.content_keys(name)) for name in opened.sets())


# --- what cannot be tried


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Expected: at least two --backbone, the one in use first. Got: none."),
        (("--backbone", "a"), 2, "Expected: at least two --backbone, the one in use first. Got: a."),
        ((*BOTH, "--backbone", LITE[0]), 2, "Expected: each --backbone once. Got: efficientnet-lite0 twice."),
        (("--backbone", LITE[0], "--backbone", "efficientnet-lite9"), 2, "There is no backbone 'efficientnet-lite9'"),
        ((*BOTH, "--max-share", "0"), 2, "Expected: --max-share, a share above 0. Got: 0.0."),
        ((*BOTH, "--margin", "-1"), 2, "Expected: --margin in points, a number of at least 0. Got: -1.0."),
        ((*BOTH, "--seed", "-1"), 2, "Expected: --seed, a whole number"),
        ((*BOTH, "--max-failure-rate", "2"), 2, "Expected: --max-failure-rate, a share from 0 to 1. Got: 2.0."),
        ((*BOTH, "--val", "60%", "--test", "60%"), 2, "Expected: shares for val and test that leave a train split."),
        ((*BOTH, "--dtype", "int8"), 2, "Expected: --dtype float16 or float32. Got: 'int8'."),
    ],
)
def test_what_makes_no_trial_is_said_before_anything_is_done(
    tmp_path: Path, place: Path, engine: CountingEngine, arguments: tuple[str, ...], code: int, said: str
) -> None:
    corpus = coloured(tmp_path / "corpus", 3)
    ended = penult("trial", corpus, "--store", place, *arguments)
    assert ended.returncode == code and said in ended.stderr and "Traceback" not in ended.stderr
    assert engine.images == 0 and not place.exists()


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([""] * 60, "Got: 0 of 60 images, of 0 classes: "),
        (["a"] * 60, "Got: 60 of 60 images, of 1 class: "),
        (["a", "b"] * 14 + [""] * 32, "Got: 28 of 60 images, of 2 classes: "),
    ],
)
def test_labels_that_do_not_suffice_are_said_before_anything_is_embedded(
    tmp_path: Path, place: Path, engine: CountingEngine, labels: list[str], got: str
) -> None:
    lines = [f"{write_picture(tmp_path / f'{n}.png', n)},{label}" for n, label in enumerate(labels)]
    (tmp_path / "corpus.csv").write_text("path,label\n" + "\n".join(lines))
    ended = penult("trial", tmp_path / "corpus.csv", "--store", place, *BOTH)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert got in ended.stderr and "`penult label FILE`" in ended.stderr and engine.images == 0


def test_nothing_there_and_nothing_readable(tmp_path: Path, place: Path, engine: CountingEngine) -> None:
    ended = penult("trial", tmp_path / "nothing", "--store", place, *BOTH)
    assert ended.returncode == 1 and "There is no " in ended.stderr and not place.exists()
    for number in range(60):
        path = tmp_path / "corpus" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not an image")
    ended = penult("trial", tmp_path / "corpus", "--store", place, *BOTH, "--max-failure-rate", "1")
    assert ended.returncode == 1 and "No labelled image has features" in ended.stderr


def test_a_corpus_that_lies_elsewhere_gives_the_same_sample(
    tmp_path: Path, place: Path, sees: Any, small: None
) -> None:
    counts = sees(lite0=1.0, lite1=0.6)
    here = coloured(tmp_path / "here", 300)
    there = shutil.copytree(here, tmp_path / "another" / "folder")
    one, other = (tried(corpus, place, *BOTH) for corpus in (here, there))
    assert one["backbones"][1]["gain_ci"] == other["backbones"][1]["gain_ci"]
    assert counts == {LITE[0]: 102, LITE[1]: 102}  # the contents are those of the first trial


def test_from_python_with_progress(tmp_path: Path, place: Path, sees: Any, small: None) -> None:
    sees(lite0=1.0, lite1=0.97)
    corpus = coloured(tmp_path / "corpus", 300)
    seen: list[tuple[int, int]] = []
    lines: list[str] = []
    told = trial(str(corpus), place, TrialOptions(LITE), lambda *now: seen.append(now), lines.append)
    ends = [total for _, total in dict.fromkeys(seen)]
    assert sorted(set(ends)) == [204, 300, 504] and all(0 <= done <= total for done, total in seen)
    assert {(total, total) for total in (204, 300, 504)} <= set(seen)
    assert lines[0] == "300 labelled images outside the given test split; looks at 102, 150, 252 of them."
    assert "is taken 16.7 times" in lines[1]
    assert [re.match(r"Look \d of 3, \d+ images: efficientnet-lite1 ", line) is not None for line in lines[2:]] == [
        True
    ] * 3
    assert told["looks"] == 3
    with pytest.raises(UsageError):
        trial(str(corpus), place, TrialOptions(LITE[:1]))


def test_the_pace_leaves_listing_and_commits_out() -> None:
    pace = costs.Pace()
    assert pace.per_second is None and costs.cost(pace, 10, 3.0) == {
        "images_per_second": None,
        "left": 10,
        "hours": None,
        "bytes": 30,
    }
    pace.add({"embedded": 30, "seconds": {"total": 9.0, "plan": 2.0, "commit": 1.0}})
    pace.add({"embedded": 70, "seconds": {"total": 5.0, "plan": 0.5, "commit": 0.5}})
    assert costs.cost(pace, 36_000, 2.5) == {"images_per_second": 10.0, "left": 36_000, "hours": 1.0, "bytes": 90_000}


# --- real networks on real images


def test_a_real_network_beats_a_random_one(tmp_path: Path, place: Path) -> None:
    """ImageNet's weights against a small network of seeded random ones, on handwritten digits."""
    zoo, digits = ROOT / "tests" / "golden" / "models", load_digits()
    for number in range(300):
        pixels = np.kron(np.round(digits.images[number] * 15.9).astype(np.uint8), np.ones((4, 4), np.uint8))
        path = tmp_path / "digits" / str(digits.target[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    spec = tmp_path / "spec.toml"
    spec.write_text('size = 64\nlayout = "NHWC"\nscale = 0.00392\npooling = "avg"\n')
    added = penult("backbones", "add", "own", zoo / "net.onnx", "--spec", spec, "--unproved", "--store", place)
    assert added.returncode == 0, added.stderr
    worker.engine_for.cache_clear()
    done = penult("trial", tmp_path / "digits", "--store", place, "--backbone", "own", "--backbone", LITE[0], "--json")
    told = json_of(done)
    assert told["recommendation"].startswith(f"Take {LITE[0]}: +") and told["stopped"] == "decided"
    assert told["backbones"][1]["accuracy"] > 0.8
    assert done.stderr.splitlines()[-2] == told["recommendation"]
    worker.engine_for.cache_clear()
