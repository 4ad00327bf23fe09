"""Recipes: what is written arrives in the options of the jobs, and what is wrong is named with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import UsageError
from heads.comparison import search
from heads.comparison.space import Search
from pipelines.options import CompareOptions, EmbedOptions, TrackOptions
from pipelines.retraining import options as own
from pipelines.retraining import recipe as recipes
from pipelines.retraining.key_lines import MAX_LINES, key_lines
from pipelines.retraining.recipe import Recipe, read_recipe, template
from pipelines.retraining.tables import TABLES

DAY = date(2026, 11, 1)
LEAST = """
[source]
location = "photos"
[compare]
heads = ["ncm", "logreg"]
[promote]
rule = "better"
"""
Written = st.SearchStrategy[tuple[str, Any]]  # a value as TOML, and as the field holds it
CHECKED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML wants escaped


def one_of(*values: Any) -> Written:
    return st.sampled_from(values).map(lambda value: (toml(value), value))


def whole(low: int, high: int) -> Written:
    return st.integers(low, high).map(lambda number: (str(number), number))


def number(low: float, high: float) -> Written:
    return st.floats(low, high).map(lambda value: (repr(value), value)) | one_of(round(high)).map(
        lambda pair: (pair[0], float(pair[1]))
    )


def texts(made: Any = tuple) -> Written:
    return st.lists(st.text(min_size=1)).map(lambda value: (toml(value), made(value))) | one_of("x").map(
        lambda pair: (pair[0], made([pair[1]]))
    )


TEXT = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1).map(
    lambda t: (toml(t), t)
)
TRUE, FALSE = one_of(True), one_of(False)
SHARE = number(0, 1)
TIME = st.sampled_from([('"5m"', 300.0), ("300", 300.0), ('"1.5h"', 5400.0), ("0.5", 0.5)])
LEVEL = one_of("off", "warn", "block")
# Every key of every table but for those of a search: where in the recipe it arrives, and values.
KEYS: dict[str, tuple[str, Written]] = {
    "source.max_failure_rate": ("source.max_failure_rate", SHARE),
    "labels.file": ("labels.file", one_of("/a.csv").map(lambda pair: (pair[0], ("/a.csv",)))),
    "labels.label_set": ("labels.label_set", one_of("second", "a-b.c")),
    "embed.backbone": ("embed.backbone", one_of("MobileNet", "ft:abc")),
    "embed.weights": ("embed.weights", one_of("imagenet", "/w.h5")),
    "embed.layer": ("embed.layer", TEXT),
    "embed.pooling": ("embed.pooling", one_of("avg", "max", "none")),
    "embed.input_size": ("embed.input_size", whole(32, 2048)),
    "embed.engine": ("embed.engine.engine", one_of("openvino", "tensorflow", "onnxruntime")),
    "embed.precision": ("embed.engine.precision", one_of("f32", "bf16")),
    "embed.batch_size": ("embed.engine.batch_size", whole(1, 8)),
    "embed.dtype": ("embed.dtype", one_of("float16", "float32")),
    "embed.shard_images": ("embed.shard_images", whole(1, 2**20)),
    "embed.retry_failed": ("embed.retry_failed", TRUE | FALSE),
    "embed.split_folders": ("embed.split_folders", TRUE | FALSE),
    "embed.image_column": ("embed.image_column", TEXT),
    "embed.label_column": ("embed.label_column", TEXT),
    "embed.max_removed": ("embed.max_removed", SHARE),
    "embed.accept_removed": ("embed.accept_removed", TRUE | FALSE),
    "embed.runner": ("embed.runner", one_of("FnApiRunner", "fnapi", "FlinkRunner", "SparkRunner", "DataflowRunner")),
    "embed.runner_arguments": ("embed.runner_arguments", texts()),
    "embed.squash": ("embed.crop", st.just(("true", "squash")) | st.just(("false", "squash"))),
    "embed.center_crop": ("embed.crop", st.just(("true", "center"))),
    "embed.pad": ("embed.crop", st.just(("true", "pad"))),
    "compare.fewshot_k": (
        "compare.evaluation.fewshot",
        st.sampled_from([('"1,5"', (1, 5)), ("[3]", (3,)), ("7", (7,))]),
    ),
    "compare.prefer": ("compare.evaluation.prefer", one_of("best", "simple")),
    "compare.cv": ("compare.evaluation.folds", whole(2, 100) | one_of(0)),
    "compare.seeds": ("compare.evaluation.seeds", whole(1, 100)),
    "compare.budget": ("compare.evaluation.budget", TIME),
    "compare.memory_limit": ("compare.memory_limit", whole(1, 2**60) | st.just(('"2GiB"', 2**31))),
    "compare.gallery_seed": ("compare.report.gallery_seed", whole(0, 2**63 - 1)),
    "split.val": ("compare.data.split.val", number(0, 0.4) | st.just(('"20%"', 0.2))),
    "split.test": ("compare.data.split.test", number(0, 0.4) | st.just(('"5%"', 0.05))),
    "split.seed": ("compare.data.split.seed", whole(0, 2**63 - 1)),
    **{f"checks.{name}": (f"checks.{name}", LEVEL) for name in own.CHECKS},
    **{
        f"checks.{name}_limit": (f"checks.{name}_limit", SHARE)
        for name in ("failures", "flips", "copies", "test_shrank")
    },
    **{
        f"checks.{name}_limit": (f"checks.{name}_limit", whole(0, 10**9))
        for name in ("small_classes", "appeared", "vanished")
    },
    "checks.drift_limit": ("checks.drift_limit", number(0.5, 1)),
    "checks.copies_cosine": ("checks.copies_cosine", SHARE),
    "promote.rule": ("promote.rule", one_of("better", "not-worse")),
    "promote.metric": ("promote.metric", one_of("top1", "macro_f1", "mean_recall")),
    "promote.margin": ("promote.margin", SHARE),
    "promote.per_class_floor": ("promote.per_class_floor", SHARE),
    "promote.min_test_images": ("promote.min_test_images", whole(1, 10**9)),
    "publish.to": ("publish.to", one_of("/out")),
    "publish.format": ("publish.format", one_of("keras", "onnx")),
    "notify.on": ("notify.on", st.sampled_from([('"kept"', ("kept",)), ('["failed", "kept"]', ("failed", "kept"))])),
    "notify.command": ("notify.command", TEXT),
    "notify.url": ("notify.url", one_of("https://example.org/x")),
    "notify.timeout": ("notify.timeout", TIME),
    "notify.attempts": ("notify.attempts", whole(1, 100)),
    "track.uri": ("track.uri", TEXT),
    "track.experiment": ("track.experiment", TEXT),
    "keep.runs": ("keep.runs", whole(1, 100_000)),
    "keep.versions": ("keep.versions", whole(1, 100_000)),
    "keep.exports": ("keep.exports", whole(1, 100_000)),
}
SEARCH = {"compare.heads", "compare.C", "compare.hidden", "compare.class_weight", "compare.search"}
CROPS = {"embed.squash", "embed.center_crop", "embed.pad"}
SIZED = {"embed.backbone", "embed.input_size"}  # a batch has to fit


def listed(table: str) -> list[str]:
    return [f"{table}.{key}" for key in TABLES[table].keys]


def test_every_key_is_tried_here() -> None:
    assert {key for table in TABLES for key in listed(table)} == KEYS.keys() | SEARCH | {"source.location"}


# -- recipes written at random


@st.composite
def searches(draw: st.DrawFn) -> tuple[dict[str, str], Search]:
    """Keys of a search, each as a text or a list, and what a caller would construct."""
    if draw(st.integers(0, 4)) == 0:
        return {"compare.search": '"search.toml"'}, Search({"knn": ({"k": 3},)}, (None, "balanced"))
    names = draw(st.none() | st.permutations(["ncm", "logreg", "dense"]))
    C = draw(st.none() | st.lists(st.floats(1e-3, 1e3) | st.integers(1, 9), min_size=1, max_size=3))
    hidden = draw(st.none() | st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=2), min_size=1, max_size=2))
    weights = draw(st.none() | st.lists(st.sampled_from(["none", "balanced"]), min_size=1, max_size=2))

    def spelled(values: list[Any]) -> str:
        return draw(st.sampled_from([toml(values), toml(",".join(map(str, values)))]))

    given = {key: spelled(values) for key, values in (("heads", names), ("C", C), ("class_weight", weights)) if values}
    if hidden:
        nets = [",".join(map(str, net)) for net in hidden]
        given["hidden"] = draw(st.sampled_from([toml(hidden), toml(nets), toml(" ".join(nets))]))
    expected = search.from_options(
        names, C and [float(c) for c in C], hidden, [None if w == "none" else w for w in weights or ()]
    )
    return {f"compare.{key}": value for key, value in given.items()}, expected


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, Any]]:
    """Some keys with values as TOML, and values by where they arrive."""
    chosen = draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, max_size=12))
    chosen = [key for key in chosen if key not in CROPS] + [key for key in chosen if key in CROPS][:1]
    if SIZED & set(chosen):
        chosen = [key for key in chosen if key != "embed.batch_size"]
    given, arrived = {"source.location": '"/photos"'}, {"source.location": ("/photos",)}
    for key in chosen:
        path, values = KEYS[key]
        given[key], arrived[path] = draw(values)
    keys, arrived["compare.search"] = draw(searches())
    return given | keys, arrived


NOISE = ["", "# shard_images = 5", "\t# [embed]", '# """', "  ", "#'''"]


