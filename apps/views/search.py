"""Search: items near words, a picture or a sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from apps.cards import as_address, grid, heading, section
from apps.session import UPLOAD_TYPES, Person, dial, has, kindly, person, recommender, uploaded
from mmrec.embedding import read_media

if TYPE_CHECKING:
    from mmrec import Recommender

ASKS = {"text": "Words", "image": "A picture", "audio": "A sound"}


def search(now: Recommender, who: Person) -> None:
    """The question and its answers."""
    asks = [modality for modality in ASKS if modality in now.spaces]
    words, file = "", None
    with st.container(border=True, key="dials"):
        left, right, narrow = st.columns([1.25, 2.2, 0.9], gap="large")
        called = ASKS.__getitem__
        ask = left.segmented_control("Search by", asks, format_func=called, key=dial("ask", asks[0])) or asks[0]
        k = narrow.slider("How many", 5, 50, step=5, key=dial("found", 15))
        spelled = narrow.toggle(
            "Spell",
            key=dial("spell", False),
            help="Off: the items nearest in the space of vectors. On: the sequence model hears the question and spells "
            "the semantic IDs that answer it.",
        )
        if ask == "text":
            words = right.text_input(
                "Words", placeholder="a fruit, something that flies, a lively fiddle tune", key=dial("words", "")
            ).strip()
        else:
            file = right.file_uploader(ASKS[ask], type=UPLOAD_TYPES[ask], key=f"search-{ask}")
    if not words and file is None:
        section("To begin with", "some of what is there")
        grid(now.starters(k), who, "search")
        return
    with kindly(), uploaded(file) as path:
        with st.spinner("Searching"):
            picture, sound = (path if ask == kind else None for kind in ("image", "audio"))
            found = now.search(words, image=picture, audio=sound, k=k, by="codes" if spelled else "neighbours")
        if picture is not None:  # shown only once the safe reader has taken it
            right.html(f'<img class="given" src="{as_address(read_media(str(picture), "image"))}" alt="your picture">')
        elif file is not None:
            right.audio(file.getvalue(), format=file.type)
        section("Spelled in answer" if spelled else "Nearest items", f"{len(found)} of {len(now.catalog):,}")
        grid(found, who, "search")


heading("Search", "Ask in words, or show a picture or a sound: all three are understood in the same space.")
if has(recommender(), "Search", "index", "ids"):
    search(recommender(), person())
