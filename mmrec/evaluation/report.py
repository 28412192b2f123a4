"""What was measured, for people: a table for the terminal, Parquet for tools, one HTML page that opens offline."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec.evaluation.harness import Verdict, title
from mmrec.evaluation.metrics import METRICS, base_name
from mmrec.workspace import write_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

PROTOCOLS = {
    "leave-one-out": "The last item each person wanted is hidden and asked for; the one before it was used to choose "
    "settings; everything earlier was learnt from.",
    "leave-one-out, refit": "The last item each person wanted is hidden and asked for, if training holds it; settings "
    "were chosen by the one before it, then everything earlier was learnt from, that one too.",
    "by-time": "The log is cut at two moments, the same for everyone. What a person wanted after the second is asked "
    "for, the time between the two was used to choose settings, everything earlier was learnt from.",
}
SHOWN = ("ndcg", "recall", "coverage", "popularity_lift", "diversity", "miscalibration", "mode_coverage")
ALWAYS = ("valid", "users_per_second")
PLOTTED = ("ndcg", "recall", "mrr", "mode_coverage", "miscalibration", "coverage", "diversity", "novelty")
SHORT = {
    "popularity_lift": "Pop. lift",
    "coverage": "Cover.",
    "diversity": "Divers.",
    "miscalibration": "Miscal.",
    "mode_coverage": "Taste cover.",
    "users_per_second": "/s",
}
DIAGNOSTICS = {
    "collisions_before": "share of items that shared a code before the last level",
    "largest_group": "items on the fullest code",
    "moved": "items moved to make room",
    "collisions": "items that share an ID (must be 0)",
    "reconstruction_error": "share of the vectors' variance the codes lose",
    "reconstruction_error_full": "the same, last level included",
}
OURS, THEIRS = "#6366f1", "#94a3b8"


@dataclass(frozen=True)
class About:
    """What the numbers are of. `ours` are the recommenders to highlight; `simulated`: the people are not real."""

    dataset: str
    split: str
    seeds: Sequence[int] = (0,)
    simulated: bool = False
    ours: Sequence[str] = ()
    items: int | None = None
    protocol: str = ""
    command: str = ""
    commit: str = ""
    machine: str = ""

    @property
    def how(self) -> str:
        return self.protocol or PROTOCOLS.get(self.split, "")


def terminal_table(frame: pd.DataFrame, *, k: int = 10, heading: str = "") -> Table:
    """A rich table of the main metrics at list length `k`: the best of a column is bold, the second underlined.

    `frame` is what `evaluate` or `summarise_seeds` returned.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wide = _wide(frame, k)
    caption = f"lists of {k}; best bold, second underlined"
    table = Table(
        title=heading or None, caption=caption, title_justify="left", caption_justify="left", padding=(0, 1, 0, 0)
    )
    table.box, table.header_style, table.show_edge = box.SIMPLE_HEAD, "dim", False
    table.add_column("", no_wrap=True)
    places = {}
    for metric in wide.columns:
        places[metric] = _places(wide[metric], metric)
        words = f"{SHORT.get(base_name(metric)) or METRICS[base_name(metric)].title} {_arrow(metric)}"
        widest = max(len(text) for text in (*words.split(), *(_short(value, metric) for value in wide[metric])))
        table.add_column(words, justify="right", min_width=widest)
    for name, row in wide.iterrows():
        cells = [Text(_short(row[m], m), style=("", "bold", "underline")[places[m][name]]) for m in wide.columns]
        table.add_row(str(name), *cells)
    return table


