"""For you: what exists in the catalog that this person will want next, and why."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from apps.cards import grid, heading, section
from apps.session import ENOUGH, Person, dial, has, kindly, person, recommender

Mode = Literal["fused", "dense", "codes", "hybrid"]
FUSED: Mode = "fused"
MODES: dict[Mode, str] = {FUSED: "Both", "dense": "Vectors", "codes": "Semantic IDs", "hybrid": "All, and who said it"}
FIRST = 15


def meet(who: Person) -> None:
    """Somebody new: a few items that tell much about a taste."""
    now = recommender()
    left = ENOUGH - len(who.likes)
    heading("What do you like?", f"Like {ENOUGH} things and the recommendations begin. Nothing is trained anew for it.")
    told = f"{left} more to go" if who.likes else "any of them will do"
    section("A few things to start with", told)
    st.progress(len(who.likes) / ENOUGH)
    n = st.session_state.setdefault("starters", FIRST)
    with kindly():
        grid(now.starters(n), who, "start")
    if n < len(now.catalog):
        st.button("Show more", icon=":material/add:", on_click=_more, key="more")


def _more() -> None:
    st.session_state["starters"] += FIRST


def recommend(who: Person) -> None:
    """The list, under the dials that change it."""
    now = recommender()
    lead = "Picked for you from what you like; every thumb changes the list at once."
    if who.user is not None:
        lead = "Picked from this person's history and from what you say here; every thumb changes the list at once."
    heading("For you", lead)
    with st.container(border=True, key="dials"):
        words, explore, avoid = st.columns([2, 1, 1], gap="large")
        hint = "the sea, something sweet, a slow harp"
        text = words.text_input("In the mood for", placeholder=hint, key=dial("mood", ""))
        bolder = "0 is the best guess; more is a bolder one."
        exploration = explore.slider("Exploration", 0.0, 2.0, step=0.1, key=dial("exploration", 0.0), help=bolder)
        pushes = "How hard what you disliked pushes its like away."
        strength = avoid.slider("Keep away from dislikes", 0.0, 2.0, step=0.1, key=dial("avoid", 1.0), help=pushes)
        with st.expander("How it is found"):
            left, middle, right = st.columns(3, gap="large")
            called = MODES.__getitem__
            spelt = (
                "Spelling semantic IDs by beam search, nearest vectors, the two fused, or IDs, neighbours and dreams."
            )
            modes = [mode for mode in MODES if mode != "hybrid" or now.workspace.current("hybrid") is not None]
            key = dial("mode", FUSED)
            mode = left.segmented_control("What proposes", modes, format_func=called, key=key, help=spelt)
            key = dial("weight", 1.5)
            weight = middle.slider("Weight of the words", 0.0, 4.0, step=0.1, disabled=not text, key=key)
            k = right.slider("How many", 5, 40, step=5, key=dial("k", 10))
    if exploration:
        again = "Another draw at this exploration"
        st.button("Shuffle", icon=":material/shuffle:", on_click=_shuffle, key="shuffle", help=again)
    with kindly():
        with st.spinner("Looking"):
            items = now.recommend(
                **who.taste,
                k=k,
                mode=mode or FUSED,
                text=text.strip(),
                words=weight,
                avoid=strength,
                exploration=exploration,
                seed=st.session_state.get("shuffles", 0),
            )
        st.session_state["recommended"] = (who.key, [item.item_id for item in items])
        if items:
            grid(items, who, "recommend")
        else:
            st.info("Nothing is left that you have not met.")


def _shuffle() -> None:
    st.session_state["shuffles"] = st.session_state.get("shuffles", 0) + 1


if has(recommender(), "Recommending", "ids", "retriever"):
    (recommend if person().known else meet)(person())
