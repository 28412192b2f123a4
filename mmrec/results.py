"""The one door for claims: records in `docs/results/*.json`, rendered to `docs/results.md`, which nobody types.

Run `python -m mmrec.results` to render.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from mmrec.evaluation.metrics import METRICS, base_name
from mmrec.workspace import write_text

if TYPE_CHECKING:
    import pandas as pd

DIRECTORY = Path("docs/results")
GOALS = "goals.json"
HEADLINE = (
    "ndcg@10",
    "recall@10",
    "coverage@10",
    "popularity_lift@10",
    "diversity@10",
    "miscalibration@10",
    "mode_coverage@10",
    "valid",
)
ABSOLUTE_PATH = re.compile(r"(?:^|[\s=:'\"])(?:/|[A-Za-z]:\\|~/)[\w.]")


class Record(BaseModel):
    """One measured number and all that is needed to measure it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = Field(min_length=1)
    split: str = Field(min_length=1)
    model: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    mean: float = Field(allow_inf_nan=False)
    std: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="over seeds; null with one seed")
    seeds: tuple[int, ...] = Field(min_length=1)
    command: str = Field(min_length=1)
    commit: str = Field(min_length=1)
    machine: str = Field(min_length=1)

    @field_validator("command", "machine", "dataset", "model")
    @classmethod
    def _travels(cls, text: str) -> str:
        if ABSOLUTE_PATH.search(text):
            raise ValueError(f"{text!r} names a path of one machine; write it relative to the repository")
        return text

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.dataset, self.split, self.model, self.metric


class Goal(BaseModel):
    """A number to reach, and who set it; `model` null means the best model of ours or theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: str
    metric: str
    goal: float = Field(allow_inf_nan=False)
    source: str = Field(min_length=1)
    model: str | None = None
    better: Literal["higher", "lower"] = "higher"


def records_of(
    summary: pd.DataFrame,
    *,
    dataset: str,
    split: str,
    seeds: Sequence[int],
    command: str,
    metrics: Sequence[str] = HEADLINE,
) -> list[Record]:
    """The rows of `summarise_seeds` (or of one `evaluate`) for `metrics` as records of this commit and this machine.

    A row that was measured with fewer seeds than the others names the first of them only.
    """
    mean = "mean" if "mean" in summary else "value"
    at, on = commit(), machine()
    return [
        Record(
            dataset=dataset,
            split=split,
            model=row["recommender"],
            metric=row["metric"],
            mean=row[mean],
            std=None if math.isnan(row.get("std", math.nan)) else row["std"],
            seeds=tuple(seeds[: int(row.get("seeds", len(seeds)))]),
            command=command,
            commit=at,
            machine=on,
        )
        for row in summary[summary["metric"].isin(metrics) & summary[mean].notna()].to_dict("records")
    ]


def write_records(name: str, records: Iterable[Record], directory: Path = DIRECTORY) -> Path:
    """Merge the records into `directory/<name>.json` and return its path.

    A record of the same dataset, split, model and metric is replaced, the others stay, so that a table fills bit by
    bit; the file is replaced in one step.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or f"{name}.json" == GOALS:
        raise ValueError(f"{name!r} cannot name a results file: use lower-case letters, digits, - and _, not 'goals'")
    path = Path(directory) / f"{name}.json"
    merged = {record.key: record for record in (_read(path, Record) if path.exists() else [])}
    merged |= {record.key: record for record in records}
    rows = [record.model_dump(mode="json") for record in merged.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
    return path


def read_records(directory: Path = DIRECTORY) -> list[Record]:
    """Every record under `directory`. Raises `ValueError` for a bad file, or for one number claimed by two files."""
    seen: dict[tuple[str, ...], Path] = {}
    records: list[Record] = []
    for path in sorted(p for p in Path(directory).glob("*.json") if p.name != GOALS):
        for record in _read(path, Record):
            if record.key in seen:
                raise ValueError(
                    f"{seen[record.key]} and {path} both hold {' / '.join(record.key)}: delete one of the two"
                )
            seen[record.key] = path
            records.append(record)
    return records


def render(directory: Path = DIRECTORY, output: Path = Path("docs/results.md")) -> str:
    """Write the tables of all records, and the goals of `goals.json` if there is one, to `output`; returns the text."""
    records = read_records(directory)
    goals_file = Path(directory) / GOALS
    parts = [
        "# Results",
        "Every number here was written by the command beside it and rendered by `python -m mmrec.results`; none is "
        "typed. Values are means ± standard deviations over seeds; the best of a column is bold.",
    ]
    if goals_file.exists():
        parts += _goal_lines(_read(goals_file, Goal), records)
    tables: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        tables.setdefault((record.dataset, record.split), []).append(record)
    for (dataset, split), rows in sorted(tables.items()):
        parts += [f"## {dataset}, {split}", _table(rows), _provenance(rows)]
    used = sorted({base_name(r.metric) for r in records} & METRICS.keys(), key=list(METRICS).index)
    if used:
        parts += ["## How to read the columns", "\n".join(_explain(name) for name in used)]
    if not records:
        parts.append("No results are recorded yet.")
    text = "\n\n".join(parts) + "\n"
    write_text(Path(output), text)
    return text


def commit(root: Path = Path()) -> str:
    """The short commit hash, with "+dirty" if anything but the results differs from it; "unknown" outside git."""
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ":/", ":(top,exclude)docs/results*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+dirty" if changed else "")


