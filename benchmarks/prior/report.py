"""Tables with intervals, paired tests and records out of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import timing
from benchmarks.prior.measure import PEOPLE, slug
from benchmarks.prior.people import DATASETS
from benchmarks.prior.rounds import WAYS
from benchmarks.prior.rows import rows
from benchmarks.prior.steering import draw, gain_over_line
from benchmarks.prior.verifier import calibration_error, swap_margin
from mmrec import results
from mmrec.evaluation.metrics import METRICS, bootstrap_interval, paired_permutation

OURS = "prior, 8 steps"
RIVALS = ("regression", "history-kNN", "history as seeds, our grounding", "popularity", "item-kNN", "the log alone",
          "retriever")  # fmt: skip
SPLIT = "people-disjoint-test"
NAMES = {
    "recall": "recall@{k}", "ndcg": "ndcg@{k}", "miscalibration": "miscalibration_held_out@{k}",
    "miscalibration_shown": "miscalibration@{k}", "mode_coverage": "mode_coverage_held_out@{k}",
    "energy_score": "energy_score", "vendi": "vendi@{k}", "novelty": "novelty@{k}", "cmmd": "cmmd", "mauve": "mauve",
    "per_second": "per_cpu_second", "evaluations": "evaluations",
}  # fmt: skip
JUDGED = ("recall", "ndcg", "miscalibration", "energy_score")


class Table:
    """All that was measured of one data set: numbers per row, metric and part of the people."""

    def __init__(self, folder: Path, parts: Sequence[str]) -> None:
        self.rows: dict[str, list[dict[str, np.ndarray]]] = {}
        self.seeds: dict[str, list[int]] = {}
        for row in rows():
            for part in parts:
                file = folder / part / f"{slug(row)}.npz"
                if file.is_file():
                    self.rows.setdefault(row, []).append(dict(np.load(file)))
                    self.seeds.setdefault(row, []).append(int(part.rpartition("-")[2]) if "-" in part else 0)

    def people(self, row: str, metric: str, like: str | None = None) -> np.ndarray:
        """The numbers of everybody asked; with `like`, of those in the parts that row was asked in."""
        kept = [
            numbers for seed, numbers in zip(self.seeds[row], self.rows[row], strict=True)
            if like is None or seed in self.seeds[like]
        ]  # fmt: skip
        return np.concatenate([numbers[metric] for numbers in kept])

    def means(self, row: str, metric: str) -> list[float]:
        return [
            float(np.nanmean(numbers[metric])) if np.isfinite(numbers[metric]).any() else np.nan
            for numbers in self.rows[row]
        ]

    def interval(self, row: str, metric: str) -> tuple[float, float]:
        low, high = bootstrap_interval(self.people(row, metric), 0)
        return float(low), float(high)

    def p(self, row: str, rival: str, metric: str) -> tuple[float, float]:
        """The mean gain of a row over a rival on the same people (above 0 is better), and its paired p."""
        a, b = self.people(row, metric, rival), self.people(rival, metric, row)
        return sign_of(metric) * float(np.nanmean(a - b)), paired_permutation(a, b, 0)


def sign_of(metric: str) -> int:
    return 1 if METRICS[NAMES[metric].partition("@")[0]].better == "higher" else -1


def text(name: str, table: Table) -> str:
    """The table in Markdown: mean over people with its 95 % interval."""
    k = DATASETS[name]["k"]
    titles = [title(metric, k) for metric in NAMES]
    lines = ["| " + " | ".join(["row", *titles, "people"]) + " |", "| --- |" + " ---: |" * (len(titles) + 1)]
    for row in table.rows:
        cells = []
        for metric in NAMES:
            mean = np.mean(table.means(row, metric))
            if metric in PEOPLE:
                low, high = table.interval(row, metric)
                cells.append(f"{np.nanmean(table.people(row, metric)):.4f} [{low:.3f}, {high:.3f}]")
            else:
                cells.append("–" if np.isnan(mean) else f"{mean:,.1f}" if mean >= 10 else f"{mean:.3f}")
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {len(table.people(row, 'recall')):,} |")
    return "\n".join(lines)


def title(metric: str, k: int) -> str:
    base, at, rest = NAMES[metric].format(k=k).partition("@")
    info = METRICS.get(base)
    return f"{info.title}{at}{rest} {info.arrow}" if info else base.replace("_", " ")


def gains(table: Table) -> list[str]:
    """What our prior gains over each rival, on the same people."""
    lines = ["| against | " + " | ".join(f"{metric}: gain, p" for metric in JUDGED) + " |", "| --- |" + " ---: |" * 4]
    for rival in RIVALS:
        if rival in table.rows:
            cells = []
            for metric in JUDGED:
                gain, p = table.p(OURS, rival, metric)
                cells.append(f"{gain:+.4f}, {'< .001' if p < 0.001 else f'{p:.3f}'}")
            lines.append(f"| {rival} | " + " | ".join(cells) + " |")
    return lines


def show(name: str, folder: Path, parts: Sequence[str]) -> None:
    table = Table(folder, parts)
    if table.rows:
        print(text(name, table))
        if OURS in table.rows:
            print("\n".join(gains(table)))


def first(table: Table, metric: str) -> tuple[str, float]:
    """Who is best of those that everybody was asked of, and the end of its interval that others have to reach."""
    sign = sign_of(metric)
    everyone = max(len(table.seeds[row]) for row in table.rows)
    able = [row for row in table.rows if len(table.seeds[row]) == everyone]
    best = max(able, key=lambda row: sign * np.nanmean(table.people(row, metric)))
    low, high = table.interval(best, metric)
    return best, low if sign > 0 else high


def verified(folder: Path) -> dict[str, tuple[float, list[int]]]:
    """What the verifiers are worth, and what they say of people's own dreams and those of others."""
    files = sorted(folder.glob("seed-*/verified.npz"))
    if not files:
        return {}
    kept = [dict(np.load(file)) for file in files]
    seeds = [int(file.parent.name.rpartition("-")[2]) for file in files]
    margin, p = swap_margin([k["scores"] for k in kept])
    ceiling = sorted(folder.glob("seed-*/verified-likes.npz"))
    of_likes, p_of_likes = swap_margin([np.load(file)["scores"] for file in ceiling])
    chances, liked = (np.concatenate([k[name] for k in kept]) for name in ("chances", "liked"))
    return {
        "auc": (float(np.nanmean(np.concatenate([k["auc"] for k in kept]))), seeds),
        "auc of what is personal": (float(np.nanmean(np.concatenate([k["auc_personal"] for k in kept]))), seeds),
        "calibration error": (calibration_error(chances, liked), seeds),
        "user-swap margin": (margin, seeds),
        "p of user-swap margin": (p, seeds),
        "user-swap margin of the likes shown": (of_likes, seeds),
        "p of user-swap margin of the likes shown": (p_of_likes, seeds),
    }


