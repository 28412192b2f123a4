"""Dream: what could exist for this person, made into pictures and music beside the real things it is near to."""

from __future__ import annotations

import io
import wave
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import streamlit as st

from apps.cards import as_address, cover, drawn_cover, grid, heading, section
from apps.session import (
    UPLOAD_TYPES,
    Person,
    dial,
    draw_again,
    has,
    kindly,
    opinions,
    person,
    rate,
    recommender,
    uploaded,
)
from mmrec import Dials

if TYPE_CHECKING:
    from mmrec import Recommender
    from mmrec.recommender import Creation, Imagination

EITHER = "either"
MEDIA = {EITHER: "Either", "image": "Pictures", "audio": "Music"}
STEPS = [1, 2, 4, 8, 16]
EDITABLE = 30  # so many of the things liked last can be started from
NOVELTY = (
    (0.25, "much like what exists"),
    (0.6, "a new blend of known things"),
    (0.9, "new, yet near the catalog"),
    (1.01, "far from the catalog"),
)


@dataclass(frozen=True)
class Wish:
    """Everything a batch of dreams depends on; the same wish gives the same dreams."""

    person: str
    opinions: tuple[tuple[str, ...], tuple[str, ...]]
    text: str
    avoid: str
    upload: tuple[str, str] | None  # kind and name of the uploaded file
    own: tuple[str, ...]  # names of the pictures that tell a taste
    dials: Any
    steps: int
    n: int
    seed: int
    medium: Literal["image", "audio"] | None
    edit: str | None  # an item to change instead of dreaming from nothing
    strength: float


def ask(now: Recommender, who: Person) -> tuple[Wish, Any, list[Any]]:
    """The dials, the uploaded file to steer by, and the uploaded pictures that the person likes."""
    with st.container(border=True, key="dials"):
        left, middle, right = st.columns([1.4, 1.4, 1.2], gap="large", vertical_alignment="bottom")
        text = left.text_input("Toward these words", placeholder="a friendly sea animal", key=dial("toward", ""))
        avoid = middle.text_input("Away from these words", placeholder="machines", key=dial("away", ""))
        media = [medium for medium in MEDIA if medium == EITHER or medium in now.spaces]
        called = MEDIA.__getitem__
        medium = right.segmented_control("Made as", media, format_func=called, key=dial("medium", EITHER))
        widely = "How widely the dreams differ: 0 gives one safe dream, 2 gives wild ones."
        temperature = left.slider("Exploration", 0.0, 2.0, step=0.1, key=dial("temperature", 1.0), help=widely)
        n = middle.slider("How many dreams", 1, 12, key=dial("n", 4))
        icon = ":material/auto_awesome:"
        liked = opinions(now, who)[0][::-1][:EDITABLE]
        if st.session_state.get("dial-edit") not in liked:
            st.session_state["dial-edit"] = ""
        title = {item: now.catalog.titles[now.catalog.index[item]] or item for item in liked} | {"": "Nothing"}
        edit = left.selectbox("Start from", ["", *liked], format_func=title.__getitem__, key="dial-edit")
        strength = middle.slider(
            "How far it may change",
            0.0,
            1.0,
            step=0.05,
            disabled=not edit,
            key=dial("strength", 0.3),
            help="0 leaves it as it is, 1 forgets it.",
        )
        right.button("Dream again", type="primary", icon=icon, on_click=_again, key="again", width="stretch")
        with st.expander("More dials: strengths, steps, a picture or a sound to steer by"):
            one, two, three = st.columns(3, gap="large")
            likes = one.slider("Pull of the likes", 0.0, 4.0, step=0.25, key=dial("likes", 1.0))
            dislikes = one.slider("Push of the dislikes", 0.0, 4.0, step=0.25, key=dial("dislikes", 1.0))
            seed = one.number_input("Seed", 0, 2**31 - 1, key=dial("seed", 0), help="Same seed, same dreams.")
            words = two.slider("Pull of the words", 0.0, 4.0, step=0.25, disabled=not text, key=dial("text", 1.0))
            push = two.slider("Push of the words", 0.0, 4.0, step=0.25, disabled=not avoid, key=dial("push", 1.0))
            steps = two.select_slider("Steps", STEPS, key=dial("steps", 8), help="More steps are finer and slower.")
            acting = "Noise levels in which pulls and pushes act: 0 shapes details, 1 the choice of a taste."
            interval: Any = one.slider(
                "Where the dials act", 0.0, 1.0, step=0.1, key=dial("interval", (0.0, 1.0)), help=acting
            )
            has_pictures = "image" in now.spaces
            kinds = [suffix for kind in ("image", "audio") if kind in now.spaces for suffix in UPLOAD_TYPES[kind]]
            file = three.file_uploader("Toward this picture or sound", type=kinds, key="steer") if kinds else None
            own = (
                three.file_uploader(
                    "Pictures this person likes",
                    UPLOAD_TYPES["image"],
                    True,
                    key="own",
                    help="A taste can be told in pictures of one's own; each is read as something liked.",
                )
                if has_pictures
                else []
            )
            pull = three.slider(
                "Pull of the upload", 0.0, 4.0, step=0.25, disabled=file is None, key=dial("upload", 1.0)
            )
    kind = None
    if file is not None:
        kind = "image" if file.name.rsplit(".", 1)[-1].lower() in UPLOAD_TYPES["image"] else "audio"
    wish = Wish(
        who.key,
        (tuple(who.likes), tuple(who.dislikes)),
        text.strip(),
        avoid.strip(),
        (kind, file.file_id) if file is not None and kind else None,
        tuple(picture.file_id for picture in own),
        Dials(likes, dislikes, words, pull, pull, push, temperature, interval),
        steps,
        n,
        int(seed),
        "image" if medium == "image" else "audio" if medium == "audio" else None,
        edit or None,
        strength if edit else 0.0,
    )
    return wish, file, own