def machine() -> str:
    """The class of this machine (processor, cores, GPU if torch is in use), never its name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(
            r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        model = found[1].strip() if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{model}, {cores} core{'s' if cores > 1 else ''}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def _read(path: Path, kind: type[Any]) -> list[Any]:
    try:
        return TypeAdapter(list[kind]).validate_json(path.read_bytes())  # type: ignore[valid-type]
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path} is no list of {kind.__name__.lower()}s: {told}") from error


def _table(rows: list[Record]) -> str:
    models = list(dict.fromkeys(r.model for r in rows))
    known = list(METRICS)
    names = list(dict.fromkeys(r.metric for r in rows))
    names.sort(key=lambda m: known.index(base_name(m)) if base_name(m) in METRICS else len(known))
    cell = {(r.model, r.metric): r for r in rows}
    best = {name: _best([r for r in rows if r.metric == name]) for name in names}
    lines = ["| model | " + " | ".join(_column(name) for name in names) + " |", "| --- |" + " ---: |" * len(names)]
    for model in models:
        texts = []
        for name in names:
            record = cell.get((model, name))
            text = _number(record) if record else "–"
            texts.append(f"**{text}**" if record and record.mean == best[name] else text)
        lines.append(f"| {model} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _best(rows: list[Record]) -> float | None:
    """The winning mean of a column; None where there is no contest."""
    info = METRICS.get(base_name(rows[0].metric))
    if info is None or len({r.mean for r in rows}) < 2:
        return None
    return max((r.mean for r in rows), key=info.goodness)


def _column(metric: str) -> str:
    base, at, k = metric.partition("@")
    info = METRICS.get(base)
    return f"{info.title}{at}{k} {info.arrow}" if info else metric


def _explain(name: str) -> str:
    info = METRICS[name]
    return f"- **{info.title}**: {info.meaning}" + (f" ({info.paper})" if info.paper else "")


def _number(record: Record) -> str:
    def short(value: float) -> str:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"

    return short(record.mean) + (f" ± {short(record.std)}" if record.std is not None else "")


def _provenance(rows: list[Record]) -> str:
    runs: dict[tuple[tuple[int, ...], str, str, str], dict[str, None]] = {}
    for r in rows:
        runs.setdefault((r.seeds, r.command, r.commit, r.machine), {})[r.model] = None
    return "\n".join(
        f"- {', '.join(models)}: {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))}), "
        f"`{command}`, commit {at}, {on}"
        for (seeds, command, at, on), models in runs.items()
    )


def _goal_lines(goals: list[Goal], records: list[Record]) -> list[str]:
    lines = [
        "| dataset | split | metric | goal | reached | verdict | set by |",
        "| --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for g in goals:
        wanted = [r for r in records if (r.dataset, r.split, r.metric) == (g.dataset, g.split, g.metric)]
        wanted = [r for r in wanted if g.model in (None, r.model)]
        sign = 1 if g.better == "higher" else -1
        reached, told = "–", "not measured yet"
        if wanted:
            top = max(wanted, key=lambda r: sign * r.mean)
            short = sign * (g.goal - top.mean)
            reached, told = f"{_number(top)} ({top.model})", "**met**" if short <= 0 else f"missed by {short:.4g}"
        lines.append(
            f"| {g.dataset} | {g.split} | {_column(g.metric)} | {g.goal:g} | {reached} | {told} | {g.source} |"
        )
    return ["## Goals", "\n".join(lines)]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()


if __name__ == "__main__":
    render()
    print("docs/results.md rendered from", DIRECTORY)
