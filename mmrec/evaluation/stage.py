"""The stage `evaluate`: everything the workspace trained and every baseline, asked the same test questions.

The baselines are fitted on the training part only and, where they choose when to stop, choose on the validation part,
as ours do. Seeds after the recipe's own train the models again; the catalog, its vectors and its semantic IDs stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec.config import Recipe
from mmrec.interactions import Queries, Split
from mmrec.progress import progress
from mmrec.stages import Built, configure, fit_prior, fit_retriever, load_split, load_vectors, validation_of
from mmrec.workspace import CHECKPOINTS, Workspace

if TYPE_CHECKING:
    import pandas as pd

OURS = ("retriever", "retriever (dense alone)", "retriever (codes alone)", "prior")


def evaluate(workspace: Workspace, recipe: Recipe) -> Built:
    """Measure, and write `metrics.parquet`, `summary.parquet` (mean and spread over seeds) and `report.html`."""
    stages = ("interactions", "vectors", "ids", "retriever", "prior", "index")
    inputs = {stage: workspace.require(stage).fingerprint for stage in stages}
    options = {"evaluation": recipe.evaluation.model_dump(), "split": recipe.split}
    return workspace.build("evaluation", inputs, options, lambda folder: _measure(workspace, recipe, folder))


def _measure(workspace: Workspace, recipe: Recipe, folder: Path) -> None:
    import pandas as pd

    from mmrec import results
    from mmrec.evaluation.harness import claims_against, summarise_seeds, verdict
    from mmrec.evaluation.report import About, write_report

    _, _, split = load_split(workspace, recipe)
    queries = _some(split.test, recipe.evaluation.people, recipe.seed)
    frames = []
    for seed in recipe.evaluation.seeds:
        finished = folder / CHECKPOINTS / f"seed-{seed}.parquet"
        if not finished.is_file():
            frame = _measure_seed(workspace, recipe, split, queries, seed, folder / CHECKPOINTS / f"models-{seed}")
            partial = finished.with_suffix(".part")
            partial.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(partial, index=False)
            partial.replace(finished)
        frames.append(pd.read_parquet(finished))
    summarise_seeds(frames).to_parquet(folder / "summary.parquet", index=False)
    verdicts = verdict(frames[0], claims_against("retriever", recipe.evaluation.claims))
    about = About(
        dataset=recipe.name,
        split=split.name,
        seeds=recipe.evaluation.seeds,
        simulated=recipe.source.simulated,
        ours=OURS,
        items=len(load_vectors(workspace)),
        command=f"mmrec run recipes/{recipe.name}.yaml",
        commit=results.commit(),
        machine=results.machine(),
    )
    diagnostics = json.loads((workspace.require("ids").path / "diagnostics.json").read_text(encoding="utf-8"))
    write_report(frames[0], folder, about, verdicts=verdicts, diagnostics=diagnostics)
    (folder / "verdicts.json").write_text(json.dumps([str(v) for v in verdicts], indent=1), encoding="utf-8")


def _measure_seed(
    workspace: Workspace, recipe: Recipe, split: Split, queries: Queries, seed: int, checkpoints: Path
) -> pd.DataFrame:
    from diffusion.prior import Prior
    from mmrec.evaluation.harness import evaluate as ask
    from mmrec.evaluation.rankers import DreamRanker, RetrieverRanker
    from retrieval.baselines import baseline_names, make_baseline
    from retrieval.index import VectorIndex
    from retrieval.model import RetrieverConfig
    from retrieval.retriever import Retriever

    vectors = load_vectors(workspace)
    index = VectorIndex.load(workspace.require("index").path)
    if seed == recipe.seed:
        retriever = Retriever.from_pretrained(workspace.require("retriever").path)
        prior = Prior.from_pretrained(workspace.require("prior").path)
    else:
        retriever = fit_retriever(workspace, recipe, split, seed, checkpoints / "retriever")
        prior = fit_prior(workspace, recipe, split, seed, checkpoints / "prior")
    regression = fit_prior(workspace, recipe, split, seed, checkpoints / "regression", regression=True)

    baselines: list[Any] = []
    for name in baseline_names():
        options: dict[str, Any] = {}
        if name == "sasrec":
            config = configure(RetrieverConfig, recipe.retriever, "retriever")
            options = {"config": config, "validation": validation_of(split), "checkpoint_dir": checkpoints / "sasrec"}
        with progress(f"fitting {name}, seed {seed}", unit="epochs") as tick:
            if name == "sasrec":
                options["progress"] = tick
            baseline = make_baseline(name, **options)
            baseline.fit(split.train.items, split.train.preferences, vectors, seed=seed)
        baselines.append(baseline)
    recommenders: list[Any] = [
        RetrieverRanker(retriever, "fused"),
        RetrieverRanker(retriever, "dense"),
        RetrieverRanker(retriever, "codes"),
        DreamRanker("prior", prior, index, vectors, seed),
        DreamRanker("regression", regression, index, vectors, seed),
        *baselines,
    ]
    with progress(f"asking {len(queries):,} people, seed {seed}", unit="answers") as tick:
        return ask(
            recommenders,
            queries,
            vectors=vectors,
            train=split.train,
            ks=recipe.evaluation.ks,
            seed=seed,
            progress=tick,
        )


def show(workspace: Workspace, recipe: Recipe) -> None:
    """Print the table and the verdicts of the workspace's evaluation."""
    import pandas as pd
    from rich.console import Console

    from mmrec.evaluation.report import terminal_table

    folder = workspace.require("evaluation").path
    summary = pd.read_parquet(folder / "summary.parquet")
    people = " · simulated people" if recipe.source.simulated else ""
    seeds = f"{len(recipe.evaluation.seeds)} seed{'s' if len(recipe.evaluation.seeds) > 1 else ''}"
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(terminal_table(summary, heading=f"{recipe.name}, test{people}, {seeds}"))
    for line in json.loads((folder / "verdicts.json").read_text(encoding="utf-8")):
        console.print(f"  {line}")
    console.print(f"  report: {workspace.root / 'evaluation' / 'report.html'}")


def record(workspace: Workspace, recipe: Recipe, directory: Path) -> Path:
    """Write the evaluation's headline numbers into ``directory/<recipe>.json``, the door every claim goes through."""
    import pandas as pd

    from mmrec import results

    summary = pd.read_parquet(workspace.require("evaluation").path / "summary.parquet")
    records = results.records_of(
        summary,
        dataset=recipe.name + (" (simulated people)" if recipe.source.simulated else ""),
        split=f"{recipe.split}-test",
        seeds=recipe.evaluation.seeds,
        command=f"mmrec run recipes/{recipe.name}.yaml && mmrec evaluate -w workspaces/{recipe.name} "
        f"--seeds {','.join(map(str, recipe.evaluation.seeds))} --record docs/results",
    )
    return results.write_records(recipe.name, records, directory)


def _some(queries: Queries, people: int | None, seed: int) -> Queries:
    if people is None or people >= len(queries):
        return queries
    rows = np.sort(np.random.default_rng(seed).choice(len(queries), people, replace=False))
    return Queries(
        queries.users[rows],
        [queries.histories[i] for i in rows],
        [queries.preferences[i] for i in rows],
        [queries.targets[i] for i in rows],
    )
