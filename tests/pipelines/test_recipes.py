"""The options of each job can be filled from a table of a TOML file by pydantic, whose errors name the key."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipelines import options
from pipelines.images.augmentation import Augmentation

JOBS = [value for name, value in vars(options).items() if name.endswith("Options") and is_dataclass(value)]
RECIPES: dict[str, tuple[str, Any]] = {
    "EmbedOptions": (
        """
        backbone = "MobileNetV2"
        input_size = 96
        views = 2
        runner_arguments = ["--x", "1"]
        engine = {precision = "bf16", batch_size = 4}
        augmentation = {rotation = 3.5}
        """,
        options.EmbedOptions(
            backbone="MobileNetV2",
            input_size=96,
            views=2,
            runner_arguments=("--x", "1"),
            engine=options.EngineOptions(precision="bf16", batch_size=4),
            augmentation=Augmentation(rotation=3.5),
        ),
    ),
    "TrainOptions": (
        """
        head = "svm"
        params = {C = 0.5}
        data = {split = {val = 0.3, seed = 7}}
        """,
        options.TrainOptions(head="svm", params={"C": 0.5}, data=options.FitData(split=options.Split(val=0.3, seed=7))),
    ),
}


def test_every_job_has_its_options() -> None:
    assert {job.__name__ for job in JOBS} >= {"EmbedOptions", "TrainOptions", "CompareOptions", "FinetuneOptions"}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_a_wrong_value_is_named_by_its_key(job: type) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(job)
    for field in fields(job):
        with pytest.raises(ValidationError) as caught:
            adapter.validate_python({"unfreeze_from": "x", field.name: object()})
        assert caught.value.errors()[0]["loc"][0] == field.name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_becomes_the_options_that_a_caller_would_construct(name: str) -> None:
    text, expected = RECIPES[name]
    found = TypeAdapter(type(expected)).validate_python(tomllib.loads(text))
    assert found == expected
    found.check()