def statement(draw: st.DrawFn, name: str, value: str) -> str:
    """A key and its value, perhaps over several lines; the name is on the first."""
    quoted = draw(st.sampled_from(["{}", '"{}"', "'{}'", " {}", '\t"{}" '])).format(name)
    if value.startswith('["') and draw(st.booleans()):
        items = ",\n# [embed]\n".join(toml(item) for item in json.loads(value))
        value = f"[ # a list\n{items},\n]"
    elif re.fullmatch(r'"\w+"', value) and draw(st.booleans()):
        value = f'"""\\\n  \\\n  {value[1:-1]}"""'
    return f"{quoted}{draw(st.sampled_from(['=', ' = ']))}{value}{draw(st.sampled_from(['', ' # ] = [']))}"


def layout(draw: st.DrawFn, keys: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """A recipe with these keys in any order and spelling, and the line of each."""
    tables: dict[str, dict[str, str]] = {}
    for key in draw(st.permutations(list(keys))):
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = keys[key]
    lines: list[str] = []
    at: dict[str, int] = {}

    def put(text: str, *names: str) -> None:
        lines.extend(draw(st.lists(st.sampled_from(NOISE), max_size=2)))
        at.update(dict.fromkeys(names, len(lines) + 1))
        lines.extend(text.split("\n"))

    if draw(st.booleans()):
        put('name = """a\\\n  [embed] \\\nshard_images = 7"""')
    form = {table: draw(st.sampled_from(["header", "header", "dotted", "inline"])) for table in tables}
    for table, values in sorted(tables.items(), key=lambda item: form[item[0]] == "header"):
        if form[table] == "inline":
            inside = ", ".join(f"{key} = {value}" for key, value in values.items())
            put(f"{table} = {{{inside}}}", *(f"{table}.{key}" for key in values))
        elif form[table] == "header":
            put(draw(st.sampled_from(["[{}]", '[ "{}" ] # [x]', " [{}]"])).format(table))
        for key, value in values.items():
            if form[table] == "header":
                put(statement(draw, key, value), f"{table}.{key}")
            elif form[table] == "dotted":
                put(
                    table + draw(st.sampled_from([".", " . "])) + statement(draw, key, value).lstrip(), f"{table}.{key}"
                )
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines), at


