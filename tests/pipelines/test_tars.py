"""Headers of tars, bit by bit: names, sizes, checksums, extended headers, and where damage is said to be."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import pytest

from pipelines.sources import tars, uris
from pipelines.sources.tars import Member, TarDamaged


def header(
    name: bytes = b"a", size: int | bytes = 0, kind: bytes = b"0", prefix: bytes = b"", magic: bytes = b"ustar\0"
):
    """A header block, without its checksum."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157], block[257:263], block[345:500] = kind, magic.ljust(6, b"\0"), prefix.ljust(155, b"\0")
    return block


def summed(block: bytearray, signed: bool = False, off: int = 0) -> bytes:
    """The block with its checksum, by the definition: the sum of the bytes, those of the checksum being blanks."""
    block[148:156] = b" " * 8
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % (total + off)
    return bytes(block)


def body(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def extended(kind: bytes, data: bytes) -> bytes:
    return summed(header(b"extended", len(data), kind)) + body(data)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = next(n for n in range(1000) if n == len(str(n)) + len(rest))
    return str(length).encode() + rest


def listed(path: Path, data: bytes) -> tuple[list[Member], str]:
    """The members of a tar, and where it is said to be damaged."""
    path.write_bytes(data)
    found: list[Member] = []
    with uris.open_blob(uris.uri_of(path)) as blob:
        try:
            for member in tars.members(blob):
                found.append(member)
        except TarDamaged as damaged:
            return found, str(damaged)
    return found, ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.tar"


END = bytes(1024)


def test_kinds_of_members_and_where_their_data_lie(path: Path) -> None:
    data, expected, at = b"", [], 0
    for kind, what, has_data in (
        (b"0", "file", True), (b"\0", "file", True), (b"7", "file", True), (b"1", "other", False),
        (b"2", "other", False), (b"3", "other", False), (b"4", "other", False), (b"5", "folder", False),
        (b"6", "other", False), (b"V", "other", True), (b"Z", "other", True),
    ):  # fmt: skip
        for size in (0, 1, 511, 512, 513):
            name = b"m%d%s" % (size, kind.strip(b"\0"))
            data += summed(header(name, size, kind)) + (body(b"x" * size) if has_data else b"")
            expected.append(Member(name.decode(), at + 512, size, what))
            at = len(data)
    assert listed(path, data + END) == (expected, "")


def test_names(path: Path) -> None:
    for block, name, kind in (
        (header(b"x" * 100), "x" * 100, "file"),
        (header(b"a\0b"), "a", "file"),
        (header(b"a", prefix=b"p/q"), "p/q/a", "file"),
        (header(b"a", prefix=b"p" * 155), "p" * 155 + "/a", "file"),
        (header(b"a", prefix=b"p/q", magic=b"ustar "), "a", "file"),  # GNU's, which has times there
        (header(b"a", prefix=b"p/q", magic=b""), "a", "file"),
        (header(b"a//", kind=b"5"), "a", "folder"),
        (header(b"a/", kind=b"\0"), "a", "folder"),  # older than ustar
        (header(b"a/", kind=b"0"), "a", "file"),
        (header(b"\xff\xc3\xbc"), "\udcff\xfc", "file"),
    ):
        assert listed(path, summed(block) + END) == ([Member(name, 512, 0, kind)], "")


def test_checksums_of_bytes_with_a_sign_and_without(path: Path) -> None:
    for name in (b"plain", b"\x7f\x80\xff", b"\xff" * 100):
        for signed in (False, True):
            block = header(name, prefix=b"\x80\x7f")
            member = Member(("\udc80\x7f/" + name.decode("utf-8", "surrogateescape")), 512, 0, "file")
            assert listed(path, summed(block, signed) + END) == ([member], "")
            for off in (1, -1, 128, -255):
                assert listed(path, summed(block, signed, off) + END) == ([], "byte 0")
    block = bytearray(summed(header()))
    block[148:156] = b"no sum, "
    assert listed(path, bytes(block) + END) == ([], "byte 0")
    block[148:156] = b"\x80" + sum(b" " * 8 + block[:148] + block[156:]).to_bytes(7)
    assert len(listed(path, bytes(block) + END)[0]) == 1


@pytest.mark.parametrize(
    ("field", "size"),
    [
        (b"00000000003\0", 3), (b"          3 ", 3), (b"3\0 ignored  ", 3), (b"\0" * 12, 0), (b" " * 12, 0),
        (b"000000000010", 8), (b"\x80" + (3).to_bytes(11), 3), (b"\x80" + (513).to_bytes(11), 513),
        (b"\x80" + (2**62 + 1).to_bytes(11), None), (b"\xff" * 12, None), (b"00000000008\0", None),
        (b"0x000000003\0", None), (b"-0000000003\0", None), (b"777777777777", 8**12 - 1),
        (b"\x80" + (2**62).to_bytes(11), 2**62),
    ],
)  # fmt: skip
def test_sizes(path: Path, field: bytes, size: int | None) -> None:
    first = summed(header(b"first"))
    members, damage = listed(path, first + summed(header(b"a", field[:12])) + bytes(2048))
    if size is None:
        assert len(members) == 1 and damage == "byte 512"
    else:
        assert members[1] == Member("a", 1024, size, "file")
        assert damage == ("" if size < 1024 else f"byte {1024 + -(-size // 512) * 512}" if size < 2**60 else damage)


def test_records_of_extended_headers_are_of_the_next_member(path: Path) -> None:
    long = b"d" * 300 + b"/a.jpg"
    for told in (
        extended(b"x", record(b"path", long)),
        extended(b"X", record(b"mtime", b"1.5") + record(b"path", long)),
        extended(b"L", long + b"\0"),
        extended(b"L", long),
        extended(b"K", b"a link") + extended(b"L", long + b"\0"),
        extended(b"g", record(b"path", b"of all")) + extended(b"x", record(b"path", long)),
        extended(b"x", record(b"path", long)) + extended(b"x", record(b"path", b"other")),  # the first one counts
        extended(b"L", long + b"\0") + extended(b"x", record(b"path", b"other")),
        extended(b"x", record(b"path", b"old") + record(b"path", long)),  # the last one of a header does
        extended(b"x", record(b"path", long) + b"\0garbage"),
    ):
        members, damage = listed(path, told + summed(header(b"a")) + summed(header(b"b")) + END)
        assert [member.name for member in members] == [long.decode(), "b"] and not damage
    told = extended(b"x", record(b"size", b"3"))
    data = told + summed(header(b"a", 0)) + body(b"abc") + summed(header(b"b")) + END
    assert listed(path, data) == ([Member("a", 1536, 3, "file"), Member("b", 2560, 0, "file")], "")
    size_then_name = extended(b"x", record(b"size", b"700")) + extended(b"L", b"name") + summed(header(b"a"))
    assert listed(path, size_then_name + bytes(1024) + END)[0] == [Member("name", 2560, 700, "file")]


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=b\n", b"7 a=b\n", b"x a=b\n", b" a=b\n", b"0 a=b\n", b"-6 a=b\n", b"6a=b\n", b"99999999 a=b\n", b"2 ",
        record(b"a", b"b") + b"1", b"3 \n" + b"2\n",
    ],
)  # fmt: skip
def test_records_that_are_none(path: Path, records: bytes) -> None:
    first = summed(header(b"first"))
    _, damage = listed(path, first + extended(b"x", records) + summed(header(b"a")) + END)
    whole = records == b"5 a=b\n"  # whose rest is one more record that does not end
    assert damage == "byte 512" or whole


