"""What every page asks for: the recommender, the person in front of it, and a click kept for good."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from mmrec.errors import MmrecError
from mmrec.workspace import MENDS

if TYPE_CHECKING:
    from mmrec import Recommender

UPLOAD_MB = 20
UPLOAD_TYPES = {
    "image": ["png", "jpg", "jpeg", "webp", "gif", "bmp"],
    "audio": ["wav", "ogg", "flac", "mp3"],
}
ENOUGH = 3
"""So many likes make a first picture of somebody new."""
GUEST = re.compile(r"guest-[a-z]+-[a-z]+-[0-9a-f]{6}")
ADJECTIVES = ("amber", "brisk", "calm", "deft", "fond", "gentle", "hazel", "jolly", "keen", "lively", "quiet", "sunny")
NOUNS = ("badger", "crane", "dolphin", "finch", "gull", "heron", "ibis", "kestrel", "lark", "marten", "otter", "robin")


@dataclass(frozen=True)
class Person:
    """Who a page is for: somebody of the log (`user`) or a guest, with what they told the app, newest last."""

    key: str
    user: str | None
    likes: list[str]
    dislikes: list[str]

    @cached_property
    def taste(self) -> dict[str, Any]:
        """The keyword arguments that describe this person to the facade."""
        return {"user": self.user, "likes": self.likes, "dislikes": self.dislikes}

    @property
    def name(self) -> str:
        return self.user or self.key.removeprefix("guest-").rsplit("-", 1)[0].replace("-", " ").capitalize()

    @property
    def known(self) -> bool:
        """Whether there is enough to go by."""
        return self.user is not None or len(self.likes) >= ENOUGH

    def opinion(self, item_id: str) -> int:
        return 1 if item_id in self.likes else -1 if item_id in self.dislikes else 0


def workspace_root() -> Path:
    """The folder given as ``--workspace`` behind the ``--`` of ``streamlit run``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-w", "--workspace", type=Path, default=Path("workspaces/demo"))
    return parser.parse_known_args(sys.argv[1:])[0].workspace


def recommender() -> Recommender:
    """The one recommender all sessions of this server share; loaded again when a stage of the workspace was rebuilt."""
    root = workspace_root()
    links = ((stage, root / stage) for stage in MENDS)
    versions = tuple((stage, str(link.resolve())) for stage, link in links if link.exists())
    return _load(str(root), versions)


@st.cache_resource(show_spinner="Opening the catalog", max_entries=2)
def _load(root: str, versions: tuple[tuple[str, str], ...]) -> Recommender:
    from mmrec import Recommender

    return Recommender.load(root)


def person() -> Person:
    """The person of this session; their opinions are read anew from the feedback file."""
    now = recommender()
    key = st.session_state.get("person") or _arrive(now)
    st.session_state["person"] = key
    opinions = {item: p for item, p in now.feedback.of(key).items() if item in now.catalog.index}
    return Person(
        key,
        None if GUEST.fullmatch(key) else key,
        [item for item, preference in opinions.items() if preference > 0],
        [item for item, preference in opinions.items() if preference < 0],
    )


def opinions(now: Recommender, who: Person) -> tuple[list[str], list[str]]:
    """Everything the person is known to like and dislike: the log, then what was said here."""
    history = now.history(who.user) if who.user is not None else []
    said = {*who.likes, *who.dislikes}
    liked = [item for item, p in history if p > 0 and item not in said] + who.likes
    return liked, [item for item, p in history if p < 0 and item not in said] + who.dislikes


def new_guest() -> str:
    """A name nobody has yet, by which a guest's clicks are kept."""
    return f"guest-{secrets.choice(ADJECTIVES)}-{secrets.choice(NOUNS)}-{secrets.token_hex(3)}"


def become(key: str) -> None:
    """Change who this session is for; the address keeps it over a reload."""
    st.session_state["person"] = key


def dial(name: str, value: Any) -> str:
    """The key of a dial of a page, which starts at ``value`` and keeps where it was put while other pages are shown."""
    key = f"dial-{name}"
    st.session_state[key] = st.session_state.get(key, value)
    return key


def keep_dials() -> None:
    """Set the dials of pages that are not shown to what they are: Streamlit forgets what is not set or drawn."""
    for key in st.session_state:
        if str(key).startswith("dial-"):
            st.session_state[key] = st.session_state[key]


def rate(key: str, item_id: str, preference: float, origin: str) -> None:
    """Keep one click, before the page is drawn again.

    Clicks that come in while the page is drawn are handed over by Streamlit all together before the next run, and the
    last one first: each is put before those that this run has kept already.
    """
    context = get_script_run_ctx()
    run = context and context.cursors  # an object that every run of the script makes anew
    of_run, later = st.session_state.get("kept", (None, []))
    rows = recommender().feedback.add(key, item_id, preference, origin, later if of_run is run else ())
    st.session_state["kept"] = run, rows
    st.session_state["rated"] = True


def draw_again() -> None:
    """At the end of a fragment with thumbs: draw the page anew if a click was kept since it was drawn."""
    if st.session_state.pop("rated", False):
        st.rerun()


def has(now: Recommender, what: str, *stages: str) -> bool:
    """Whether the artifacts of ``stages`` are there; if not, say which command brings the first that is absent."""
    workspace = now.workspace
    stage = next((stage for stage in stages if workspace.current(stage) is None), None)
    if stage is None:
        return True
    if stage in ("retriever", "prior") and workspace.current("interactions") is None:
        notice(
            f"{what} is learnt from a log of who liked what, and this workspace has none.",
            "Search and Map work without one. To bring a log:",
            workspace.mend("interactions"),
        )
    else:
        notice(f"{what} is not built yet.", "To build what it needs:", workspace.mend(stage))
    return False


def notice(head: str, body: str = "", command: str = "") -> None:
    """A calm panel in place of what cannot be shown."""
    with st.container(border=True):
        st.markdown(f"#### {head}")
        if body:
            st.markdown(body)
        if command:
            st.code(command, language="bash")


@contextmanager
def kindly() -> Iterator[None]:
    """Show what went wrong and its mend instead of a traceback, and go on with the rest of the page."""
    try:
        yield
    except MmrecError as error:
        st.error(
            f"{error.message}" + (f"\n\nTo mend it: `{error.mend}`" if error.mend else ""), icon=":material/build:"
        )
    except (ValueError, FileNotFoundError, KeyError) as error:  # what the rooms below raise; a MediaError has a reason
        st.error(str(getattr(error, "reason", error)), icon=":material/error:")


@contextmanager
def uploaded(file: Any) -> Iterator[Path | None]:
    """An uploaded file as a path that the facade's readers can open; None if nothing was uploaded.

    Raises:
        ValueError: if it is larger than `UPLOAD_MB`.
    """
    if file is None:
        yield None
        return
    if file.size > UPLOAD_MB * 2**20:
        raise ValueError(f"{file.name} has {file.size / 2**20:.0f} MB; at most {UPLOAD_MB} MB can be read here")
    with tempfile.TemporaryDirectory(prefix="mmrec-app-") as folder:
        path = Path(folder) / f"upload{Path(file.name).suffix[:8].lower()}"
        path.write_bytes(file.getvalue())
        yield path


def _arrive(now: Recommender) -> str:
    asked = st.query_params.get("person", "")
    if GUEST.fullmatch(asked) or asked in users(now):
        return asked
    return new_guest()


def users(now: Recommender) -> list[str]:
    """People of the log."""
    return now.histories.user_ids