def with_value(options: Any, path: list[str], value: Any) -> Any:
    inner = value if len(path) == 1 else with_value(getattr(options, path[0]), path[1:], value)
    return replace(options, **{path[0]: inner})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "search.toml").write_text('class_weight = ["none", "balanced"]\n[heads.knn]\nk = [3]\n')
    return tmp_path / "nightly.toml"


def read(file: Path, text: str, day: date = DAY) -> Recipe:
    file.write_bytes(text.encode())
    return read_recipe(file, day)


def refusal(file: Path, text: str) -> str:
    """What is said of a recipe, without the folder of the file."""
    with pytest.raises(UsageError) as caught:
        read(file, text)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{file.parent}/", "")


@CHECKED
@given(st.data())
def test_a_recipe_becomes_the_options_that_a_caller_would_construct(file: Path, data: st.DataObject) -> None:
    keys, arrived = data.draw(written())
    text, _ = layout(data.draw, keys)
    expected = Recipe(
        file,
        "a[embed] shard_images = 7" if "name = " in text else "nightly",
        DAY,
        "",
        own.SourceOptions(()),
        own.LabelsOptions(),
        EmbedOptions(),
        CompareOptions(),
        own.ChecksOptions(),
        own.PromoteOptions(),
        own.PublishOptions(),
        own.NotifyOptions(),
        TrackOptions(),
        own.KeepOptions(),
    )
    for path, value in arrived.items():
        expected = with_value(expected, path.split("."), value)
    label_set = expected.labels.label_set
    for path in ("embed.label_set", "compare.data.label_set"):
        expected = with_value(expected, path.split("."), label_set)
    found = read(file, text)
    assert replace(found, digest="") == expected
    assert types(found) == types(replace(expected, digest=found.digest))
    plain = "\n".join(f"{key} = {value}" for key, value in sorted(keys.items()))
    assert read(file, plain).digest == found.digest == read(file, text, date(2020, 1, 1)).digest


