"""Map: the whole catalog on one sheet, with this person's taste and dreams on it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from apps.cards import card, heading, item_of, section
from apps.session import Person, dial, has, kindly, opinions, person, recommender

if TYPE_CHECKING:
    from mmrec import Recommender

GREY = "#9aa3a8"
SVG_POINTS = 5000  # above so many the browser draws them with WebGL
NAMED_CODES = 22
HOVER = "<b>%{text}</b><br>%{meta}<extra></extra>"


def groupings(now: Recommender) -> dict[str, list[str]]:
    """Ways to colour the map: name -> the group of each item. Semantic IDs, and metadata of few distinct values."""
    found: dict[str, list[str]] = {}
    rows = now.catalog.metadata
    for name in dict.fromkeys(key for row in rows[:2000] for key in row):
        values = [str(row[name]) if isinstance(row.get(name), str) else "" for row in rows]
        distinct = set(values) - {""}
        if 2 <= len(distinct) <= 40 and sum(map(bool, values)) > 0.2 * len(rows):
            found[name.replace("_", " ")] = values
    kinds = {m: now.modalities[m] for m in ("image", "audio") if m in now.modalities}
    if len(kinds) == 2:
        found["medium"] = ["picture" if i else "music" if a else "words" for i, a in zip(*kinds.values(), strict=True)]
    return found


def draw(now: Recommender, who: Person, groups: list[str] | None) -> go.Figure:
    """The catalog as dots, the person's likes ringed, what is recommended and dreamt as stars."""
    places = now.map()
    figure = go.Figure()
    if groups is None:
        codes = np.asarray(now.ids.codes)[:, 0]
        common = [code for code, _ in Counter(codes.tolist()).most_common()]
        centre = places.mean(axis=0)
        for code in common:
            rows = np.flatnonzero(codes == code)
            angle = np.arctan2(*(places[rows].mean(axis=0) - centre)[::-1])
            label = now.labels.get(str(code), "")
            colour = f"hsl({np.degrees(angle) % 360:.0f}, 46%, 52%)"
            figure.add_trace(_dots(now, places, rows, colour, label or f"code {code}", legend=False))
        for code in common[:NAMED_CODES]:
            rows = np.flatnonzero(codes == code)
            x, y = np.median(places[rows], axis=0)
            name = now.labels.get(str(code), "").split(",")[0]
            if name:
                figure.add_annotation(x=x, y=y, text=name, showarrow=False, font={"size": 12}, opacity=0.85)
    else:
        for name, _ in Counter(groups).most_common():
            rows = np.flatnonzero(np.array(groups) == name)
            shade = None if name else GREY
            figure.add_trace(_dots(now, places, rows, shade, name or "none", legend=True))

    def stars(item_ids: list[str], name: str, marker: dict[str, Any]) -> None:
        rows = [now.catalog.index[i] for i in item_ids if i in now.catalog.index]
        if rows:
            figure.add_trace(
                go.Scatter(
                    x=places[rows, 0],
                    y=places[rows, 1],
                    mode="markers",
                    name=name,
                    marker=marker,
                    text=[now.catalog.titles[r] for r in rows],
                    customdata=[now.catalog.item_ids[r] for r in rows],
                    meta=name,
                    hovertemplate=HOVER,
                )
            )

    liked, disliked = opinions(now, who)
    edge = {"color": "#fff", "width": 1.2}
    stars(liked, "Liked", {"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": "#0f9d8c", "width": 3}})
    stars(disliked, "Disliked", {"size": 10, "symbol": "x", "color": "#8b8f94", "line": edge})
    key, recommended = st.session_state.get("recommended", ("", []))
    if key == who.key:
        stars(recommended, "Recommended", {"size": 15, "symbol": "star", "color": "#d6a429", "line": edge})
    lately = st.session_state.get("dreamt")
    if lately is not None and lately[0].person == who.key:
        near = [dream.items[0].item_id for dream in lately[1].dreams if dream.items]
        star = {"size": 16, "symbol": "star-diamond", "color": "#e0603a", "line": edge}
        stars(near, "Dreamt, at its nearest item", star)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(
        height=680,
        margin={"l": 0, "r": 0, "t": 8, "b": 0},
        legend={"orientation": "h", "y": -0.02, "itemsizing": "constant"},
        hoverlabel={"font": {"size": 14}},
        dragmode="pan",
        uirevision="map",
    )
    return figure


def _dots(
    now: Recommender, places: np.ndarray, rows: np.ndarray, colour: str | None, name: str, *, legend: bool
) -> Any:
    """One group of the catalog."""
    kind: Any = go.Scatter if len(places) <= SVG_POINTS else go.Scattergl
    return kind(
        x=places[rows, 0],
        y=places[rows, 1],
        mode="markers",
        name=name,
        marker={"size": 6, "opacity": 0.62, "color": colour},
        text=[now.catalog.titles[r] or now.catalog.item_ids[r] for r in rows],
        customdata=[now.catalog.item_ids[r] for r in rows],
        meta=name,
        hovertemplate=HOVER,
        showlegend=legend,
    )


def main() -> None:
    now, who = recommender(), person()
    heading(
        "Map",
        "Every item of the catalog; things alike in looks, sound, words and company lie together. "
        "Hover for a title, press a dot to see it.",
    )
    if has(now, "The map", "index", "ids"):
        page(now, who)


def page(now: Recommender, who: Person) -> None:
    """The map, and what is pressed on it."""
    with kindly():
        ways = groupings(now)
        names = [*ways, "semantic ID"]
        how = st.segmented_control("Colour by", names, key=dial("colour", names[0])) or names[0]
        figure = draw(now, who, ways.get(how))
        chosen = st.plotly_chart(
            figure,
            key="map",
            on_select="rerun",
            selection_mode="points",
            config={"displayModeBar": False, "scrollZoom": True},
        )
        points = chosen["selection"]["points"]
        if points:
            data = points[0]["customdata"]
            pressed = str(data[0] if isinstance(data, list) else data)
            section("What you pressed, and what lies nearest to it", "in the full space, not on this flat map")
            with st.container(key="grid-map"):
                card(item_of(now, pressed), who, "map")
                for item in now.similar(pressed, 5):
                    card(item, who, "map")


main()