def test_sizes_in_records(path: Path) -> None:
    for text, good in ((b"3", True), (b"0000000000000000003", True), (b"00000000000000000003", False), (b"-3", False),
                       (b"3.0", False), (b"", False), (b"1_0", False)):  # fmt: skip
        members, damage = listed(path, extended(b"x", record(b"size", text)) + summed(header(b"a")) + END * 2)
        assert (
            (members == [Member("a", 1536, 3, "file")] and not damage)
            if good
            else (not members and damage == "byte 1024")
        )
    members, _ = listed(path, extended(b"x", record(b"size", b"9" * 19)) + summed(header(b"a")) + END)
    assert members == [Member("a", 1536, 2**62, "file")]


def test_extended_headers_are_cut_or_too_long(path: Path) -> None:
    first = summed(header(b"first"))
    for size, good in ((tars.MAX_HEADER_BYTES, True), (tars.MAX_HEADER_BYTES + 1, False)):
        name = b"n" * size
        members, damage = listed(path, first + extended(b"L", name) + summed(header(b"a")) + END)
        assert ([len(m.name) for m in members] == [5, size]) if good else (len(members) == 1 and damage == "byte 512")
    assert listed(path, first + summed(header(b"x", 600, b"x")) + b"9" * 599)[1] == "byte 512"
    assert listed(path, first + extended(b"L", b"name") + END)[1] == "byte 1536"  # of no member
    assert listed(path, first + extended(b"g", record(b"a", b"b")) + END)[1] == ""