def _again() -> None:
    st.session_state["dial-seed"] = (st.session_state["dial-seed"] + 1) % 2**31


def dream(now: Recommender, who: Person, wish: Wish, file: Any, own: list[Any]) -> Imagination:
    """The dreams of a wish, dreamt anew only if the wish changed."""
    lately = st.session_state.get("dreamt")
    if lately is None or lately[0] != wish:
        kind = wish.upload[0] if wish.upload else ""
        with ExitStack() as files, st.spinner("Dreaming"):
            path = files.enter_context(uploaded(file))
            imagination = now.imagine(
                **who.taste,
                text=wish.text,
                avoid=wish.avoid,
                image=path if kind == "image" else None,
                audio=path if kind == "audio" else None,
                pictures=[p for picture in own if (p := files.enter_context(uploaded(picture)))],
                n=wish.n,
                k=10,
                steps=wish.steps,
                dials=wish.dials,
                edit=wish.edit,
                strength=wish.strength,
                seed=wish.seed,
            )
        lately = st.session_state["dreamt"] = (wish, imagination)
    return lately[1]


def create(now: Recommender, who: Person, wish: Wish, imagination: Imagination) -> list[Creation]:
    """The dreams of a wish as pictures and music, made anew only if the wish changed."""
    lately = st.session_state.get("created")
    if lately is None or lately[0] != wish:
        with st.spinner("Drawing and playing"):
            creations = now.create(imagination.dreams, **who.taste, medium=wish.medium, seed=wish.seed)
        lately = st.session_state["created"] = (wish, creations)
    return lately[1]


def show(who: Person, creation: Creation, number: int) -> None:
    """One dream: what was made, how new it is, what is real around it, and what can be done with it."""
    near, novelty = creation.dream.items, f"{creation.dream.novelty:.0%}"
    words = next(words for limit, words in NOVELTY if creation.dream.novelty < limit)
    title = "Between " + " and ".join(item.title for item in near[:2]) if len(near) > 1 else "A dream"
    around = "".join(f'<img src="{cover(i)}" alt="{escape(i.title)}" title="{escape(i.title)}">' for i in near)
    with st.container(border=True, key=f"card-dream-{number}"):
        st.html(f'<figure class="cover"><img src="{face(creation)}" alt="dream {number + 1}"></figure>')
        if creation.clip is not None:
            st.audio(as_wav(creation), format="audio/wav")
        st.html(
            f'<p class="title">{escape(title)}</p><div class="meter"><i style="width:{novelty}"></i></div>'
            f'<p class="reason">Novelty {novelty}: {words}</p>'
            f'{badges(creation)}<p class="kind apart">Nearest real items</p><div class="near">{around}</div>'
        )
        thumbs(who, creation, number)