def types(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: types(getattr(value, field.name)) for field in fields(value)}
    return [types(item) for item in value] if isinstance(value, tuple) else type(value)


@CHECKED
@given(st.data())
def test_a_wrong_value_is_named_with_its_key_and_its_line(file: Path, data: st.DataObject) -> None:
    keys, _ = data.draw(written())
    key = data.draw(st.sampled_from(sorted(keys)))
    wrong = data.draw(st.sampled_from(["{x = 1}", "1979-05-27", "07:32:00", "[[[1]]]", "[true]", "[{}]"]))
    text, lines = layout(data.draw, keys | {key: wrong})
    table, _, name = key.partition(".")
    said = refusal(file, text)
    assert said.startswith(f"nightly.toml, line {lines[key]}: [{table}] {name}: Expected: "), text
    assert re.search(r"\. Got: .+\.$", said)


@CHECKED
@given(st.data())
def test_an_unknown_key_is_named_with_its_line_and_the_nearest(file: Path, data: st.DataObject) -> None:
    keys, _ = data.draw(written())
    keys |= {"promote.margin": "0.5"}
    key = data.draw(st.sampled_from(sorted(keys.keys() - {"source.location"})))
    table, _, name = key.partition(".")
    wrong = data.draw(st.sampled_from([name + "x", name.replace("_", "-") + "-x", name.upper() + "X"]))
    given = {f"{table}.{wrong}" if one == key else one: value for one, value in keys.items()}
    text, lines = layout(data.draw, given)
    said = refusal(file, text)
    begins = f"nightly.toml, line {lines[f'{table}.{wrong}']}: [{table}] {wrong}: Expected: a key of [{table}]"
    assert said.startswith(begins) and said.endswith(f"Got: {wrong}.")
    if len(name) > 1:
        assert re.search(rf"; the nearest is {name}\. ", said)


# -- values that are refused


def after(text: str) -> str:
    return 'source.location = "a"\n' + text


