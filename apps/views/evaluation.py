"""Evaluation: how good the recommenders of this workspace are, how sure that is, and how the semantic IDs are used."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import streamlit as st

from apps.cards import heading, section
from apps.session import kindly, notice, recommender
from mmrec.evaluation.harness import title
from mmrec.evaluation.metrics import METRICS, base_name
from mmrec.evaluation.stage import OURS

if TYPE_CHECKING:
    import pandas as pd

    from mmrec import Recommender

SHOWN = ("ndcg", "recall", "coverage", "popularity_lift", "diversity", "miscalibration", "mode_coverage")
PLOTTED = ("ndcg", "recall", "coverage", "mode_coverage")
ALWAYS = ("valid", "users_per_second")
GREEN, GREY, ORANGE = "#0f9d8c", "#a9b0b3", "#e0603a"
LAYOUT: dict[str, Any] = {"margin": {"l": 0, "r": 12, "t": 44, "b": 24}}
QUIET = {"displayModeBar": False}


@st.cache_data(show_spinner=False, max_entries=4)
def measured(folder: str) -> pd.DataFrame:
    """`recommender, metric, value, low, high, n` of an evaluation artifact (of its first seed)."""
    import pandas as pd

    columns = ["recommender", "metric", "value", "low", "high", "n"]
    return pd.read_parquet(Path(folder) / "metrics.parquet", columns=columns)


def table(frame: pd.DataFrame, k: int) -> None:
    """Recommenders by metrics, the best of every column set off."""
    wide = frame.pivot(index="recommender", columns="metric", values="value")
    names = [name for name in (*(f"{m}@{k}" for m in SHOWN), *ALWAYS) if name in wide.columns]
    wide = wide.loc[list(dict.fromkeys(frame["recommender"])), names]

    def best(column: pd.Series) -> list[str]:
        info = METRICS.get(base_name(str(column.name)))
        if info is None:
            return [""] * len(column)
        good = column.map(info.goodness, na_action="ignore")
        if good.nunique() < 2:
            return [""] * len(column)
        return [f"font-weight: 700; color: {GREEN}" if value == good.max() else "" for value in good]

    config: dict[str, Any] = {"_index": st.column_config.Column("Recommender", width="medium")}
    for name in names:
        info = METRICS.get(base_name(name))
        arrow = f" {info.arrow}" if info else ""
        config[name] = st.column_config.Column(
            title(name).removesuffix(f"@{k}") + arrow, help=info.meaning if info else None
        )
    styled = wide.style.apply(best, axis=0).format(_number, na_rep="–")
    st.dataframe(styled, height="content", column_config=config)
    st.caption("↑ more is better, ↓ less is better, →0 the nearer to zero the better. The best of a column is green.")


def bars(frame: pd.DataFrame, metric: str) -> go.Figure:
    """One metric of every recommender with its 95 % interval."""
    rows = frame[frame["metric"] == metric].sort_values("value")
    whiskers = {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["value"]).fillna(0),
        "arrayminus": (rows["value"] - rows["low"]).fillna(0),
        "thickness": 1.3,
        "width": 3,
        "color": "#7c8286",
    }
    figure = go.Figure(
        go.Bar(
            x=rows["value"],
            y=rows["recommender"],
            orientation="h",
            marker={"color": _colours(rows["recommender"]), "cornerradius": 4},
            error_x=whiskers,
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        )
    )
    figure.update_layout(title=title(metric), height=110 + 26 * len(rows), bargap=0.34, **LAYOUT)
    return figure


def claims(folder: Path) -> None:
    """What may be said of the test part, each sentence from a paired test."""
    file = folder / "verdicts.json"
    if file.is_file():
        lines = "".join(f"<li>{escape(line)}</li>" for line in json.loads(file.read_text(encoding="utf-8")))
        st.html(f'<ul class="claims">{lines}</ul>')


def semantic_ids(now: Recommender) -> None:
    """How the codebooks are used."""
    artifact = now.workspace.current("ids")
    if artifact is None:
        notice("There are no semantic IDs yet.", "To make them:", now.workspace.mend("ids"))
        return
    found = json.loads((artifact.path / "diagnostics.json").read_text(encoding="utf-8"))
    section("Semantic IDs", "the short codes by which items are spelt")
    facts = st.columns(4)
    facts[0].metric("Items with an ID", f"{found['items']:,}")
    facts[1].metric("Items that share an ID", f"{found['collisions']:.0%}", help="0 by construction.")
    shared = "Items whose codes were also another item's, before the last code was added to tell them apart."
    facts[2].metric("Before the last code", f"{found['collisions_before']:.0%}", help=shared)
    facts[3].metric("Largest such group", f"{found['largest_group']:,}", help="Before the last code.")

    levels = [f"level {n}" for n in range(1, len(found["sizes"]))] + ["last, added"]
    use = go.Figure(go.Bar(x=levels, y=found["use"], marker={"color": GREEN, "cornerradius": 4}))
    use.update_layout(title="Share of the codes in use", height=320, **LAYOUT)
    use.update_yaxes(range=[0, 1.02], tickformat=".0%")
    most = [math.log2(size) for size in found["sizes"]]
    entropy = go.Figure(
        go.Bar(x=levels, y=found["entropy"], name="entropy", marker={"color": GREEN, "cornerradius": 4})
    )
    line = {"symbol": "line-ew-open", "size": 44, "color": ORANGE}
    entropy.add_scatter(x=levels, y=most, mode="markers", name="if all codes were used evenly", marker=line)
    entropy.update_layout(
        title="Entropy per level, in bits", height=320, legend={"orientation": "h", "y": -0.12}, **LAYOUT
    )
    left, right = st.columns(2, gap="large")
    left.plotly_chart(use, key="use", config=QUIET)
    right.plotly_chart(entropy, key="entropy", config=QUIET)


def recommenders(now: Recommender) -> None:
    """The table and the plots of the evaluation artifact."""
    artifact = now.workspace.current("evaluation")
    if artifact is None:
        body = "To measure every recommender and the baselines:"
        notice("Nothing is measured yet.", body, now.workspace.mend("evaluation"))
        return
    frame = measured(str(artifact.path))
    there = set(frame["metric"])
    ks = sorted({int(name.partition("@")[2]) for name in there if "@" in name}) or [10]
    section("Every recommender, the same questions", f"{int(frame['n'].max()):,} people asked")
    claims(artifact.path)
    k = st.segmented_control("Length of the lists", ks, default=ks[0]) or ks[0]
    table(frame, k)
    plotted = [f"{name}@{k}" for name in PLOTTED if f"{name}@{k}" in there]
    for pair in zip(plotted[::2], plotted[1::2], strict=False):
        for place, metric in zip(st.columns(2, gap="large"), pair, strict=True):
            place.plotly_chart(bars(frame, metric), key=metric, config=QUIET)
            place.caption(METRICS[base_name(metric)].meaning)
    st.caption(
        "Green is ours. Whiskers: 95 % bootstrap intervals over people; where they overlap, a paired test must tell."
    )
    report = artifact.path / "report.html"
    if report.is_file():
        icon = ":material/download:"
        data = report.read_bytes()
        st.download_button("The full report", data, "report.html", "text/html", icon=icon, on_click="ignore")


def _colours(names: Any) -> list[str]:
    return [GREEN if name in OURS else GREY for name in names]


def _number(value: Any) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.4f}"


now = recommender()
lead = "What was held back from every model, asked of each of them in the same way."
if now.recipe.source.simulated:
    lead += " The people of this log are simulated: the numbers say how well simulated tastes are found again."
heading("Evaluation", lead)
with kindly():
    recommenders(now)
with kindly():
    semantic_ids(now)
