"""The app's frame: navigation, the person at the side, credits at the foot. Started by `mmrec app -w WORKSPACE`."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from apps.cards import cover, item_of, strip
from apps.session import (
    Person,
    become,
    draw_again,
    keep_dials,
    new_guest,
    notice,
    person,
    rate,
    recommender,
    users,
    workspace_root,
)
from mmrec.errors import MmrecError

if TYPE_CHECKING:
    from mmrec import Recommender

SHOWN_OPINIONS = 12
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="9" fill="#0f766e"/>'
    '<circle cx="12" cy="17" r="5.5" fill="#faf8f4"/><circle cx="22" cy="11" r="3.2" fill="#f0a585"/></svg>'
)


def main() -> None:
    """Draw the frame and, in it, the page that was chosen."""
    st.set_page_config(page_title="mmrec", page_icon=ICON, layout="wide")
    st.html(Path(__file__).with_name("style.css"))
    page = st.navigation(
        [
            st.Page("views/for_you.py", title="For you", icon=":material/favorite:", default=True),
            st.Page("views/dream.py", title="Dream", icon=":material/auto_awesome:"),
            st.Page("views/search.py", title="Search", icon=":material/search:"),
            st.Page("views/map.py", title="Map", icon=":material/scatter_plot:"),
            st.Page("views/evaluation.py", title="Evaluation", icon=":material/monitoring:"),
        ],
        position="top",
    )
    keep_dials()
    st.session_state.pop("rated", None)
    try:
        now = recommender()
        who = person()
    except MmrecError as error:
        notice(
            "This workspace cannot be shown yet", error.message, error.mend or f"mmrec run RECIPE -w {workspace_root()}"
        )
        return
    st.query_params["person"] = who.key
    with st.sidebar:
        choose_person(now, who)
        show_taste(now, who)
    page.run()
    show_credits(now)


def choose_person(now: Recommender, who: Person) -> None:
    """Somebody of the log, or somebody new."""
    st.html('<p class="brand">mmrec</p>')
    people = users(now)
    guest = who.key if who.user is None else st.session_state.get("guest") or new_guest()
    st.session_state["guest"] = guest
    options = [guest, *people]
    tag = " · simulated" if now.recipe.source.simulated else ""

    def chosen() -> None:
        become(st.session_state["who"])

    st.session_state["who"] = who.key
    st.selectbox(
        "Who is this for?",
        options,
        key="who",
        format_func=lambda key: "Someone new" if key == guest else f"{key}{tag}",
        on_change=chosen,
        help="Type to search the people of the log.",
    )
    if who.user is None:
        st.caption(f"You are **{who.name}**. The address of this page keeps what you like.")
        if who.likes or who.dislikes:
            st.button(
                "Start over", icon=":material/restart_alt:", type="tertiary", on_click=become, args=(new_guest(),)
            )
    else:
        real = "A simulated person: nobody real liked these things." if tag else "A person of the log."
        st.caption(real)


def show_taste(now: Recommender, who: Person) -> None:
    """What the person said here, to be taken back, and what the log knows of them."""
    said = [(item, 1) for item in who.likes[::-1]] + [(item, -1) for item in who.dislikes[::-1]]
    if said:
        st.html(f'<p class="side">You said <span>{len(who.likes)} liked · {len(who.dislikes)} disliked</span></p>')
        with st.container(key="said"):
            for item_id, value in said[:SHOWN_OPINIONS]:
                item = item_of(now, item_id)
                with st.container(
                    horizontal=True,
                    horizontal_alignment="distribute",
                    vertical_alignment="center",
                    key=f"said-{item_id}",
                ):
                    kind = "liked" if value > 0 else "disliked"
                    st.html(
                        f'<div class="said {kind}"><img src="{cover(item)}" alt="">'
                        f"<span>{escape(item.title)}<small>{kind}</small></span></div>"
                    )
                    take_back(who, item_id, item.title)
        if len(said) > SHOWN_OPINIONS:
            st.caption(f"and {len(said) - SHOWN_OPINIONS} more")
    if who.user is not None:
        history = now.history(who.user)
        st.html(f'<p class="side">From the log <span>{len(history):,} events, newest first</span></p>')
        strip(now, [item for item, preference in history if preference >= 0])


@st.fragment
def take_back(who: Person, item_id: str, title: str) -> None:
    """A fragment for the reason that `apps.cards.thumbs` is one."""
    st.button(
        "Remove",
        key=f"remove-{item_id}",
        icon=":material/close:",
        type="tertiary",
        help=f"Take back what you said about {title}",
        on_click=rate,
        args=(who.key, item_id, 0, "taste"),
    )
    draw_again()


def show_credits(now: Recommender) -> None:
    """Who made the pictures and the music, and that simulated people are simulated."""
    lines = [escape(line) for line in credits_of(str(now.workspace.root), len(now.catalog), now)]
    if now.recipe.source.simulated:
        lines.append("The people of this log are simulated")
    lines.append("mmrec, Apache-2.0")
    st.html(f'<footer class="credits">{"".join(f"<p>{line}</p>" for line in lines)}</footer>')


@st.cache_data(show_spinner=False)
def credits_of(root: str, size: int, _now: Recommender) -> list[str]:
    """The distinct credits the catalog's items carry in their metadata."""
    found = (str(metadata["credit"]) for metadata in _now.catalog.metadata if metadata.get("credit"))
    return list(dict.fromkeys(found))[:6]


main()