def write_report(
    frame: pd.DataFrame,
    directory: Path,
    about: About,
    *,
    verdicts: Sequence[Verdict] = (),
    diagnostics: Mapping[str, Any] | None = None,
) -> Path:
    """Write `metrics.parquet` (the frame as it is) and `report.html` into `directory`; returns the path of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / ".metrics.parquet.partial"
    frame.to_parquet(partial, index=False)
    os.replace(partial, directory / "metrics.parquet")
    page = directory / "report.html"
    write_text(page, render_html(frame, about, verdicts=verdicts, diagnostics=diagnostics))
    return page


def render_html(
    frame: pd.DataFrame,
    about: About,
    *,
    verdicts: Sequence[Verdict] = (),
    diagnostics: Mapping[str, Any] | None = None,
) -> str:
    """One self-contained page. `diagnostics` is what `retrieval.semantic_ids.diagnostics` says of the semantic IDs."""
    from plotly.offline import get_plotlyjs

    tidy = _tidy(frame)
    ks = sorted({int(m.partition("@")[2]) for m in tidy["metric"] if "@" in m})
    k = 10 if 10 in ks or not ks else ks[0]
    sections = [_header(tidy, about), _verdicts(verdicts)]
    sections.append(
        _section("The table", f"{_html_table(_wide(tidy, k), about)}<p class=fine>{_note(frame, about)}</p>")
    )
    bars = [_figure(_bars(tidy, f"{m}@{k}", about), f"{m}@{k}") for m in PLOTTED if f"{m}@{k}" in set(tidy["metric"])]
    sections.append(_section("Metric by metric", f"<div class=grid>{''.join(bars)}</div>"))
    both = [_figure(figure, "") for figure in (_tradeoff(tidy, k, about), _bias(tidy, k, about)) if figure is not None]
    if both:
        sections.append(_section("Accuracy is not everything", f"<div class='grid two'>{''.join(both)}</div>"))
    if diagnostics:
        sections.append(_section("Semantic IDs", _semantic_ids(diagnostics)))
    if len(ks) > 1:
        rest = "".join(f"<h3>Lists of {at}</h3>{_html_table(_wide(tidy, at, every=True), about)}" for at in ks)
        sections.append(_section("Every number", f"<details><summary>Show all metrics</summary>{rest}</details>"))
    sections += [_section("How to read this", _glossary(tidy)), _footer(about)]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(about.dataset)} – mmrec evaluation</title><style>{CSS}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>{''.join(sections)}</main>"
        "<script>addEventListener('load', () => dispatchEvent(new Event('resize')))</script></body></html>\n"
    )


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """`recommender, metric, value, low, high` of one run, or of a summary over seeds (mean ± std)."""
    if "mean" not in frame:
        return frame
    return frame.assign(
        value=frame["mean"], low=frame["mean"] - frame["std"], high=frame["mean"] + frame["std"], n=frame["seeds"]
    )


def _wide(frame: pd.DataFrame, k: int, *, every: bool = False) -> pd.DataFrame:
    """Recommenders x metrics at list length k, in the order they were measured."""
    tidy = _tidy(frame)
    if every:
        names = [m for m in dict.fromkeys(tidy["metric"]) if m.endswith(f"@{k}")]
    else:
        names = [m for m in (*(f"{m}@{k}" for m in SHOWN), *ALWAYS) if m in set(tidy["metric"])]
    wide = tidy.pivot(index="recommender", columns="metric", values="value")
    return wide.loc[list(dict.fromkeys(tidy["recommender"])), names]


def _places(column: pd.Series, metric: str) -> dict[Any, int]:
    """1 for the best, 2 for the second best, 0 for the others and where there is no contest."""
    info = METRICS.get(base_name(metric))
    if info is None:
        return dict.fromkeys(column.index, 0)
    good = column.map(info.goodness, na_action="ignore")
    ranks = sorted(set(good.dropna()), reverse=True)
    if len(ranks) < 2:
        return dict.fromkeys(column.index, 0)
    return {name: ranks.index(g) + 1 if g in ranks[:2] else 0 for name, g in good.items()}


def _number(value: float, metric: str) -> str:
    if np.isnan(value):
        return "–"
    if abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.4f}" if base_name(metric) in ("recall", "ndcg", "hit_rate", "mrr") else f"{value:.3f}"


def _short(value: float, metric: str) -> str:
    """As narrow as a terminal needs it: no zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", _number(value, metric))


