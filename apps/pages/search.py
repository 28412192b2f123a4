"""Search: items near words, a picture or a sound."""

from __future__ import annotations

import streamlit as st

from apps.cards import as_address, grid, heading, section
from apps.session import UPLOAD_TYPES, kindly, needs, person, recommender, uploaded
from mmrec.stages import read_media

ASKS = {"text": "Words", "image": "A picture", "audio": "A sound"}

now, who = recommender(), person()
heading("Search", "Ask in words, or show a picture or a sound: all three are heard in the same space.")
needs(now, "index", "The index")
asks = [modality for modality in ASKS if modality in now.spaces]
with st.container(border=True, key="dials"):
    left, right = st.columns([1, 2], gap="large")
    ask = left.segmented_control("Search by", asks, default=asks[0], format_func=ASKS.__getitem__) or asks[0]
    words, file = "", None
    if ask == "text":
        words = right.text_input("Words", placeholder="a fruit, something that flies, a lively fiddle tune").strip()
    else:
        file = right.file_uploader(ASKS[ask], type=UPLOAD_TYPES[ask], key=f"search-{ask}")
    k = left.slider("How many", 4, 48, 16, 4)

with kindly(), uploaded(file) as path:
    if words or path:
        with st.spinner("Searching"):
            picture, sound = (path if ask == kind else None for kind in ("image", "audio"))
            found = now.search(words, image=picture, audio=sound, k=k)
        if ask == "image" and path is not None:  # shown only once the safe reader has taken it
            right.html(f'<img class="given" src="{as_address(read_media(str(path), "image"))}" alt="your picture">')
        elif file is not None:
            right.audio(file.getvalue(), format=file.type)
        section("Nearest items", f"{len(found)} of {len(now.catalog):,}")
        grid(found, who, "search")
    else:
        section("To begin with", "some of what is there")
        grid(now.starters(k), who, "search")