SAID = {
    "": "nightly.toml: [source]: Expected: location, which has no default. Got: none.",
    "\n[source]\n": "nightly.toml, line 2: [source]: Expected: location, which has no default. Got: none.",
    "source = 5": "nightly.toml, line 1: [source]: Expected: a table [source]. Got: 5.",
    "[[source]]": "nightly.toml, line 1: [source]: Expected: a table [source]. Got: [{}].",
    'source.location = ""': "nightly.toml, line 1: [source] location: "
    "Expected: location, at least one source. Got: none.",
    "source.location = []": "nightly.toml, line 1: [source] location: "
    "Expected: location, at least one source. Got: none.",
    "source.location = 5": "nightly.toml, line 1: [source] location: Expected: a text or a list of texts. Got: 5.",
    '[source]\nlocation = "{date:%Q}"': "nightly.toml, line 2: [source] location: Expected: {date} or {date:FORMAT} "
    "with codes of strftime for a date, such as {date:%Y/%m/%d}. Got: '{date:%Q}'.",
    after("[embeds]"): "nightly.toml, line 2: "
    "Expected: name or a table of a recipe; the nearest is embed. Got: [embeds].",
    after("seeds = 3"): "nightly.toml, line 2: "
    "Expected: name or a table of a recipe; seeds is one of [compare]. Got: seeds.",
    after("Name = 'a'"): "nightly.toml, line 2: Expected: name or a table of a recipe; the nearest is name. Got: Name.",
    after("[split]\n'a\\b' = 1\n\"c\\n\" = 1"): "nightly.toml, line 3: [split] a\\b: "
    "Expected: a key of [split]: val, test, seed. Got: a\\b.",
    after('[split]\n"a\\n\\u0000" = 1'): "nightly.toml, line 3: [split] a\\n\\x00: "
    "Expected: a key of [split]: val, test, seed. Got: a\\n\\x00.",
    after("[compare]\nfewshot_k = '1\u2028x'"): "nightly.toml, line 3: [compare] fewshot_k: "
    "Expected: fewshot_k with whole numbers such as 1,5,10. Got: 1\\u2028x.",
    after('name = "a\\nb"'): "nightly.toml, line 2: "
    "Expected: name, a line of text of up to 100 characters. Got: 'a\\nb'.",
    after("[embed]\nlabel_set = 'a'"): "nightly.toml, line 3: [embed] label_set: "
    "Expected: a key of [embed]; label_set is one of [labels]. Got: label_set.",
    after("[split]\nsplit_seed = 1"): "nightly.toml, line 3: [split] split_seed: "
    "Expected: a key of [split]: val, test, seed. Got: split_seed.",
    after("[split]\nzz = 1"): "nightly.toml, line 3: [split] zz: Expected: a key of [split]: val, test, seed. Got: zz.",
    after("[embed]\nshard_images = 0"): "nightly.toml, line 3: [embed] shard_images: "
    "Expected: shard_images, a whole number from 1 to 1,048,576. Got: 0.",
    after("[embed]\nshard_images = true"): "nightly.toml, line 3: [embed] shard_images: "
    "Expected: a whole number. Got: true.",
    after("[embed]\nshard_images = 1.0"): "nightly.toml, line 3: [embed] shard_images: "
    "Expected: a whole number. Got: 1.0.",
    after("[embed]\nretry_failed = 1"): "nightly.toml, line 3: [embed] retry_failed: Expected: true or false. Got: 1.",
    after("[embed]\nlayer = 2026-01-01"): "nightly.toml, line 3: [embed] layer: Expected: a text. Got: 2026-01-01.",
    after("[embed]\nprecision = 'f16'"): "nightly.toml, line 3: [embed] precision: "
    "Expected: precision f32 or bf16. Got: 'f16'.",
    after("[embed]\nshard_images = 0\nmax_removed = 2"): "nightly.toml, line 4: [embed] max_removed: "
    "Expected: max_removed, a share from 0 to 1. Got: 2.0.",
    after("[embed]\ndtype = ''"): "nightly.toml, line 3: [embed] dtype: Expected: dtype float16 or float32. Got: ''.",
    after("[embed]\npooling = 'x'"): "nightly.toml, line 3: [embed] pooling: "
    "Expected: pooling avg, max, none. Got: 'x'.",
    after("[embed]\nsquash = true\npad = true"): "nightly.toml, line 3: [embed] squash: "
    "Give one of squash, center_crop and pad.",
    after("[compare]\nhidden = [512, 256]"): "nightly.toml, line 3: [compare] hidden: "
    "Expected: a text or a list of texts. Got: [512, 256].",
    after("[compare]\nbudget = true"): "nightly.toml, line 3: [compare] budget: "
    "Expected: a number, or a text that is a time. Got: true.",
    after("[compare]\nbudget = '5x'"): "nightly.toml, line 3: [compare] budget: "
    "Expected: a time such as 90s, 30min, 12h, 2d or 1w. Got: 5x.",
    after("[compare]\nheads = ['ncm']\nC = 1"): "nightly.toml, line 4: [compare] C: "
    "C says nothing to ncm: no family of these has C.",
    after("[compare]\nC = 1\nsearch = 'search.toml'"): "nightly.toml, line 3: [compare] C: "
    "search is in place of heads, C, hidden and class_weight: leave those out.",
    after("[split]\nval = 0.5\ntest = '50%'"): "nightly.toml, line 3: [split] val: "
    "Expected: shares for val and test that leave a train split. Got: 0.5 and 0.5.",
    after("[split]\nval = 0.5\nseed = -1\ntest = 0.1"): "nightly.toml, line 4: [split] seed: "
    "Expected: seed, a whole number from 0 to 9,223,372,036,854,775,807. Got: -1.",
    after("[publish]\nto = 'x'\nformat = 'pdf'"): "nightly.toml, line 4: [publish] format: "
    "Expected: format, one of keras, saved_model, onnx, openvino, litert. Got: 'pdf'.",
    after("[labels]\nlabel_set = 'a b'"): "nightly.toml, line 3: [labels] label_set: Expected: a label set named with "
    "up to 64 letters, digits, '.', '_' or '-'. Got: 'a b'.",
    after("[labels]\nfile = ['a', '']"): "nightly.toml, line 3: [labels] file: "
    "Expected: file, names of files. Got: an empty one.",
    after("[notify]\ntimeout = 0"): "nightly.toml, line 3: [notify] timeout: "
    "Expected: timeout in seconds, a number of at least 0.1. Got: 0.0.",
    after("[track]\nexperiment = ''"): "nightly.toml, line 3: [track] experiment: "
    "Expected: experiment, a name. Got: none.",
    after("[embed]\nlayer = ["): "nightly.toml: Expected: TOML. Got: Invalid value (at end of document).",
    after("[embed]\n[embed]"): "nightly.toml, line 3: Expected: TOML. Got, in column 7: "
    "Cannot declare ('embed',) twice.",
    after("x = \n"): "nightly.toml, line 2: Expected: TOML. Got, in column 5: Invalid value.",
}


