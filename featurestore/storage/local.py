"""The storage on a local disk: fsync before every promise, atomic renames, links for first-wins, flock."""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path, PurePath

from featurestore.errors import StoreCorrupt, StoreError, trouble
from featurestore.storage.base import Stat, Wanted, register

MAX_HOLDER_BYTES = 200  # of a lock holder's name


@contextmanager
def refusals(path: PurePath) -> Iterator[None]:
    """Turn the OSError of a change to ``path`` into a StoreError for users: see ``trouble``."""
    try:
        yield
    except OSError as error:
        raise StoreError(trouble(error, path)) from error


class LocalStorage:
    """Files on a local disk; see ``Storage`` for what the methods promise."""

    grace, links = timedelta(0), True

    def stat(self, path: PurePath, follow: bool = True) -> Stat | None:
        """Return what is at a location, or None."""
        try:
            found = Path(path).stat(follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # a path with a NUL is a ValueError
            return None
        except PermissionError as error:
            raise StoreError(f"{path} may not be read: give this user the right to.") from error
        except OSError as error:  # for example a link to itself
            raise StoreCorrupt(f"Expected: a file at {path}. Got: {error.strerror}.") from error
        return _stat(found)

    def stats(self, folder: PurePath, names: Collection[str]) -> dict[str, Stat]:
        """Return what is at the names below a folder that are there."""
        return {name: found for name in names if (found := self.stat(folder / name)) is not None}

    @contextmanager
    def open(self, path: PurePath) -> Iterator[io.BufferedReader]:
        """Open a regular file for reading; do not wait for anything else in its place, such as a pipe."""
        if "\0" in str(path):
            raise StoreCorrupt(f"Expected: a file at {str(path)!r}. Got: embedded null byte.")
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise StoreCorrupt(f"Expected: a regular file at {path}. Got: something else.")
                yield file
        except PermissionError as error:
            raise StoreError(f"{path} may not be read: give this user the right to.") from error
        except OSError as error:
            raise StoreCorrupt(
                f"Expected: a file at {path}. Got: {error.strerror}; `penult doctor` brings back what can be had."
            ) from error

    @contextmanager
    def write(self, path: PurePath, durable: bool = True) -> Iterator[Path]:
        """Yield a temporary path beside ``path``; on success, its file replaces ``path``."""
        temporary = _beside(path)
        try:
            with refusals(path):
                yield temporary
                if durable:
                    self.flush(temporary)
                temporary.replace(path)
            if durable:
                self.flush(path.parent)
        finally:
            with suppress(OSError):  # if this fails too, the first error is the one to raise
                temporary.unlink(missing_ok=True)

    def create(self, path: PurePath, data: bytes) -> bool:
        """Write a file unless there is one; return whether this call wrote it."""
        temporary, created = _beside(path), True
        with refusals(path):
            try:
                temporary.write_bytes(data)
                self.flush(temporary)
                os.link(temporary, path)
            except FileExistsError:
                created = False
            finally:
                temporary.unlink(missing_ok=True)
        self.flush(path.parent)
        return created

    def replace(self, path: PurePath, data: bytes, token: str | None) -> bool:
        """Write a file if its token is still ``token``; the folder's lock makes the comparison and the write one."""
        with refusals(path), _flock(path.parent, fcntl.LOCK_EX):
            found = self.stat(path)
            if (found and found.token) != token:
                return False
            with self.write(path) as temporary:
                temporary.write_bytes(data)
        return True

    def list(self, folder: PurePath) -> list[PurePath]:
        """Return what is in a folder, sorted; not a glob, which is empty for a folder that this user may not list."""
        path = Path(folder)
        try:
            return sorted(path.iterdir()) if path.is_dir() else []
        except FileNotFoundError:  # removed in the meantime
            return []
        except OSError as error:
            raise StoreError(trouble(error, folder)) from error

    def walk(self, folder: PurePath) -> Iterator[tuple[PurePath, Stat]]:
        """Yield all files and links below a folder; a run may remove some meanwhile."""
        for parent, folders, names in os.walk(folder):
            for name in [*names, *folders]:
                path = Path(parent, name)
                with suppress(FileNotFoundError):
                    found = _stat(os.lstat(path))
                    if found.kind != "folder":
                        yield path, found

    def delete(self, path: PurePath) -> None:
        """Delete a file, a link, or a folder with all that is in it."""
        there = Path(path)
        with refusals(path):
            if there.is_dir() and not there.is_symlink():
                shutil.rmtree(there)
            else:
                there.unlink(missing_ok=True)

    def move(self, path: PurePath, to: PurePath) -> None:
        """Move a file, a link or a folder to where nothing is."""
        self.make_folder(to.parent)
        with refusals(path):
            Path(path).rename(to)
        self.flush(path.parent)
        self.flush(to.parent)

    def make_folder(self, path: PurePath) -> None:
        """Make a folder and those above it."""
        folder = Path(path)
        new = [above for above in (folder, *folder.parents) if not above.exists()]
        with refusals(path):
            folder.mkdir(parents=True, exist_ok=True)
        for made in new:
            self.flush(made.parent)

    def flush(self, path: PurePath, missing_ok: bool = False) -> None:
        """Flush a file or folder to the disk."""
        with refusals(path):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                if missing_ok:
                    return
                raise
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def lock(self, path: PurePath, holder: str) -> Iterator[str | None]:
        """Lock a file with flock, which the kernel frees however its holder ends; yield who else holds it."""
        with refusals(path.parent):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            file = io.FileIO(descriptor, "r+")  # no buffer, which close would flush to a full disk
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                yield file.read(MAX_HOLDER_BYTES).decode(errors="replace").strip() or "another run"
                return
            with suppress(OSError):  # on a full disk the lock holds without its holder's name
                os.ftruncate(file.fileno(), 0)
                file.write(holder.encode())
            yield None

    def confirm(self, path: PurePath) -> None:
        """Do nothing: the kernel takes no lock away."""

    @contextmanager
    def lease(self, folder: PurePath, alone: bool = False) -> Iterator[bool]:
        """Hold a folder with flock; yield False if it is busy, missing, or its file system cannot lock folders."""
        with _flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH) as held:
            yield held

    def changed(self, path: PurePath) -> None:
        """Do nothing: each look is a new one."""

    def uri(self, path: PurePath) -> str:
        """Return the absolute path: Lance would take a relative ``a:b`` for a URL."""
        return str(Path(path).absolute())

    def options(self, path: PurePath) -> dict[str, str]:
        """Return none."""
        return {}

    def refusal(self, error: BaseException, path: PurePath) -> StoreError | None:
        """Return None: what a disk refuses is in the number of the error."""
        return None

    def copies(self, folder: PurePath, wanted: Mapping[str, Wanted], make: bool) -> None:
        """Return None: files of a disk are read as they are."""

    def local(self, path: PurePath) -> Path:
        """Return the absolute path."""
        return Path(path).resolve()


def _stat(found: os.stat_result) -> Stat:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    token = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
    return Stat(kinds.get(stat.S_IFMT(found.st_mode), "other"), found.st_size, found.st_mtime_ns, token)


def _beside(path: PurePath) -> Path:
    """Return a new name for a temporary file in the same folder."""
    return Path(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"))


@contextmanager
def _flock(folder: PurePath, how: int) -> Iterator[bool]:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False  # whatever is done next in that folder raises the error
        return
    try:
        try:
            fcntl.flock(descriptor, how)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


register(type(Path()), LocalStorage())
