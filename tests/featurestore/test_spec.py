"""FeatureSpec: every field is part of the identity, and the identity never drifts."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import FormatError, StoreCorrupt
from featurestore.spec import FORMAT_VERSION, LONGEST, FeatureSpec, Preprocessing
from pipelines.images.augmentation import Augmentation

SPEC = FeatureSpec(
    backbone="efficientnet-lite0",
    weights_sha256="ab" * 32,
    preprocessing=Preprocessing(input_size=224, normalization="lite"),
    layer="top",
    pooling="avg",
    width=1280,
)


def changed(value: Any) -> Any:
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def variants() -> dict[str, FeatureSpec]:
    """SPEC with one field changed, for every field there is, those of nested dataclasses too."""
    found = {}
    for field in fields(SPEC):
        value = getattr(SPEC, field.name)
        if is_dataclass(value):
            for inner in fields(value):
                other = replace(value, **{inner.name: changed(getattr(value, inner.name))})
                found[f"{field.name}.{inner.name}"] = replace(SPEC, **{field.name: other})
        else:
            found[field.name] = replace(SPEC, **{field.name: changed(value)})
    return found


def test_every_field_changes_the_fingerprint() -> None:
    prints = {name: spec.fingerprint() for name, spec in variants().items()}
    assert len(prints) == len(fields(FeatureSpec)) - 1 + len(fields(Preprocessing))
    assert len({SPEC.fingerprint(), *prints.values()}) == len(prints) + 1


def test_identity_is_pinned() -> None:
    """If this fails, every store in the world would embed again: raise FORMAT_VERSION on purpose or undo."""
    assert SPEC.to_json() == (
        '{"backbone":"efficientnet-lite0","dtype":"float16","format_version":1,"layer":"top","pooling":"avg",'
        '"precision":"f32","preprocessing":{"crop":"squash","decode":"rgb8-v1","input_size":224,'
        '"normalization":"lite","resize":"pillow-bilinear"},"weights_sha256":"' + "ab" * 32 + '","width":1280}'
    )
    assert SPEC.fingerprint() == "59bba45eba95947dc5f9558bb420487a58762a96e59a699cc3b30e4ff268b7d8"
    assert SPEC.set_name == "efficientnet-lite0-59bba45e"


@dataclass(frozen=True)
class LaterPreprocessing(Preprocessing):
    """What a later penult may know of preprocessing: more fields, at defaults that mean what was always done."""

    crop_share: float = 1.0
    antialias: bool = True


@dataclass(frozen=True)
class LaterSpec(FeatureSpec):
    preprocessing: LaterPreprocessing
    patch: str | None = None


def later(**changes: Any) -> LaterSpec:
    seen = LaterPreprocessing(224, "lite", **{name: changes.pop(name) for name in set(changes) - {"patch"}})
    return LaterSpec(**(vars(SPEC) | {"preprocessing": seen} | changes))


def test_a_new_field_leaves_the_fingerprint_at_its_default_and_changes_it_otherwise() -> None:
    assert later().to_json() == SPEC.to_json() and later().fingerprint() == SPEC.fingerprint()
    changes: list[dict[str, Any]] = [{"crop_share": 0.875}, {"antialias": False}, {"patch": "cls"}, {"crop": "pad"}]
    prints = {later(**change).fingerprint() for change in changes}
    assert len(prints | {SPEC.fingerprint()}) == len(changes) + 1
    for change in [{}, *changes]:
        assert LaterSpec.from_json(later(**change).to_json()) == later(**change)
    for wrong in ('"crop_share":"1"', '"antialias":1', '"crop_share":true'):
        with pytest.raises(StoreCorrupt, match="Expected: a feature spec"):
            LaterSpec.from_json(SPEC.to_json().replace('"crop":"squash"', f'"crop":"squash",{wrong}'))


def test_identity_of_views_is_pinned() -> None:
    """Likewise for every set of views; the network's own spec stays beside what the views are drawn with."""
    drawn = Augmentation(rotation=7.5, shift=0.25, shear=3.0, zoom=0.1, flip="both", fill="reflect", seed=5).to_json()
    assert drawn == (
        '{"fill":"reflect","flip":"both","rotation":7.5,"rules":"affine-v1","seed":5,"shear":3.0,"shift":0.25,'
        '"zoom":0.1}'
    )
    views = replace(SPEC, augmentation=drawn)
    quoted = drawn.replace('"', '\\"')
    assert views.to_json() == SPEC.to_json().replace('{"backbone"', f'{{"augmentation":"{quoted}","backbone"')
    assert views.fingerprint() == "4df3529f5d73d137afde3a985b242915fc869143b02d0c98ff69be8ad0503b88"
    assert views.set_name == "efficientnet-lite0-4df3529f-views"


