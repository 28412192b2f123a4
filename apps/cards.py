"""How items and dreams look: covers, cards in a grid, thumbnails in a strip."""

from __future__ import annotations

import base64
import colorsys
import io
import math
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from apps.session import Person, draw_again, rate
from mmrec.embedding import read_media

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmrec import Recommender
    from mmrec.recommender import Item

THUMBNAIL = 320


def grid(items: Sequence[Item], person: Person, origin: str) -> None:
    """Cards side by side, as many as fit; each remembers a like or dislike under `origin`."""
    with st.container(key=f"grid-{origin}"):
        for item in items:
            card(item, person, origin)


def card(item: Item, person: Person, origin: str) -> None:
    """One item: its cover, what its kind has in common, its title, the reason, a player, and two buttons."""
    name = f"{origin}-{item.item_id}"
    with st.container(border=True, key=f"card-{name}"):
        title = escape(item.title or item.item_id)
        picture = f'<figure class="cover"><img src="{cover(item)}" alt="{title}"></figure>'
        if item.audio is not None:  # the player lies on the cover
            st.html(picture)
            st.audio(str(item.audio))
            picture = ""
        st.html(
            f'{picture}<p class="kind">{escape(item.label) or "&nbsp;"}</p>'
            f'<p class="title">{title}</p>'
            f'<p class="reason">{escape(item.reason)}</p>'
        )
        thumbs(item.item_id, person, origin, name)


@st.fragment
def thumbs(item_id: str, person: Person, origin: str, name: str) -> None:
    """Like and dislike; pressed once more, a thumb is taken back.

    A fragment, for Streamlit keeps a queue of the clicks in fragments; of others it forgets those that come in while it
    begins to draw the page.
    """
    opinion = person.opinion(item_id)
    with st.container(horizontal=True, key=f"thumbs-{name}"):
        for value, word, icon in ((1, "like", "thumb_up"), (-1, "dislike", "thumb_down")):
            chosen = opinion == value
            st.button(
                word.capitalize() + ("d" if chosen else ""),
                key=f"{word}-{name}",
                icon=f":material/{icon}:",
                type="primary" if chosen else "secondary",
                help="Take it back" if chosen else "More like this" if value > 0 else "Less like this",
                on_click=rate,
                args=(person.key, item_id, 0 if chosen else value, origin),
            )
    draw_again()


def strip(now: Recommender, item_ids: Sequence[str], shown: int = 18) -> None:
    """Small covers in rows, newest first, nothing to press."""
    items = [item_of(now, item_id) for item_id in list(item_ids)[::-1][:shown]]
    pictures = "".join(
        f'<img src="{cover(i)}" alt="{escape(i.title)}" title="{escape(i.title or i.item_id)}">' for i in items
    )
    rest = len(item_ids) - len(items)
    st.html(f'<div class="strip">{pictures}</div>' + (f'<p class="quiet">and {rest:,} more</p>' if rest else ""))


def item_of(now: Recommender, item_id: str) -> Item:
    """An item of the catalog as it is shown, without a reason."""
    from mmrec.recommender import Item

    row = now.catalog.index[item_id]
    title = now.catalog.titles[row] or item_id
    return Item(item_id, title, 0.0, image=now.catalog.image_path(row), audio=now.catalog.audio_path(row))


def cover(item: Item) -> str:
    """What an item looks like, as a data address: its picture, or a drawn cover for music and for words alone."""
    if item.image is not None and item.image.is_file():
        return _thumbnail(str(item.image), item.image.stat().st_mtime)
    return drawn_cover(item.item_id, "" if item.audio is not None else item.title)


@st.cache_data(show_spinner=False, max_entries=5000)
def _thumbnail(path: str, modified: float) -> str:
    try:
        picture = read_media(path, "image")
    except ValueError:  # the file was damaged after it was ingested
        return drawn_cover(path, Path(path).stem)
    return as_address(picture)


def as_address(picture: Image, side: int = THUMBNAIL) -> str:
    """A picture, at most `side` pixels wide and high, as a data address."""
    small = picture.copy()
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=86)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


@st.cache_data(show_spinner=False, max_entries=5000)
def drawn_cover(name: str, words: str = "") -> str:
    """A cover for what has no picture, always the same for one name: rings of sound, or the first words."""
    seed = zlib.crc32(name.encode())
    generator = np.random.default_rng(seed)
    hue = (seed % 997) / 997
    ground, low, high = (
        _colour(hue + d, s, v) for d, s, v in ((0, 0.30, 0.30), (0.06, 0.42, 0.62), (0.12, 0.34, 0.95))
    )
    if words:
        lines, line = [], ""
        for word in words.split()[:9]:
            if len(line) + len(word) > 11 and line:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        lines = [*lines, line][:4]
        body = "".join(
            f'<text x="22" y="{200 - 34 * (len(lines) - n)}" font-family="Georgia, serif" font-size="29" '
            f'fill="{high}">{escape(text[:13])}</text>'
            for n, text in enumerate(lines, 1)
        )
        body = f'<circle cx="178" cy="38" r="64" fill="{low}"/>{body}'
    else:
        body = f'<circle cx="110" cy="110" r="34" fill="{low}"/>'
        phases = generator.uniform(0, 2 * math.pi, 4)
        for n in range(56):
            angle = 2 * math.pi * n / 56
            swing = sum(math.sin((k + 2) * angle + phase) / (k + 1.2) for k, phase in enumerate(phases))
            reach = 56 + 15 * (1.4 + swing) + float(generator.uniform(0, 9))
            x, y = math.cos(angle), math.sin(angle)
            body += (
                f'<line x1="{110 + 46 * x:.1f}" y1="{110 + 46 * y:.1f}" x2="{110 + reach * x:.1f}" '
                f'y2="{110 + reach * y:.1f}" stroke="{high}" stroke-width="3.4" stroke-linecap="round"/>'
            )
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 220 220" width="220" height="220">'
        f'<rect width="220" height="220" fill="{ground}"/>{body}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()


def heading(title: str, lead: str) -> None:
    """The top of a page."""
    st.html(f'<header class="page"><h1>{escape(title)}</h1><p>{lead}</p></header>')


def section(title: str, note: str = "") -> None:
    """A heading within a page, with a quiet line beside it."""
    st.html(f'<div class="section"><h2>{escape(title)}</h2><span>{escape(note)}</span></div>')


def _colour(hue: float, saturation: float, value: float) -> str:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
