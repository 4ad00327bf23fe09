"""Odd names and odd places for images, and the whole zoo laid out in a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

from hostile.craft import SIZE, chunk, seeds, with_chunks
from hostile.zoo import Outcome, pictures

LONG = 255  # bytes, as long as a name may be on most file systems

NAMES: dict[bytes, bool] = {  # and whether a file of that name counts as an image
    b"new\nline.png": True,
    b"tab\tand\rreturn.png": True,
    b"\x01\x1b[31mcontrol\x7f.png": True,
    b"\xff\xfe not utf-8.png": True,
    b"\xed\xa0\x80 a surrogate.png": True,
    b"n" * (LONG - 4) + b".png": True,
    "😀".encode() * ((LONG - 4) // 4) + b".png": True,
    "👩‍🚀🏳️‍🌈.png".encode(): True,
    "caf\u00e9.png".encode(): True,
    "cafe\u0301.png".encode(): True,  # looks the same
    "z\u0300\u0301\u0302\u0303\u0304.png".encode(): True,
    "\u202egnp.exe.png".encode(): True,
    "\u2028\u00a0\u3000\ufeff.png".encode(): True,
    b"-rf.png": True,
    b"--help.png": True,
    b" .png": True,
    b"   leading and trailing   .png": True,
    b"%2F.png": True,
    b"%00%0a%.png": True,
    b"a#b?c&d=e;f.png": True,
    b"#.png": True,
    b"file:___etc_passwd.png": True,
    b"back\\slash.png": True,
    b"'single' \"double\" `back`.png": True,
    b"$(touch pwned) ; * | > ~.png": True,
    b"{0..9},{a,b}.png": True,
    b"<b>&amp;.png": True,
    b"=cmd().png": True,
    b"a,b;c.png": True,
    b"CON.png": True,
    b"a..png": True,
    b"UPPER.PNG": True,
    b"mIxEd.JpEg": True,  # the name does not say what it is
    b"two.jpg.png": True,
    b"png.tar.gz.png": True,
    b"...png": False,  # hidden
    b".png": False,
    b"..hidden.png": False,
    b"png": False,
    b"no extension": False,
    b"trailing.png ": False,
    b"trailing.png.": False,
    b"trailing.png\n": False,
    b"picture.\xff": False,
    b"picture.txt": False,
    b"....": False,
}


def named(name: bytes) -> bytes:
    """A content of its own for every name."""
    return with_chunks(chunk(b"tEXt", b"name\0" + name))


class Laid(NamedTuple):
    """What lies in a folder: the outcome of each path (bytes), and how much is left out or cannot be listed."""

    files: dict[bytes, Outcome]
    ignored: int
    problems: int


def build(folder: Path, without: tuple[str, ...] = ()) -> Laid:
    """Lay out the whole zoo, without some kinds of image. What may not be read, root may."""
    files: dict[Path, Outcome] = {}
    for name, animal in pictures().items():
        if name.partition("-")[0] not in without:
            files[_put(folder / "pictures" / name, animal.file())] = animal.expected
    for odd, listed in NAMES.items():
        path = _put(folder / "names" / os.fsdecode(odd), named(odd))
        if listed:
            files[path] = SIZE
    files |= _places(folder / "places")
    files[_put(folder / os.fsdecode(b"\xff\n.png") / "in a folder named so.png", named(b"folder"))] = SIZE
    (folder / "nothing here").mkdir()
    (folder / "places/up").symlink_to("..")
    _put(folder / "denied/unseen.png", named(b"unseen")).parent.chmod(0)
    _bury(folder / "deep")
    ignored = sum(not listed for listed in NAMES.values())
    return Laid({os.fsencode(path): outcome for path, outcome in files.items()}, ignored, problems=4)


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _places(folder: Path) -> dict[Path, Outcome]:
    """Files that are none, and others that cannot be read."""
    whole = _put(folder / "whole.png", named(b"whole"))
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket.jpg")  # a socket's own path has at most 108 bytes
        os.close(here)
    for name, target in {
        "link.png": "whole.png",
        "to-fifo.jpg": "fifo.jpg",
        "endless.jpg": "/dev/zero",
        "null.jpg": "/dev/null",
        "dangling.jpg": "nowhere.jpg",
        "below-a-file.jpg": "whole.png/x.jpg",
        "self.jpg": "self.jpg",
        "ping.jpg": "pong.jpg",
        "pong.jpg": "ping.jpg",
        "to-folder": "folder.jpg",
    }.items():
        (folder / name).symlink_to(target)
    (folder / "hard.png").hardlink_to(whole)
    _put(folder / "folder.jpg/inside.png", named(b"inside"))
    _put(folder / "denied.png", named(b"denied")).chmod(0)
    for name, size in (("sparse.jpg", 2**40), ("over.png", 2**28 + 1)):
        os.truncate(_put(folder / name, seeds()["plain.png"]), size)
    outcomes: dict[Outcome, str] = {
        SIZE: "whole.png link.png hard.png folder.jpg/inside.png to-folder/inside.png",
        "unreadable": "fifo.jpg to-fifo.jpg socket.jpg endless.jpg null.jpg self.jpg ping.jpg pong.jpg denied.png",
        "vanished": "dangling.jpg below-a-file.jpg",
        "too_large": "sparse.jpg over.png",
    }
    return {folder / name: outcome for outcome, names in outcomes.items() for name in names.split()}


def _bury(top: Path) -> None:
    """An image below more folders than a path can name."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * LONG, dir_fd=here)
        below = os.open("d" * LONG, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("buried.png", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        file.write(named(b"buried"))
    os.close(here)