@pytest.mark.parametrize("text", SAID)
def test_what_is_wrong_is_said_in_one_sentence(file: Path, text: str) -> None:
    assert refusal(file, text) == SAID[text]


def test_a_key_of_a_table_over_several_lines_has_its_line_only_where_that_is_certain(file: Path) -> None:
    """A later key of an inline table may stand on any line of it."""
    text = 'source = {location = """\n\na""", max_failure_rate = 7}'
    assert refusal(file, text).startswith("nightly.toml: [source] max_failure_rate: Expected")
    assert refusal(file, text.replace("max_failure_rate = 7", "x = 1")).startswith("nightly.toml: [source] x: ")
    assert refusal(file, text.replace("\na", "{date:x}")).startswith("nightly.toml, line 1: [source] location: ")
    long = "[source]\nlocation = [\n" + "'a',\n" * MAX_LINES + "]\n[embed]\nshard_images = 0\n"
    assert refusal(file, long).startswith("nightly.toml: [embed] shard_images: ")


def test_lines_are_known_for_headers_within_headers() -> None:
    text = "a.b = 1\r\n\r\n[c.d]\r\n'e f' = 2\r\n[[g]]\r\nh = [{i = 1},\r\n{}]\r\n"
    lines = {("a",): 1, ("a", "b"): 1, ("c",): 3, ("c", "d"): 3, ("c", "d", "e f"): 4, ("g",): 5, ("g", "h"): 6}
    assert key_lines(text) == lines