def test_identity_of_other_squares_is_pinned() -> None:
    seen = Preprocessing(224, "lite", crop="shortest", resize="pillow-bicubic", crop_ratio=0.9)
    other = replace(SPEC, preprocessing=seen)
    assert other.to_json() == SPEC.to_json().replace(
        '{"crop":"squash","decode"', '{"crop":"shortest","crop_ratio":0.9,"decode"'
    ).replace("pillow-bilinear", "pillow-bicubic")
    assert other.fingerprint() == "7ed60c30172e9b07c33aa05c8ba12eb3c5eb271a00fc495afea4327e58aee4a8"
    assert FeatureSpec.from_json(other.to_json()) == other
    whole = replace(SPEC, preprocessing=replace(seen, crop_ratio=1.0))
    assert "crop_ratio" not in whole.to_json() and whole.fingerprint() != other.fingerprint()
    for wrong in ('"0.9"', "1", "true", "null"):
        with pytest.raises(StoreCorrupt, match="Expected: a feature spec"):
            FeatureSpec.from_json(other.to_json().replace("0.9", wrong))


def test_difference_names_the_field() -> None:
    for name, other in variants().items():
        assert name.split(".")[0] in SPEC.difference(other)
        assert name.split(".")[-1] in SPEC.difference(other)
    assert SPEC.difference(SPEC) == ""


specs = st.builds(
    FeatureSpec,
    backbone=st.text(),
    weights_sha256=st.text(),
    preprocessing=st.builds(
        Preprocessing,
        input_size=st.integers(),
        normalization=st.text(),
        crop=st.text(),
        resize=st.text(),
        decode=st.text(),
        crop_ratio=st.floats(0.1, 1),
    ),
    layer=st.text(),
    pooling=st.text(),
    width=st.integers(),
    precision=st.text(),
    dtype=st.text(),
)


@given(specs)
def test_json_round_trip(spec: FeatureSpec) -> None:
    again = FeatureSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


@given(specs, specs)
def test_equal_fingerprints_mean_equal_specs(a: FeatureSpec, b: FeatureSpec) -> None:
    assert (a == b) == (a.fingerprint() == b.fingerprint())


def test_newer_format_is_refused() -> None:
    newer = json.loads(SPEC.to_json()) | {"format_version": FORMAT_VERSION + 1, "something": "unheard of"}
    with pytest.raises(FormatError, match="install a newer penult"):
        FeatureSpec.from_json(json.dumps(newer))


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(SPEC.to_json()).items() if key != name})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "17",
        "{}",
        '"text"',
        SPEC.to_json()[:-1],
        without("width"),
        without("format_version"),
        without("preprocessing"),
        SPEC.to_json().replace('"crop"', '"chop"'),
        SPEC.to_json().replace('"format_version":1', '"format_version":"1"'),
        SPEC.to_json().replace('"format_version":1', '"format_version":1,"unknown":0'),
        SPEC.to_json().replace('"format_version":1', '"format_version":0.5'),
        SPEC.to_json().replace('"format_version":1', '"format_version":true'),
        SPEC.to_json().replace("1280", "1280.0"),
        SPEC.to_json().replace("1280", '"1280"'),
        SPEC.to_json().replace("224", "null"),
        SPEC.to_json().replace('"avg"', "7"),
        SPEC.to_json().replace('"squash"', "null"),
        SPEC.to_json().replace('"avg"', f'"{"x" * LONGEST}"'),
        SPEC.to_json().replace('"lite"', f'"{"x" * LONGEST}"'),
        SPEC.to_json().replace('"width"', '"augmentation":7,"width"'),
        SPEC.to_json().replace("1280", "[" * 10**5),
    ],
)
def test_garbage_is_corrupt(text: str) -> None:
    with pytest.raises(StoreCorrupt, match="Expected: a feature spec"):
        FeatureSpec.from_json(text)


def test_long_texts_and_augmentations_are_sound() -> None:
    for spec in (replace(SPEC, layer="x" * (LONGEST - 1)), replace(SPEC, augmentation='{"seed": 1}')):
        assert FeatureSpec.from_json(spec.to_json()) == spec
    views = replace(SPEC, augmentation="{}")
    assert (SPEC.first_view, views.first_view) == (0, 1)
    assert views.set_name == f"efficientnet-lite0-{views.fingerprint()[:8]}-views" != SPEC.set_name
    assert views.fingerprint() != SPEC.fingerprint() and '"augmentation":"{}"' in views.to_json()
    assert SPEC.difference(replace(SPEC, width=7, dtype="float32")) == (
        "width: 1280 against 7, dtype: 'float16' against 'float32'"
    )
