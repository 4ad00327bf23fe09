"""Fine-tuned backbones of a store: ``STORE/backbones/<sha256>.weights.h5`` with a description beside it.

``ft:ID`` names one by the run that made it, and stands for its whole tap: base network, weights, layer, pooling, input
size and crop. Feature sets keep the base network's name; the weights' digest distinguishes them.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from featurestore import layout
from featurestore.errors import StoreCorrupt, StoreNotFound, UsageError
from featurestore.storage.base import storage_of
from featurestore.storage.files import is_file, listed, make_folder, read_sealed, replacing, sha256_of, write_sealed
from featurestore.store import FeatureStore
from pipelines.backbones import foreign
from pipelines.backbones.table import TABLE, Tap, resolve

PREFIX = "ft:"
LONGEST = 200  # characters of any value in a description
WORDS = {"backbone": str, "layer": str, "pooling": str, "input_size": int, "crop": str}  # a tap's values


def register(
    store: FeatureStore, run_id: str, tap: Tap, save: Callable[[Path], None], about: Mapping[str, Any]
) -> None:
    """Keep fine-tuned weights under the run's id; do nothing if they are kept already.

    Args:
        store: where they are kept; its lock is taken.
        run_id: the id of the fine-tuning's run.
        tap: the tap of the base network.
        save: writes the weights to a path.
        about: what else to keep in the description, as JSON values.

    Raises:
        StoreLocked: another run holds the store's lock.
    """
    with store.lock(), tempfile.TemporaryDirectory() as folder:
        if run_id in _registered(store):
            return
        made = Path(folder) / f"new{layout.WEIGHTS}"  # Keras demands this extension
        save(made)
        digest = sha256_of(made)
        make_folder(store.path / layout.BACKBONES)
        with replacing(layout.weights(store.path, digest)) as temporary:
            shutil.copyfile(made, temporary)
        named = {word: getattr(tap, word) for word in WORDS}
        described = {"id": run_id, "sha256": digest, "base_sha256": tap.weights_sha256, **named, **about}
        write_sealed(layout.backbone(store.path, run_id), described)


def find(store: FeatureStore, name: str) -> Tap:
    """Return the tap that ``ft:ID`` stands for.

    Raises:
        StoreNotFound: the store has no such fine-tuned backbone.
        StoreCorrupt: its weights are missing or changed, or its description is damaged.
    """
    known = _registered(store)
    run_id = name.removeprefix(PREFIX)
    if run_id not in known:
        there = ", ".join(PREFIX + other for other in known) or "none: make one with `penult finetune`"
        raise StoreNotFound(f"{store.path} has no backbone {name}. Expected: one of its fine-tuned ones. Got: {there}.")
    found = _described(known[run_id])
    weights = weights_in(store, found["sha256"])
    if weights is None:
        raise StoreCorrupt(f"Expected: the weights of {name} in {store.path / layout.BACKBONES}. Got: no such file.")
    tap = _of(store, name, found, weights)
    if tap.weights_sha256 != found["sha256"]:
        raise StoreCorrupt(f"{weights}: Expected: sha256 {found['sha256']}. Got: {tap.weights_sha256}.")
    return tap


def _of(store: FeatureStore, name: str, found: Mapping[str, Any], weights: str) -> Tap:
    """Return the tap of a description: of a backbone of the table, or of one that was added to the store.

    Raises:
        StoreCorrupt: the network that was added is not there any more, or another has its name.
    """
    if found["backbone"] in TABLE:
        return resolve(weights=weights, **{word: found[word] for word in WORDS})
    try:
        tap = replace(foreign.find(store.path, found["backbone"]), weights=weights)
    except UsageError as error:
        raise StoreCorrupt(f"{name} was made from a backbone that is gone: {error}") from error
    if other := [word for word in WORDS if getattr(tap, word) != found[word]]:
        raise StoreCorrupt(f"Expected: {tap.backbone} as {name} was made from it. Got: another {other[0]}.")
    return tap


def weights_in(store: FeatureStore, sha256: str) -> str | None:
    """Return the absolute path of the weights with this digest, or None if the store has none."""
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        return None
    path = layout.weights(store.path, sha256)
    return str(storage_of(path).local(path)) if is_file(path) else None


def _registered(store: FeatureStore) -> dict[str, PurePath]:
    """Return the paths of the descriptions by run id, oldest first."""
    return {path.stem: path for path in listed(store.path / layout.BACKBONES) if path.suffix == layout.JSON}


def _described(path: PurePath) -> dict[str, Any]:
    """Read a description.

    Raises:
        StoreCorrupt: it is damaged.
    """
    told = read_sealed(path)
    for word, kind in {**WORDS, "sha256": str}.items():
        if type(told.get(word)) is not kind or len(str(told[word])) > LONGEST:
            raise StoreCorrupt(f"Expected: the description of a backbone in {path}. Got: no {word}.")
    return told
