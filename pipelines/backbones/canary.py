"""Two built-in images whose features show whether a feature set's decoding and network are still the same.

``canary.jpg`` (1040×904 pixels, turned by its EXIF tag, reduced as it is decoded for squares of up to 226) and
``canary.png`` (330×460, partly transparent) are drawings of flat colours, discs, stripes and checks. Their features
depend on the resize, the crop, the order of channels, the turn, the white background and the normalisation. Their bytes
never change: other images need another ``featurestore.canary.FORMAT``.
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
STORED = 5  # stored images on which a set without a canary is checked
MAX_TRIES = 200  # stored images looked up to find that many; they are the values of one filter
LOG = logging.getLogger("penult")

Run = Callable[[np.ndarray], np.ndarray]  # uint8 (n, s, s, 3) → float32 (n, d)


def check(store: FeatureStore, feature_set: str, run: Run) -> None:
    """Embed the built-in images and compare them with the set's canary; do nothing if it has none.

    Args:
        store: the store that holds the set.
        feature_set: its full name.
        run: the network that is to compute features of this set.

    Raises:
        SpecMismatch: their features are not those of the canary.
        StoreCorrupt: the canary is damaged.
    """
    if (known := canary.read(store.table(feature_set).path)) is not None:
        spec = store.spec(feature_set)
        canary.compare(feature_set, known, _made(spec, run), spec.precision)


def settle(store: FeatureStore, feature_set: str, run: Run) -> None:
    """Write the canary of a set that is about to grow, if the set is empty or has no canary and its rows agree.

    The caller holds the store's lock. To check the rows, a few stored images whose files have not changed are embedded
    again and compared with them. If none can be read, the set stays without a canary until the next time.

    Args:
        store, feature_set, run: see ``check``.

    Raises:
        SpecMismatch: stored images now have other features.
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
    """Return the first ``count`` stored images whose files still hold the content that was embedded.

    Args:
        rows: uri and sha256 of rows of the catalog.
        preprocessing: how to decode them.
        count: how many at most.

    Returns:
        By the content's sha256: its uri, and pixels uint8 (s, s, 3).
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
                found[key] = uri, decoder.decode(data, preprocessing).pixels
        except ImageError:
            continue  # it cannot be read any more; try the next
    return found


def _made(spec: FeatureSpec, run: Run) -> Canary:
    """Compute a set's canary anew: features of the images and, for a set of views, of their first views."""
    names, pixels = [], []
    for name in PICTURES:
        data = resources.files("pipelines.backbones").joinpath(name).read_bytes()
        names.append(name)
        pixels.append(decoder.decode(data, spec.preprocessing).pixels)
        if spec.augmentation is not None:
            names.append(f"{name} as view 1")
            pixels.append(_first_view(pixels[-1], spec, hashlib.sha256(data).digest()))
    return Canary(dict(zip(names, run(np.stack(pixels)), strict=True)))


def _first_view(pixels: np.ndarray, spec: FeatureSpec, key: bytes) -> np.ndarray:
    """Return what the network sees first of a content: the image itself, or in a set of views its first view."""
    if spec.augmentation is None:
        return pixels
    drawn = {name: value for name, value in json.loads(spec.augmentation).items() if name != "rules"}
    return random_view(pixels, Augmentation(**drawn), key, spec.first_view)


def _rows_agree(store: FeatureStore, feature_set: str, spec: FeatureSpec, run: Run) -> bool:
    """Return whether stored images, embedded again, agree with their rows; warn and return False if none can be read.

    Raises:
        SpecMismatch: an image does not agree.
    """
    wanted = store.content_keys(feature_set)[:MAX_TRIES]  # sha256 order is as good as a random draw
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
    """Return the library versions of the newest run that embedded a set, as far as its record has them."""
    for record in reversed(store.runs()):
        if record.kind == "embed" and record.result.get("feature_set") == feature_set:
            told = {name: version for name, version in record.versions.items() if name in canary.LIBRARIES}
            return Canary({}, told, "")
    return Canary({}, {}, "")