@pytest.mark.parametrize("kind", ["missing", "folder", "large", "loop", "latin", "locked"])
def test_a_file_that_is_no_recipe_is_refused(file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "nightly.toml: Expected: a recipe, a TOML file of up to 65,536 bytes. Got: {}."
    got = "no such file"
    if kind == "folder":
        file.mkdir()
        got = "no regular file"
    elif kind == "large":
        file.write_bytes(b"#" * (recipes.MAX_BYTES + 1))
        got = "a larger file"
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "latin":
        file.write_bytes('[source]\nlocation = "Käse"'.encode("latin-1"))
        expected = "nightly.toml, line 2: Expected: text in UTF-8. Got: the byte 0xe4."
    elif kind == "locked":
        file.write_text(LEAST)
        monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        got = "Permission denied"
    with pytest.raises(UsageError) as caught:
        read_recipe(file, DAY)
    assert str(caught.value).replace(f"{file.parent}/", "") == expected.format(got)


def test_the_largest_file_is_read_and_a_mark_of_utf_8_is_no_text(file: Path) -> None:
    assert read(file, LEAST.ljust(recipes.MAX_BYTES)).name == "nightly"
    assert read(file, "\ufeff" + LEAST) == read(file, LEAST)


# -- dates and paths


def test_the_date_takes_its_place_and_other_braces_stay(file: Path) -> None:
    found = read(
        file,
        """
        source.location = ["/in/{date}/{x}/shard-{000..150}.tar", "/{date:%Y/%m/%d}%Y", "/{date:w%Vé%%}/{Date}{dates}"]
        labels.file = "/l/{date:%j}.csv"
        publish.to = "/out/{date}"
        notify.command = "echo {date} ${x} {date:%A}"
        track.experiment = "{date:%B %Y}"
        """,
        date(2026, 2, 3),
    )
    assert found.source.location == (
        "/in/2026-02-03/{x}/shard-{000..150}.tar",
        "/2026/02/03%Y",
        "/w06é%/{Date}{dates}",
    )
    assert found.labels.file == ("/l/034.csv",)
    assert found.publish.to == "/out/2026-02-03"
    assert found.notify.command == "echo 2026-02-03 ${x} Tuesday"
    assert found.track.experiment == "February 2026"


@pytest.mark.parametrize("form", ["", "YYYY", "%%", "%%Y", "%H", "%Y%", "%-d", "%Y%é", "%Y\0"])
def test_a_format_that_says_nothing_of_a_date_is_refused(file: Path, form: str) -> None:
    for text, got in ((f"a/{{date:{form}}}", f"{{date:{form}}}"), (f"{{date:%Y}}/{{date:{form}", f"{{date:{form}")):
        said = refusal(file, f"[source]\n\nlocation = {toml(text)}")
        assert said.startswith("nightly.toml, line 3: [source] location: ") and said.endswith(f"Got: {got!r}.")


def test_a_placeholder_has_an_end(file: Path) -> None:
    assert refusal(file, "[source]\nlocation = ['{date', 'a/{date:%Y/b']").endswith(" Got: '{date:%Y/b'.")


def test_relative_paths_begin_at_the_recipe(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/x")
    folder = file.parent
    text = """
        source.location = ["a", "./b/", "../c", "~/d", "/e", "file:///f", "s3://g/h", "i-{0..3}.tar"]
        labels.file = ["l.csv"]
        embed.weights = "w.h5"
        compare.search = "search.toml"
        publish.to = "out"
        notify.command = "./tell"
        track.uri = "sqlite:///x.db"
        """
    found = read(file, text)
    names = ("a", "b", "../c")
    assert found.source.location == (
        *(f"{folder}/{name}" for name in names),
        "/home/x/d",
        "/e",
        "file:///f",
        "s3://g/h",
        f"{folder}/i-{{0..3}}.tar",
    )
    assert (found.labels.file, found.embed.weights, found.publish.to) == (
        (f"{folder}/l.csv",),
        f"{folder}/w.h5",
        f"{folder}/out",
    )
    assert found.compare.search.grids == {"knn": ({"k": 3},)}
    assert (found.notify.command, found.track.uri) == ("./tell", "sqlite:///x.db")
    monkeypatch.chdir(folder)
    assert read_recipe(file.name, DAY) == found


# -- digests


CHANGES = [
    ('rule = "better"', 'rule = "not-worse"'),
    ('"photos"', '"{date}"'),
    ('["ncm", "logreg"]', '["ncm"]'),
    ("[compare]", "[compare]\nseeds = 2"),
    ("[promote]", "[split]\nseed = 1\n[promote]"),
    ("[promote]", "[labels]\nlabel_set = 'b'\n[promote]"),
    ("[promote]", "[embed]\npad = true\n[promote]"),
    ("[promote]", "[checks]\ndrift = 'block'\n[promote]"),
    ("[promote]", "[publish]\nto = 'x'\n[promote]"),
]
NO_CHANGES = [
    ('"photos"', '"./photos/" # which are many'),
    ('["ncm", "logreg"]', '"logreg,ncm"'),
    ('rule = "better"', 'margin = 0\nmetric = "top1"\nrule = "better"'),
    ("[compare]", "[embed]\nsquash = true\nbackbone = 'efficientnet-lite0'\n[compare]\nbudget = ''"),
    ("[promote]", "[notify]\ncommand = 'x'\n[track]\nuri = 'x'\n[keep]\nruns = 1\n[promote]"),
    ("\n[source]", "name = 'other'\n[source]"),
]


def test_a_digest_changes_with_what_decides_a_night_and_with_nothing_else(file: Path) -> None:
    before = read(file, LEAST).digest
    for old, new in NO_CHANGES:
        assert old in LEAST and read(file, LEAST.replace(old, new)).digest == before, new
    digests = [read(file, LEAST.replace(old, new)).digest for old, new in CHANGES]
    assert len({before, *digests}) == len(CHANGES) + 1
    dated = LEAST.replace('"photos"', '"{date}"')
    assert read(file, dated).digest == read(file, dated, date(2020, 1, 1)).digest
    searched = "source.location = 'a'\ncompare.search = 'search.toml'"
    before = read(file, searched).digest
    (file.parent / "search.toml").write_text("[heads.knn]\nk = [5]\n")
    assert read(file, searched).digest != before


def test_digests_stay_over_versions_of_penult(file: Path) -> None:
    """Nights are known by them: a change here makes every night that is done be done again."""
    text = LEAST.replace('"photos"', '"/photos"')
    assert read(file, text).digest == "3f718e029980f318f2883b6359cdfff53c1880eed2fb1b01800d50e1a7489e24"
    assert (
        read(file, text + "[embed]\nprecision = 'bf16'\npad = true\n[split]\nval = '20%'\n").digest
        == "fd7389ced72fd9744a5eafe1a2830821ebdaf9429d67346a73a93b4c42846a16"
    )


# -- the template


def uncommented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield re.sub(r"^#(?=\w+ = )", "", line)


def test_the_template_is_the_least_recipe_and_shows_every_default(file: Path) -> None:
    least, found = read(file, LEAST), read(file, template())
    assert found == least
    text = "\n".join(uncommented(template()))
    assert read(file, text) == least
    keys = {".".join(path) for path in key_lines(text)}
    assert keys == {"name", *TABLES, *(key for table in TABLES for key in listed(table))}
    assert all(len(line) <= 120 for line in template().splitlines())


def test_the_template_says_what_each_key_does() -> None:
    assert """
# Where the images come from.
[source]
# What `penult embed` takes, one or a list, relative to the recipe's folder; {date} is the logical date.
location = "photos"
# Share of a source's files that may fail; above it the night ends with exit code 3.
#max_failure_rate = 0.05
""" in template()
    assert '\n# Images per forward pass; by default the engine\'s own.\n#batch_size = ""\n' in template()
    assert "\n# false: Take folders named train, val and test for classes.\n#split_folders = true\n" in template()
    assert '\nheads = ["ncm", "logreg"]\n' in template() and '\n#on = ["promoted", "blocked", "failed"]\n' in template()