def _arrow(metric: str) -> str:
    info = METRICS.get(base_name(metric))
    return info.arrow if info else ""


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _header(tidy: pd.DataFrame, about: About) -> str:
    seeds = ", ".join(map(str, about.seeds))
    chips = [f"split: {about.split}", f"seed{'s' if len(about.seeds) > 1 else ''}: {seeds}"]
    if "people" in tidy:
        chips.insert(0, f"{int(tidy['n'].max()):,} people asked")
    if about.items:
        chips.insert(1, f"{about.items:,} items")
    told = "".join(f"<span class=chip>{escape(chip)}</span>" for chip in chips)
    if about.simulated:
        told += "<span class='chip warn'>simulated people: these are not real tastes</span>"
    name = f"<p class=eyebrow>mmrec evaluation</p><h1>{escape(about.dataset)}</h1>"
    return f"<header>{name}{told}<p>{escape(about.how)}</p></header>"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    marks = {True: "<b class=yes>✓</b>", False: "<b class=no>✗</b>"}
    lines = "".join(f"<li>{marks[v.holds]} {escape(str(v))}</li>" for v in verdicts)
    won = sum(v.holds for v in verdicts)
    return _section(f"Who won: {won} of {len(verdicts)} claims hold", f"<ul class=verdicts>{lines}</ul>")


