"""Seeded damage to image files and tars: blind, and with a sense for where a format keeps its numbers."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

ODD_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
MOST = 4  # mutations of one file


def mutant(random_: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the files, damaged a few times."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.randint(1, MOST)):
        kinds = BLIND + _knowing(data) * 3
        random_.choice(kinds)(random_, data, seeds)
        if not data:
            break
    return bytes(data)


Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _flip(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    for _ in range(random_.choice((1, 1, 2, 8))):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def _overwrite(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = random_.randrange(len(data))
    count = min(random_.choice((1, 4, 64, 1024)), len(data) - at)
    data[at : at + count] = random_.choice((bytes(count), b"\xff" * count, random_.randbytes(count)))


def _number(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    value = struct.pack(random_.choice("<>") + random_.choice("HI"), 0)
    value = random_.choice(ODD_NUMBERS).to_bytes(8, "little")[: len(value)]
    at = random_.randrange(len(data))
    data[at : at + len(value)] = random_.choice((value, value[::-1]))


def _cut(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[random_.randrange(len(data)) :]


def _remove(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = random_.randrange(len(data))
    del data[at : at + random_.choice((1, 2, 16, 512))]


def _insert(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = random_.randrange(len(data))
    data[at:at] = random_.randbytes(random_.choice((1, 2, 16, 512)))


def _repeat(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = random_.randrange(len(data))
    part = data[at : at + random_.choice((1, 8, 100, 2000))]
    data[at:at] = part * random_.choice((1, 2, 50, 1000))


def _splice(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = random_.choice(seeds)
    begin, end = sorted((random_.randrange(len(other)), random_.randrange(len(other))))
    at = random_.randrange(len(data))
    data[at : at + random_.choice((0, end - begin))] = other[begin:end]


BLIND: list[Mutation] = [_flip, _overwrite, _number, _cut, _remove, _insert, _repeat, _splice]


def _knowing(data: bytearray) -> list[Mutation]:
    """The mutations for a format that this file still begins as."""
    for magic, mutations in KNOWING.items():
        if data.startswith(magic):
            return mutations
    return [_tar_field] if data[257:262] == b"ustar" else []


def _png_chunk(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Damage a chunk's body, or its kind or its place, under a right checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data) and (end := at + 12 + int.from_bytes(data[at : at + 4])) <= len(data):
        chunks.append((at, end))
        at = end
    if not chunks:
        return
    begin, end = random_.choice(chunks)
    kind, body = data[begin + 4 : begin + 8], data[begin + 8 : end - 4]
    if body and random_.random() < 0.7:
        random_.choice((_flip, _overwrite, _number, _cut, _repeat))(random_, body, seeds)
    else:
        kind = bytearray(
            random_.choice((b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"zTXt", b"iCCP", b"acTL", b"fcTL", b"IHDR"))
        )
    made = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    data[begin : random_.choice((begin, end, end))] = made


def _jpeg_segment(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Change a segment's marker, length or body."""
    at = 2
    found = []
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        found.append(at)
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if not found:
        return
    begin = random_.choice([*found, at]) if at + 8 < len(data) else random_.choice(found)
    what = random_.randrange(3)
    if what == 0 and begin + 1 < len(data):
        data[begin + 1] = random_.randrange(0xC0, 0x100)
    elif what == 1:
        data[begin + 2 : begin + 4] = random_.choice(ODD_NUMBERS).to_bytes(8)[-2:]
    else:
        place = begin + 4 + random_.randrange(16)
        data[place : place + 1] = bytes([random_.choice((0, 1, 2, 4, 17, 63, 128, 255, random_.randrange(256)))])


def _tiff_entry(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Change a directory entry's tag, type, count or value."""
    order, big = "<" if data[:1] == b"I" else ">", 43 in data[2:4]
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        size, start = (20, at + 8) if big else (12, at + 2)
        place = start + size * random_.randrange(min(count, 100) or 1)
        layout = order + random_.choice("HI")
        field = random_.choice((0, 2, 4, 12 if big else 8))
        numbers = (*ODD_NUMBERS, random_.randrange(254, 350), at, len(data))
        struct.pack_into(
            layout, data, place + field, random_.choice(numbers) & (0xFFFF if layout[1] == "H" else 2**32 - 1)
        )
    except struct.error:
        pass


def _header_number(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Put an odd number into the first 64 bytes, where GIF, BMP and WebP keep sizes."""
    value = random_.choice(ODD_NUMBERS).to_bytes(8, "little")[: random_.choice((1, 2, 3, 4))]
    at = random_.randrange(4, 64)
    data[at : at + len(value)] = value


def _riff_chunk(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Change a chunk's kind or size, and make the file's size right."""
    at, found = 12, []
    while at + 8 <= len(data):
        found.append(at)
        at += 8 + (size := int.from_bytes(data[at + 4 : at + 8], "little")) + size % 2
    if found:
        at = random_.choice(found)
        if random_.random() < 0.5:
            data[at : at + 4] = random_.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP"))
        else:
            data[at + 4 : at + 8] = random_.choice(ODD_NUMBERS).to_bytes(8, "little")[:4]
    data[4:8] = max(0, len(data) - 8).to_bytes(4, "little")


def _tar_field(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Damage a header's field, under a right checksum."""
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return
    at = random_.choice(headers)
    begin, end = random_.choice(
        ((0, 100), (124, 136), (124, 136), (156, 157), (156, 157), (157, 257), (345, 500), (482, 483))
    )
    count = end - begin
    octal = b"%0*o\0" % (count - 1, random_.choice(ODD_NUMBERS)) if count > 1 else b""
    values = (
        bytes(count),
        b"\xff" * count,
        random_.randbytes(count),
        octal[-count:],
        b"\x80" + random_.choice(ODD_NUMBERS).to_bytes(16)[17 - count :] if 1 < count < 18 else b"x" * count,
        random_.choice(b"0123456789gxXLKSVD\0").to_bytes() * count,
    )
    data[at + begin : at + end] = (random_.choice(values) + bytes(count))[:count]
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


KNOWING: dict[bytes, list[Mutation]] = {
    b"\x89PNG": [_png_chunk],
    b"\xff\xd8": [_jpeg_segment],
    b"II": [_tiff_entry],
    b"MM": [_tiff_entry],
    b"RIFF": [_riff_chunk, _header_number],
    b"GIF": [_header_number],
    b"BM": [_header_number],
}
