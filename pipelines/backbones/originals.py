"""The models that users added, as they were given: kept in a store beside their graphs, or left where they lie.

OpenVINO runs the graph and needs no more. The model itself is for the engine it was made for, for an export in its own
format, and for fine-tuning. It is kept as ``<sha256>.zip``, its files stored without compression.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

from featurestore.errors import BackboneError, StoreCorrupt
from featurestore.storage.base import storage_of
from featurestore.storage.files import is_file, make_folder, replacing
from pipelines.backbones import models
from pipelines.backbones.keras_models import MAX_BYTES

ARCHIVE = ".zip"
BEGINNING = (1980, 1, 1, 0, 0, 0)  # of a zip's calendar: one model gives one archive, whenever it is added


def name_of(model: Path, copy: bool) -> str:
    """Return what a description says of a model: the name of its own file if it is kept, else where it lies."""
    if not copy:
        return str(model.resolve())
    return models.SAVED_MODEL if model.is_dir() else model.name


def is_kept(name: str) -> bool:
    """Return whether the store has the model of this name: older stores and those of OpenVINO's IR have none."""
    return bool(name) and not PurePath(name).is_absolute()


def kind_of(name: str) -> str:
    """Return the suffix of a model's file, ``models.SAVED_MODEL`` for a SavedModel's folder, "" if there is no model.

    Args:
        name: see ``name_of``.
    """
    if name and (name == models.SAVED_MODEL or Path(name).is_dir()):
        return models.SAVED_MODEL
    return PurePath(name).suffix


def archive(folder: PurePath, sha256: str) -> PurePath:
    """Return where a folder keeps a model."""
    return folder / f"{sha256}{ARCHIVE}"


def keep(folder: PurePath, sha256: str, files: list[Path]) -> None:
    """Write a model's files into its archive, whole or not at all; do nothing if a sound one is there."""
    path = archive(folder, sha256)
    if is_file(path) and _is_sound(path, sha256):
        return
    make_folder(folder)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as made:
        for file in files:
            member = zipfile.ZipInfo(file.relative_to(files[0].parent).as_posix(), BEGINNING)
            member.file_size = file.stat().st_size  # of more than 2 GiB: told before they are written
            with file.open("rb") as given, made.open(member, "w") as kept:
                while piece := given.read(1 << 20):
                    kept.write(piece)


def check(folder: PurePath, sha256: str) -> None:
    """Raise StoreCorrupt unless a folder has the archive of a model, as it was added."""
    path = archive(folder, sha256)
    if not is_file(path) or not _is_sound(path, sha256):
        raise StoreCorrupt(f"Expected: {path}, a model as it was added. Got: another or no file.")


@contextmanager
def opened(folder: PurePath, sha256: str, name: str) -> Iterator[Path]:
    """Yield the path of a model, a file or a SavedModel's folder; a kept one lies there for the block's time only.

    Args:
        folder: where its archive is.
        sha256: of the model, see ``models.digest_of``.
        name: see ``name_of``.

    Raises:
        StoreCorrupt: its archive is missing or damaged.
        BackboneError: no model was kept, or it is not where it was any more, or another is there.
    """
    if not name:
        raise BackboneError(
            "The store has only the graph of this network, for `--engine openvino`: add it again from its own file."
        )
    if not is_kept(name):
        if not Path(name).exists() or models.digest_of(models.files_of(Path(name))) != sha256:
            raise BackboneError(f"Expected: {name} as it was added. Got: another or no file: add it again.")
        yield Path(name)
        return
    check(folder, sha256)
    path = archive(folder, sha256)
    with tempfile.TemporaryDirectory(prefix="penult-") as place:
        with zipfile.ZipFile(storage_of(path).local(path)) as kept:
            kept.extractall(place)  # leaves no folder: zipfile drops ".." and roots
        yield Path(place) if name == models.SAVED_MODEL else Path(place, Path(name).name)


def _is_sound(path: PurePath, sha256: str) -> bool:
    try:
        with zipfile.ZipFile(storage_of(path).local(path)) as kept:
            members = kept.infolist()
            if sum(member.file_size for member in members) > MAX_BYTES:
                return False
            digests = {}
            for member in members:
                with kept.open(member) as file:
                    digests[member.filename] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError):
        return False
    return models.joined_digest(digests) == sha256