def _html_table(wide: pd.DataFrame, about: About) -> str:
    places = {metric: _places(wide[metric], metric) for metric in wide.columns}
    marks = ("{}", "<b>{}</b>", "<u>{}</u>")
    head = "".join(f"<th>{escape(title(m))} <span class=arrow>{_arrow(m)}</span></th>" for m in wide.columns)
    rows = []
    for name, row in wide.iterrows():
        cells = "".join(f"<td>{marks[places[m][name]].format(_number(row[m], m))}</td>" for m in wide.columns)
        rows.append(f"<tr{' class=ours' if name in about.ours else ''}><th>{escape(str(name))}</th>{cells}</tr>")
    return (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _note(frame: pd.DataFrame, about: About) -> str:
    if "mean" in frame:
        return "Best bold, second underlined. Whiskers in the plots: one standard deviation over seeds."
    note = "Best bold, second underlined. Whiskers in the plots: 95 % bootstrap intervals over people."
    if len(about.seeds) > 1:
        note += f" Numbers of seed {about.seeds[0]}; the spread over all seeds is in the recorded results."
    return note


def _bars(tidy: pd.DataFrame, metric: str, about: About) -> Any:
    """One bar per recommender with its interval."""
    import plotly.graph_objects as go

    rows = tidy[tidy["metric"] == metric].iloc[::-1]
    figure = go.Figure(
        go.Bar(
            x=rows["value"].tolist(),
            y=[escape(name) for name in rows["recommender"]],
            orientation="h",
            marker_color=_colours(rows["recommender"], about),
            error_x=_whiskers(rows),
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        )
    )
    figure.update_layout(title=f"{title(metric)} {_arrow(metric)}", bargap=0.35)
    return _styled(figure, height=90 + 24 * len(rows))


def _tradeoff(tidy: pd.DataFrame, k: int, about: About) -> Any:
    """Recall against calibration; the best corner is at the top right."""
    import plotly.graph_objects as go

    wide = tidy.pivot(index="recommender", columns="metric", values="value")
    x, y = f"miscalibration@{k}", f"recall@{k}"
    if not {x, y} <= set(wide.columns):
        return None
    wide = wide.dropna(subset=[x, y])
    figure = go.Figure(
        go.Scatter(
            x=wide[x].tolist(),
            y=wide[y].tolist(),
            text=[escape(name) for name in wide.index],
            mode="markers+text",
            textposition=_labels_apart(wide[x].to_numpy(), wide[y].to_numpy()),
            marker={"size": 13, "color": _colours(wide.index, about), "line": {"width": 0}},
            cliponaxis=False,
            hovertemplate="%{text}<br>miscalibration %{x:.3f}, recall %{y:.4f}<extra></extra>",
        )
    )
    figure.update_layout(title="Right items and the right mix of tastes (best: top right)")
    figure.update_xaxes(title=f"{title(x)} (less is better →)", autorange="reversed")
    figure.update_yaxes(title=f"{title(y)} ↑", rangemode="tozero")
    return _styled(figure, height=430, left=70)


def _bias(tidy: pd.DataFrame, k: int, about: About) -> Any:
    """How popular the lists are, against how popular the people's own histories are."""
    import plotly.graph_objects as go

    rows = tidy[tidy["metric"] == f"popularity@{k}"].iloc[::-1].dropna(subset=["value"])
    lift = tidy[tidy["metric"] == f"popularity_lift@{k}"].set_index("recommender")["value"]
    if rows.empty or lift.dropna().empty:
        return None
    own = float((rows.set_index("recommender")["value"] - lift).dropna().mean())
    figure = go.Figure(
        go.Scatter(
            x=rows["value"].tolist(),
            y=[escape(name) for name in rows["recommender"]],
            mode="markers",
            marker={"size": 12, "color": _colours(rows["recommender"], about)},
            error_x=_whiskers(rows),
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.add_vline(own, line_dash="dash", line_color=OURS, annotation_text="people's own histories")
    figure.update_layout(title="Popularity bias: how popular is what is shown?")
    figure.update_xaxes(title=f"mean popularity percentile of the {k} items shown", range=[0, 1.02])
    return _styled(figure, height=430)


def _semantic_ids(diagnostics: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    facts = "".join(
        f"<div class=fact><b>{value:,.4g}</b><span>{escape(DIAGNOSTICS.get(name, name.replace('_', ' ')))}</span></div>"
        for name, value in diagnostics.items()
        if isinstance(value, int | float)
    )
    figures = ""
    if "use" in diagnostics:
        levels = [f"level {at + 1}" for at in range(len(diagnostics["use"]))]
        figure = go.Figure(go.Bar(x=levels, y=list(diagnostics["use"]), name="codes in use", marker_color=OURS))
        if {"perplexity", "sizes"} <= diagnostics.keys():
            even = [p / s for p, s in zip(diagnostics["perplexity"], diagnostics["sizes"], strict=True)]
            figure.add_bar(x=levels, y=even, name="evenly used (perplexity / size)", marker_color=THEIRS)
        figure.update_layout(title="Codebook use per level", legend={"orientation": "h", "y": -0.15}, barmode="group")
        figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
        figures = _figure(_styled(figure, height=320, left=50, legend=True), "")
    return f"<div class=facts>{facts}</div>{figures}"


def _labels_apart(x: np.ndarray, y: np.ndarray) -> list[str]:
    """Where the name of each point goes, so that neighbours do not write over each other."""
    order = np.lexsort((y, x))
    places = ("top center", "bottom center", "middle left", "middle right")
    return [places[at % 4] for at in np.argsort(order)]


def _colours(names: Iterable[str], about: About) -> list[str]:
    return [OURS if name in about.ours else THEIRS for name in names]


def _whiskers(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows["value"]).fillna(0).tolist(),
        "arrayminus": (rows["value"] - rows["low"]).fillna(0).tolist(),
        "color": THEIRS,
        "thickness": 1.4,
        "width": 3,
    }


def _styled(figure: Any, height: int, *, left: int | None = None, legend: bool = False) -> Any:
    """Transparent and without colours of its own for text and lines: the style sheet gives them, light or dark."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": left or 10, "r": 18, "t": 48, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, Segoe UI, Roboto, Helvetica Neue, sans-serif", "size": 12},
        title={"font": {"size": 14}, "x": 0, "xref": "container"},
        showlegend=legend,
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False, ticksuffix="  ")
    return figure


def _figure(figure: Any, metric: str) -> str:
    name = hashlib.sha256(figure.to_json().encode()).hexdigest()[:16]  # plotly's own choice is another every time
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    info = METRICS.get(base_name(metric))
    caption = f"<figcaption>{escape(info.meaning)}</figcaption>" if info else ""
    return f"<figure>{plot}{caption}</figure>"


def _glossary(tidy: pd.DataFrame) -> str:
    used = {base_name(m) for m in tidy["metric"]}
    terms = "".join(
        f"<dt>{escape(info.title)} <span class=arrow>{info.arrow}</span></dt><dd>{escape(info.meaning)}"
        + (f" <cite>{escape(info.paper)}</cite>" if info.paper else "")
        + "</dd>"
        for name, info in METRICS.items()
        if name in used
    )
    return (
        "<p>↑ more is better, ↓ less is better, →0 the nearer to zero the better. <i>Tastes</i> are clusters of the "
        f"item vectors (k-means).</p><dl>{terms}</dl>"
    )


def _footer(about: About) -> str:
    parts = [f"<code>{escape(about.command)}</code>" if about.command else ""]
    parts += [f"commit {escape(about.commit)}" if about.commit else "", escape(about.machine)]
    return f"<footer>{' · '.join(part for part in parts if part)}</footer>"


CSS = """
:root { color-scheme: light dark; --ink: #1e293b; --soft: #64748b; --line: #e2e8f0; --paper: #f8fafc; --card: #fff;
  --accent: #4f46e5; --tint: #eef2ff; --yes: #15803d; --no: #b91c1c; --warn: #92400e; --warn-bg: #fef3c7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --soft: #94a3b8; --line: #293548; --paper: #0b1120;
  --card: #131c2e; --accent: #a5b4fc; --tint: #1e2440; --yes: #4ade80; --no: #f87171; --warn: #fcd34d;
  --warn-bg: #422006; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 60px; }
h1 { font-size: 34px; line-height: 1.15; margin: 2px 0 14px; letter-spacing: -.02em; }
h2 { font-size: 19px; margin: 0 0 14px; letter-spacing: -.01em; }
h3 { font-size: 15px; margin: 18px 0 6px; }
.eyebrow { margin: 0; color: var(--accent); font-weight: 600; font-size: 13px; }
header p:last-child { max-width: 75ch; color: var(--soft); }
.chip { display: inline-block; padding: 3px 11px; margin: 0 7px 7px 0; border-radius: 99px; background: var(--tint);
  color: var(--accent); font-size: 13px; }
.chip.warn { background: var(--warn-bg); color: var(--warn); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px;
  margin-top: 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; font-size: 12.5px; white-space: normal; vertical-align: bottom; }
tbody th { text-align: left; font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tr.ours > * { background: var(--tint); }
tr.ours th { color: var(--accent); font-weight: 650; }
td b { font-weight: 700; } td u { text-underline-offset: 3px; }
.arrow, cite, .fine, figcaption { color: var(--soft); } .fine, figcaption { font-size: 13px; } cite { font-size: 13px; }
.verdicts { list-style: none; margin: 0; padding: 0; } .verdicts li { padding: 4px 0; }
.yes { color: var(--yes); } .no { color: var(--no); }
.grid { display: grid; gap: 18px 26px; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.grid.two { grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); }
@media (max-width: 560px) { .grid, .grid.two { grid-template-columns: 1fr; } main { padding: 24px 12px; } }
figure { margin: 0; min-width: 0; } figcaption { margin: -6px 0 6px; }
.facts { display: flex; flex-wrap: wrap; gap: 12px 34px; margin-bottom: 12px; }
.fact b { display: block; font-size: 21px; letter-spacing: -.01em; } .fact span { color: var(--soft); font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 7px 20px; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 640px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 8px; } }
summary { cursor: pointer; color: var(--accent); }
footer { color: var(--soft); font-size: 13px; margin-top: 24px; }
code { font-size: 12.5px; background: var(--tint); padding: 2px 6px; border-radius: 5px; }
.js-plotly-plot text { fill: var(--ink) !important; }
.js-plotly-plot .gridlayer path { stroke: var(--line) !important; }
.js-plotly-plot .hoverlayer text { fill: #fff !important; }
.js-plotly-plot .errorbars path, .js-plotly-plot path.xerror { stroke: var(--ink) !important; opacity: .65; }
"""
