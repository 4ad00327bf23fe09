"""Two built-in pictures, embedded with a feature set's own decoding and network to see that these are what they were.

``canary.jpg`` (1040×904 pixels, turned by its EXIF tag, reduced as it is decoded for squares of up to 226) and
``canary.png`` (330×460, partly transparent) are drawn: flat colours, discs, stripes and checks in which the resize, the
crop, the order of channels, the turn, the white background and the normalisation show. Their bytes never change: other
pictures are another ``featurestore.canary.FORMAT``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from importlib import resources

import numpy as np

from featurestore import canary
from featurestore.canary import MAX_DEVIATION, Canary
from featurestore.dataset import hex_ids
from featurestore.errors import ImageError, SpecMismatch
from featurestore.schema import keys_of
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.store import FeatureStore
from pipelines.images import decoder
from pipelines.images.augmentation import Augmentation
from pipelines.images.views import random_view
from pipelines.sources import corpus

PICTURES = ("canary.jpg", "canary.png")
STORED = 5  # images that a set without a canary is tried on
MAX_TRIES = 200  # to read one of them; they are looked up by a filter
LOG = logging.getLogger("penult")

Run = Callable[[np.ndarray], np.ndarray]  # uint8 (n, s, s, 3) → float32 (n, d)


def check(store: FeatureStore, feature_set: str, run: Run) -> None:
    """Embed the built-in pictures and compare them with the set's canary; nothing is done where it has none.

    Args:
        store: that holds the set.
        feature_set: its full name.
        run: the network that is to give features of this set.

    Raises:
        SpecMismatch: they are not what they were.
        StoreCorrupt: the canary is damaged.
    """
    if (known := canary.read(store.table(feature_set).path)) is not None:
        spec = store.spec(feature_set)
        canary.compare(feature_set, known, _made(spec, run), spec.precision)


def settle(store: FeatureStore, feature_set: str, run: Run) -> None:
    """Give a set that is to grow its canary: one without rows anew, one without a canary once its rows agree.

    The store's lock is held. A few of the stored images, if their files are still what they were, are embedded again
    and compared with their rows; where none can be read, the set stays without a canary until the next time.

    Args:
        store, feature_set, run: see ``check``.

    Raises:
        SpecMismatch: stored images come out differently.
        StoreCorrupt: the canary or a row is damaged.
    """
    table, spec = store.table(feature_set), store.spec(feature_set)
    is_empty = not table.count()
    if not is_empty and (canary.read(table.path) is not None or not _rows_agree(store, feature_set, spec, run)):
        return
    made = _made(spec, run)
    if all(np.isfinite(vector).all() for vector in made.vectors.values()):
        canary.write(table.path, made)
    else:
        LOG.warning("%s gets no canary: the backbone gives no finite numbers for the built-in pictures.", feature_set)


def still_there(
    rows: Iterable[tuple[str, bytes]], preprocessing: Preprocessing, count: int
) -> dict[bytes, tuple[str, np.ndarray]]:
    """Stored images whose files are still what was embedded, the first ``count`` of them.

    Args:
        rows: of the catalog, uri and sha256.
        preprocessing: how to decode them.
        count: how many at most.

    Returns:
        By content: its uri, and pixels uint8 (s, s, 3).
    """
    found: dict[bytes, tuple[str, np.ndarray]] = {}
    for uri, key in rows:
        if len(found) == count:
            break
        if key in found:
            continue
        try:
            data = corpus.read(uri)[0]
            if hashlib.sha256(data).digest() == key:
                found[key] = uri, decoder.decode(data, preprocessing.input_size, preprocessing.crop).pixels
        except ImageError:
            continue  # moved away since; others are left
    return found


def _made(spec: FeatureSpec, run: Run) -> Canary:
    """The canary of a set as it would be today; of a set of views, that of the pictures and of their first views."""
    names, pixels = [], []
    for name in PICTURES:
        data = resources.files("pipelines.backbones").joinpath(name).read_bytes()
        names.append(name)
        pixels.append(decoder.decode(data, spec.preprocessing.input_size, spec.preprocessing.crop).pixels)
        if spec.augmentation is not None:
            names.append(f"{name} as view 1")
            pixels.append(_first_view(pixels[-1], spec, hashlib.sha256(data).digest()))
    return Canary(dict(zip(names, run(np.stack(pixels)), strict=True)))


def _first_view(pixels: np.ndarray, spec: FeatureSpec, key: bytes) -> np.ndarray:
    """What the network sees of a content first: the picture itself, or in a set of views its view 1."""
    if spec.augmentation is None:
        return pixels
    drawn = {name: value for name, value in json.loads(spec.augmentation).items() if name != "rules"}
    return random_view(pixels, Augmentation(**drawn), key, spec.first_view)


def _rows_agree(store: FeatureStore, feature_set: str, spec: FeatureSpec, run: Run) -> bool:
    """Whether stored images come out as they are stored; False where none can be read, which is said.

    Raises:
        SpecMismatch: one does not.
    """
    wanted = store.content_keys(feature_set)[:MAX_TRIES]  # a sha256 is as good as a draw
    listed = ", ".join(f"X'{key}'" for key in hex_ids(wanted))
    catalog = store.catalog.read(["uri", "sha256"], f"status = 'ok' AND sha256 IN ({listed})")
    keys = keys_of(catalog.column("sha256"))
    order = np.argsort(keys, kind="stable")
    rows = ((catalog.column("uri")[int(at)].as_py(), catalog.column("sha256")[int(at)].as_py()) for at in order)
    found = still_there(rows, spec.preprocessing, STORED)
    if not found:
        LOG.warning(
            "None of %d stored images of %s that were looked for is still where it was, so nothing shows whether new "
            "rows are computed like the old ones: put the images back, and the next run makes sure.",
            len(wanted), feature_set,
        )  # fmt: skip
        return False
    pixels = [_first_view(square, spec, key) for key, (_, square) in found.items()]
    with np.errstate(over="ignore"):
        now = run(np.stack(pixels)).astype(spec.dtype).astype(np.float32)  # rounded as the rows are
    then, _ = store.vectors(feature_set, np.array(list(found), "S32"))
    limit = MAX_DEVIATION[spec.precision]
    off = [
        f"{uri} {canary.described(*pair)}"
        for (uri, _), *pair in zip(found.values(), then, now, strict=True)
        if not canary.deviation(*pair) <= limit
    ]
    if off:
        raise SpecMismatch(
            f"Expected: stored images of {feature_set} with the vectors that they have, within {limit:.1%} of their "
            f"length. Got: {len(off)} of {len(found)} otherwise, the first {off[0]}, "
            f"{canary.changes(_when_embedded(store, feature_set), Canary({}))}."
        )
    return True


def _when_embedded(store: FeatureStore, feature_set: str) -> Canary:
    """What the newest run that embedded a set was computed with, as far as its record says."""
    for record in reversed(store.runs()):
        if record.kind == "embed" and record.result.get("feature_set") == feature_set:
            told = {name: version for name, version in record.versions.items() if name in canary.LIBRARIES}
            return Canary({}, told, "")
    return Canary({}, {}, "")