def test_sparse_members_are_no_files_and_their_data_are_passed_over(path: Path) -> None:
    block = header(b"sparse", 3, b"S")
    block[482] = 1
    maps = [bytes(504) + b"\1" + bytes(7), bytes(512)]
    data = summed(block) + b"".join(maps) + body(b"abc") + summed(header(b"b")) + END
    assert listed(path, data) == ([Member("sparse", 1536, 3, "other"), Member("b", 2560, 0, "file")], "")
    told = extended(b"x", record(b"GNU.sparse.major", b"1")) + summed(header(b"sparse", 3)) + body(b"abc")
    assert listed(path, told + summed(header(b"b")) + END)[0] == [
        Member("sparse", 1536, 3, "other"),
        Member("b", 2560, 0, "file"),
    ]
    told = extended(b"x", record(b"xGNU.sparse.", b"1")) + summed(header(b"a"))
    assert listed(path, told + END)[0] == [Member("a", 1536, 0, "file")]


def test_a_tar_ends_at_its_end_or_at_any_end_mark(path: Path) -> None:
    one = summed(header(b"a", 3)) + body(b"abc")
    for end in (bytes(512), END, bytes(10240), bytes(3 * 2**18 + 512)):
        assert listed(path, one + end)[1] == ""
        members, damage = listed(path, one + end + one + end)
        assert [member.offset for member in members] == [512, 1536 + len(end)] and not damage
        assert listed(path, one + end + b"x" * 512)[1] == f"byte {len(one + end)}"
    assert listed(path, one) == ([Member("a", 512, 3, "file")], "byte 1024")
    assert listed(path, one + bytes(511))[1] == "byte 1024"
    assert listed(path, b"") == ([], "byte 0")


def test_an_error_of_the_disk_among_zeros_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no holes says so, and the zeros are read."""
    real = os.lseek

    def lseek(descriptor: int, at: int, how: int) -> int:
        raise OSError(errno.EINVAL, "no holes")

    one = summed(header(b"a"))
    monkeypatch.setattr(os, "lseek", lseek)
    assert [m.offset for m in listed(path, one + bytes(50_000 // 512 * 512) + one + END)[0]] == [512, 50_688]
    monkeypatch.setattr(os, "lseek", real)
    assert [m.offset for m in listed(path, one + bytes(50_000 // 512 * 512) + one + END)[0]] == [512, 50_688]


def test_pythons_own_tars_have_the_same_members(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("p" * 90 + "/" + "n" * 90)
        tar.addfile(member)
    with uris.open_blob(uris.uri_of(path)) as blob:
        assert [found.name for found in tars.members(blob)] == [member.name]
