"""A real corpus of 256 classes from installed fonts: the same characters as drawn by many type designers.

    python examples/glyphs.py glyphs
    penult embed glyphs/manifest.csv

Each class is a character (the first kanji of JIS X 0208, in the order of that standard), each picture one font's
drawing of it. ``group`` is the folder of the font, so that a design is either trained on or tested on. Fonts: on
Debian, the packages ``fonts-*`` that hold Japanese or Chinese faces; the more, the larger the corpus.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SUFFIXES = {".ttf", ".otf", ".ttc"}
UNASSIGNED = "\U0010ffff"  # shows what a font draws for a character that it lacks
SIDE, MARGIN = 112, 8  # pixels


def characters(count: int) -> list[str]:
    """The first kanji of JIS X 0208: 94 a row, from row 16 on (EUC-JP 0xB0A1)."""
    return [bytes((0xB0 + at // 94, 0xA1 + at % 94)).decode("euc_jp") for at in range(count)]


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The character in black on white, centred; None where the font has no drawing of it."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top or bytes(font.getmask(character)) == bytes(font.getmask(UNASSIGNED)):
        return None
    picture = Image.new("L", (SIDE, SIDE), 255)
    at = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
    ImageDraw.Draw(picture).text(at, character, font=font, fill=0)
    return picture


def main() -> None:
    """Write the pictures and their manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the pictures and manifest.csv")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"), help="searched with its subfolders")
    parser.add_argument("--classes", type=int, default=256)
    parser.add_argument("--faces", type=int, default=2, help="how many fonts of one folder, evenly spaced")
    arguments = parser.parse_args()

    wanted = characters(arguments.classes)
    families: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(arguments.fonts.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.is_symlink():
            families[path.parent].append(path)
    rows = []
    for folder, files in families.items():
        for path in files[:: max(1, len(files) // arguments.faces)][: arguments.faces]:
            try:
                font = ImageFont.truetype(str(path), SIDE - 2 * MARGIN)
                drawn = [(character, draw(font, character)) for character in wanted]
            except OSError as error:  # FreeType's, of a broken font
                print(f"{path.name}: {error}, left out")
                continue
            held = [(character, picture) for character, picture in drawn if picture]
            if len(held) < 0.9 * len(wanted):
                continue
            for character, picture in held:
                name = f"{ord(character):x}/{path.stem}.png"
                (arguments.folder / name).parent.mkdir(parents=True, exist_ok=True)
                picture.save(arguments.folder / name)
                rows.append((name, character, folder.name))
    if not rows:
        parser.error(f"no font under {arguments.fonts} holds these characters: install one, such as fonts-vlgothic")
    with (arguments.folder / "manifest.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "label", "group"), *rows])
    print(f"{len(rows):,} pictures of {len(wanted)} classes in {arguments.folder}")


if __name__ == "__main__":
    main()
