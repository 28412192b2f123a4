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

SVG_POINTS = 5000  # above so many the browser draws them with WebGL
MOST_GROUPS = 24
NO_GROUPS = ("credit", "licence", "license", "kind")
HOVER = "<b>%{text}</b><br>%{meta}<extra></extra>"


def groupings(now: Recommender) -> dict[str, list[str]]:
    """Ways to colour the map, name -> the group of each item: what the metadata tells in few distinct words.

    The most telling comes first. An item that lacks the word is grouped by what it is: a picture, music, words.
    """
    sounds, pictures = now.modalities.get("audio"), now.modalities.get("image")
    count = range(len(now.catalog))
    kinds = [
        "picture" if pictures is not None and pictures[i] else "music" if sounds is not None and sounds[i] else "words"
        for i in count
    ]
    found = {"medium": kinds} if len(set(kinds)) > 1 else {}
    rows = now.catalog.metadata
    for name in dict.fromkeys(key for row in rows for key in row if key not in NO_GROUPS):
        values = [str(row[name]) if isinstance(row.get(name), str) else "" for row in rows]
        if 3 <= len(set(values) - {""}) <= MOST_GROUPS and sum(map(bool, values)) > len(rows) / 2:
            found[name.replace("_", " ")] = [value or kind for value, kind in zip(values, kinds, strict=True)]
    return dict(sorted(found.items(), key=lambda way: -len(set(way[1]))))


def draw(now: Recommender, who: Person, groups: list[str] | None) -> go.Figure:
    """The catalog as dots, the person's likes ringed, what is recommended and dreamt as stars.

    Without `groups` the dots are coloured by the first code of their semantic IDs, neighbours in like hues.
    """
    places = now.map()
    figure = go.Figure()
    codes = np.asarray(now.ids.codes)[:, 0]
    of = np.array(groups) if groups is not None else codes.astype(str)
    room, written = np.ptp(places, axis=0) * (0.11, 0.04), list[tuple[float, float]]()
    for group, _ in Counter(of.tolist()).most_common():
        rows = np.flatnonzero(of == group)
        name, colour = group, None
        if groups is None:
            name = now.labels.get(group, "") or f"code {group}"
            across, up = places[rows].mean(axis=0) - places.mean(axis=0)
            colour = f"hsl({np.degrees(np.arctan2(up, across)) % 360:.0f}, 46%, 52%)"
        x, y = float(np.median(places[rows, 0])), float(np.quantile(places[rows, 1], 0.97))
        named = all(abs(x - x0) > room[0] or abs(y - y0) > room[1] for x0, y0 in written)
        figure.add_trace(_dots(now, places, rows, colour, name, legend=not named and groups is not None))
        if named:
            written.append((x, y))
            word = name.split(",")[0]
            figure.add_annotation(x=x, y=y, yshift=14, text=word, showarrow=False, font={"size": 14})

    liked, disliked = opinions(now, who)
    edge = {"color": "#fff", "width": 1.2}
    _mark(
        figure,
        now,
        places,
        liked,
        "Liked",
        {"size": 12, "symbol": "circle-open", "color": "#e11d48", "line": {"width": 3}},
    )
    _mark(figure, now, places, disliked, "Disliked", {"size": 10, "symbol": "x", "color": "#6f7478", "line": edge})
    if who.known and now.workspace.current("retriever") is not None:
        star = {"size": 16, "symbol": "star", "color": "#f5b81f", "line": {"color": "#3a3222", "width": 1}}
        _mark(figure, now, places, recommended(now, who), "Recommended", star)
    lately = st.session_state.get("dreamt")
    if lately is not None and lately[0].person == who.key:
        near = [dream.items[0].item_id for dream in lately[1].dreams if dream.items]
        star = {"size": 17, "symbol": "star-diamond", "color": "#7c4dff", "line": edge}
        _mark(figure, now, places, near, "Dreamt, at its nearest item", star)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(
        height=700,
        margin={"l": 0, "r": 0, "t": 8, "b": 0},
        legend={"orientation": "h", "y": -0.02, "itemsizing": "constant"},
        hoverlabel={"font": {"size": 14}},
        dragmode="pan",
        uirevision="map",
    )
    return figure


def recommended(now: Recommender, who: Person) -> list[str]:
    """What the For you page shows this person, or would show."""
    key, shown = st.session_state.get("recommended", ("", []))
    return shown if key == who.key else [item.item_id for item in now.recommend(**who.taste, k=10)]


def _mark(
    figure: go.Figure, now: Recommender, places: np.ndarray, item_ids: list[str], name: str, marker: dict[str, Any]
) -> None:
    """Put a marker on some items."""
    rows = np.array([now.catalog.index[item_id] for item_id in item_ids], np.int64)
    if len(rows):
        trace = _dots(now, places, rows, None, name, legend=True)
        figure.add_trace(trace.update(marker=marker | {"opacity": 1}))


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
        "Every item of the catalog; things alike lie together. Hover for a title, press a dot to see it.",
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