@st.fragment
def thumbs(who: Person, creation: Creation, number: int) -> None:
    """Like, dislike and save a dream; a fragment for the reason that `apps.cards.thumbs` is one."""
    near = creation.dream.items
    with st.container(horizontal=True, key=f"thumbs-dream-{number}"):
        for value, word, icon in ((1, "Like", "thumb_up"), (-1, "Dislike", "thumb_down")):
            st.button(
                word,
                key=f"{word.lower()}-dream-{number}",
                icon=f":material/{icon}:",
                help=f"Counts for the nearest real item, {near[0].title}" if near else None,
                disabled=not near,
                on_click=judge,
                args=(who.key, creation, value),
            )
        data, name, kind = as_file(creation, number)
        icon = ":material/download:"
        st.download_button("Save", data, name, kind, key=f"save-{number}", icon=icon, on_click="ignore")
    draw_again()


def judge(key: str, creation: Creation, value: int) -> None:
    """A dream is no item of the catalog, so its thumb counts for the real item nearest to it; liked dreams are kept."""
    rate(key, creation.dream.items[0].item_id, value, "dream")
    if value > 0:
        st.session_state.setdefault("shelf", {}).setdefault(key, []).append(creation)


def face(creation: Creation) -> str:
    """What a dream looks like: its picture, or a drawn cover for music."""
    if creation.picture is not None:
        return as_address(creation.picture)
    return drawn_cover(creation.dream.vector.tobytes().hex()[:64])


def badges(creation: Creation) -> str:
    """The verdicts of the checks, in words."""
    told = []
    if creation.checks.get("copy"):
        told.append('<span class="badge warn">nearly a copy of a real item</span>')
    if creation.checks.get("off_taste"):
        told.append('<span class="badge warn">off this taste</span>')
    likely = f"{creation.checks['taste']:.0%} likely to be liked"
    return "".join(told) or f'<span class="badge">no copy</span><span class="badge">{likely}</span>'


def as_wav(creation: Creation) -> bytes:
    """The clip as a 16-bit WAV file."""
    assert creation.clip is not None
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(creation.clip.rate)
        file.writeframes((np.clip(creation.clip.samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def as_file(creation: Creation, number: int) -> tuple[bytes, str, str]:
    """Bytes, file name and media type of what was made."""
    if creation.picture is None:
        return as_wav(creation), f"dream-{number + 1}.wav", "audio/wav"
    out = io.BytesIO()
    creation.picture.save(out, "PNG")
    return out.getvalue(), f"dream-{number + 1}.png", "image/png"


def main() -> None:
    now, who = recommender(), person()
    heading(
        "Dream",
        "A diffusion prior imagines what this person would love, decoders draw and play it. "
        "A thumb counts for the nearest real item.",
    )
    if has(now, "Dreaming", "index", "ids", "prior"):
        page(now, who)


def page(now: Recommender, who: Person) -> None:
    """The dials, the dreams, what is real about them, and the liked ones."""
    if not who.known:
        anybody = "No taste is known yet, so these are anybody's dreams. Like a few things under For you, or here."
        st.html(f'<p class="quiet">{anybody}</p>')
    wish, file, own = ask(now, who)
    with kindly():
        whom = who.user or ("you" if who.known else "anybody")
        imagination = dream(now, who, wish, file, own)
        section(f"Dreamt for {whom}", "novelty: the share of real items that stand less alone than the dream")
        with kindly():
            creations = create(now, who, wish, imagination)
            with st.container(key="dreams"):
                for number, creation in enumerate(creations):
                    show(who, creation, number)
        section("The real things they stand on", "the items of the catalog nearest to all of these dreams")
        grid(imagination.items, who, "grounding")
    shelf = st.session_state.get("shelf", {}).get(who.key, [])
    if shelf:
        section("Dreams you liked", "kept while this window is open")
        faces = "".join(f'<img src="{face(creation)}" alt="a dream you liked">' for creation in shelf[::-1])
        st.html(f'<div class="strip large">{faces}</div>')


main()