def gone_on(folder: Path) -> tuple[list[int], dict[str, list[np.ndarray]]]:
    """The seeds measured, and per way and round everybody's share of liked items, an array per seed."""
    files = sorted(folder.glob("seed-*/rounds.npz"))
    kept = [dict(np.load(file)) for file in files]
    seeds = [int(file.parent.name.rpartition("-")[2]) for file in files]
    return seeds, {name: [numbers[name] for numbers in kept] for name in (kept[0] if kept else {})}


def steered(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Curves by kind of steer, of seed 0."""
    return {file.stem.partition("-")[2]: dict(np.load(file)) for file in sorted(folder.glob("seed-0/steering-*.npz"))}


def record(measured: Path, page: Path = Path("docs/prior-tables.md")) -> None:
    """Records of every number, the picture of steering, and the page with the tables. What the page says of a data set
    whose rows were not measured here stays, and so does the picture unless all sets were steered here."""
    said_before = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.is_file() else []
    before = {section.partition("\n")[0]: f"## {section.strip()}" for section in said_before}
    parts = [
        "# The prior on people it never learned from: tables",
        "Written by `python -m benchmarks.prior --record`; nothing here is typed. Means over people with 95 % "
        "bootstrap intervals; [prior.md](prior.md) says how they were measured.",
    ]
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name in DATASETS:
        table = Table(measured / name, [f"seed-{seed}" for seed in range(5)])
        curves = steered(measured / name)
        panels |= {f"{name}: {kind}": curve for kind, curve in curves.items()}
        if curves:
            results.write_records(f"prior-{name}", _steering_records(name, curves))
        if OURS not in table.rows:
            parts += [before[name]] if name in before else []
        else:
            said = verified(measured / name)
            results.write_records(f"prior-{name}", _records(name, table, said))
            results.write_records(f"prior-{name}", _round_records(name, *gone_on(measured / name)))
            parts += [f"## {name}", text(name, table), "\n".join(gains(table))]
            for metric in JUDGED:
                best, bar = first(table, metric)
                called = title(metric, DATASETS[name]["k"])
                parts.append(f"First on {called}: {best}; its interval ends at {bar:.4f}.")
            if said:
                words = ", ".join(f"{metric} {value:.4f}" for metric, (value, _) in said.items())
                parts.append(f"Verifiers: {words}.")
    if {title.partition(":")[0] for title in panels} == set(DATASETS):
        draw(panels, "docs/images/prior_steering.png")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(page)


def _records(name: str, table: Table, said: dict[str, tuple[float, list[int]]]) -> list[results.Record]:
    k, made = DATASETS[name]["k"], []
    command = f"python -m benchmarks.prior --set {name} --seeds 0,1,2,3,4 && python -m benchmarks.prior --record"

    def add(kind: str, model: str, metric: str, values: Sequence[float], seeds: Sequence[int]) -> None:
        made.append(timing.record(f"prior: {name}", SPLIT + kind, model, metric, values, seeds, command))

    for row in table.rows:
        for metric, called in NAMES.items():
            values = table.means(row, metric)
            if not np.isnan(values).any():
                add("", row, called.format(k=k), values, table.seeds[row])
    for metric in JUDGED:
        called = NAMES[metric].format(k=k)
        _, bar = first(table, metric)
        spare = sign_of(metric) * (float(np.nanmean(table.people(OURS, metric))) - bar)
        add(", paired", f"{OURS} against the first's interval", f"gain of {called}", [spare], table.seeds[OURS])
        for rival in [rival for rival in RIVALS if rival in table.rows]:
            gain, p = table.p(OURS, rival, metric)
            shared = [seed for seed in table.seeds[OURS] if seed in table.seeds[rival]]
            add(", paired", f"{OURS} against {rival}", f"gain of {called}", [gain], shared)
            add(", paired", f"{OURS} against {rival}", f"p of {called}", [p], shared)
    for metric, (value, seeds) in said.items():
        add(", verified", "verifiers", metric, [value], seeds)
    return made


def _round_records(name: str, seeds: list[int], shares: dict[str, list[np.ndarray]]) -> list[results.Record]:
    command = f"python -m benchmarks.prior --set {name} --seeds 0,1,2,3,4 && python -m benchmarks.prior --record"
    made = []

    def add(model: str, metric: str, values: Sequence[float]) -> None:
        made.append(timing.record(f"prior: {name}", f"{SPLIT}, rounds", model, metric, values, seeds, command))

    for way, parts in shares.items():
        add(way, "share liked", [float(np.nanmean(part)) for part in parts])
        if way.startswith(WAYS[0]) and not way.endswith("round 1"):
            other = shares[way.replace(*WAYS)]
            add(way, "p against hidden only", [paired_permutation(np.concatenate(parts), np.concatenate(other), 0)])
    return made


def _steering_records(name: str, curves: dict[str, dict[str, np.ndarray]]) -> list[results.Record]:
    command = "python -m benchmarks.prior --steering && python -m benchmarks.prior --record"
    made = []

    def add(model: str, metric: str, value: float) -> None:
        split = f"{SPLIT}, steered"
        made.append(timing.record(f"prior: {name}", split, model, metric, [value], [0], command))

    for kind, curve in curves.items():
        kept = gain_over_line(curve["prior"], curve["straight line"])
        add(f"{kind}: prior against straight line", "gain of personal score", kept)
        for contender, points in curve.items():
            for at, (likeness, personal) in enumerate(points):
                add(f"{kind}: {contender}, notch {at}", "likeness to the steer", likeness)
                add(f"{kind}: {contender}, notch {at}", "personal score", personal)
    return made
