"""The stage `evaluate`: everything the workspace trained and every baseline, asked the same test questions.

The baselines are fitted on the training part only and, where they choose when to stop, choose on the validation part,
as ours do. Seeds after the recipe's own train the models again; the catalog, its vectors and its semantic IDs stay.
What was measured is kept in the workspace's `.measured/` per recommender, protocol and seed, with the models trained
for it: an evaluation that was killed, or is asked for more seeds, goes on from there; a table fills bit by bit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec.config import Recipe
from mmrec.errors import MmrecError
from mmrec.interactions import Queries, Split
from mmrec.progress import progress
from mmrec.stages import Built, configure, fit_prior, fit_retriever, load_split, load_vectors, validation_of
from mmrec.workspace import Workspace, fingerprint_of

if TYPE_CHECKING:
    import pandas as pd

    from retrieval.retriever import Retriever

KEPT = ".measured"
OURS = (
    "retriever",
    "retriever (dense alone)",
    "retriever (codes alone)",
    "retriever (content only)",
    "retriever (history shown)",
    "prior",
)


@dataclass(frozen=True)
class Study:
    """What one row of a table is made from."""

    workspace: Workspace
    recipe: Recipe
    split: Split
    protocol: str  # strict or refit
    seed: int
    inputs: Mapping[str, str]  # fingerprints of what is measured and what it is made from

    @property
    def models(self) -> Path:
        """Where the models of this seed are kept, for both protocols."""
        chosen = [self.inputs, self.recipe.split, self.recipe.retriever, self.recipe.prior]
        return self.workspace.root / KEPT / fingerprint_of(chosen) / f"seed-{self.seed}"

    def measured(self, name: str) -> Path:
        """Where the measurements of a recommender are kept."""
        evaluation = self.recipe.evaluation
        asked = fingerprint_of([evaluation.ks, evaluation.people, evaluation.baselines.get(name)])
        return self.models / f"{self.protocol}-{name}-{asked}.parquet"


def evaluate(workspace: Workspace, recipe: Recipe) -> Built:
    """Measure, and write `metrics.parquet`, `summary.parquet` (mean and spread over seeds) and `report.html`."""
    stages = ["interactions", "vectors", "ids", "retriever", "index"]
    if {"prior", "regression"} & set(contenders(recipe)):
        stages.append("prior")
    inputs = {stage: workspace.require(stage).fingerprint for stage in stages}
    options = {"evaluation": recipe.evaluation.model_dump(), "split": recipe.split}
    return workspace.build("evaluation", inputs, options, lambda folder: _measure(workspace, recipe, inputs, folder))


def contenders(recipe: Recipe) -> list[str]:
    """Names of what is measured: keys of `ROWS` and names of baselines.

    Raises:
        MmrecError: for a name that is neither, for options that a baseline does not take, and for a claim about what
            is not measured.
    """
    from retrieval.baselines import baseline_names, published_names

    baselines = [*baseline_names(), *published_names()]
    known = [*ROWS, *baselines]
    dreams = [] if recipe.prior is None else ["prior", "regression"]
    names = recipe.evaluation.recommenders or ["retriever", *dreams, *baseline_names()]
    for name in [*names, *recipe.evaluation.one_seed]:
        if name not in known:
            raise MmrecError(f"evaluation names {name!r}", mend=f"use names out of: {', '.join(known)}")
    for name in recipe.evaluation.baselines:
        if name not in baselines:
            raise MmrecError(f"evaluation.baselines names {name!r}", mend=f"use names out of: {', '.join(baselines)}")
        baseline_options(recipe, name)
    for name in recipe.evaluation.claims or []:
        if name not in names or "retriever" not in names:
            raise MmrecError(
                f"evaluation.claims names {name!r}, and the retriever and {name} are not both measured",
                mend="name both in evaluation.recommenders",
            )
    return names


def baseline_options(recipe: Recipe, name: str) -> dict[str, Any]:
    """What a baseline is made with: its config, or its options where it has none.

    Raises:
        MmrecError: naming the section of the recipe, if an option is unknown or out of range.
    """
    from retrieval.baselines import baseline_class
    from retrieval.model import RetrieverConfig

    where, options = f"evaluation.baselines.{name}", recipe.evaluation.baselines.get(name, {})
    accepts = signature(baseline_class(name)).parameters
    if "config" not in accepts:
        configure(baseline_class(name), options, where)
        return options
    default = accepts["config"].default
    if isinstance(default, RetrieverConfig):  # ours without content and codes is trained as ours is
        options = recipe.retriever | options
    return {"config": configure(type(default), asdict(default) | options, where)}


def _measure(workspace: Workspace, recipe: Recipe, inputs: Mapping[str, str], folder: Path) -> None:
    import pandas as pd

    from mmrec import results
    from mmrec.evaluation.harness import BASELINES, claims_against, summarise_seeds, verdict
    from mmrec.evaluation.report import About, write_report

    frames: dict[str, list[pd.DataFrame]] = {}
    summaries = []
    for protocol in recipe.evaluation.protocols:
        split = load_split(workspace, recipe, refit=protocol == "refit")[2]
        queries = _some(split.test, recipe.evaluation.people, recipe.seed)
        frames[protocol] = []
        for number, seed in enumerate(recipe.evaluation.seeds):
            study = Study(workspace, recipe, split, protocol, seed, inputs)
            names = [n for n in contenders(recipe) if number == 0 or n not in recipe.evaluation.one_seed]
            frames[protocol].append(pd.concat([_row(study, name, queries) for name in names]))
        summaries.append(summarise_seeds(frames[protocol]).assign(protocol=protocol))
    pd.concat(summaries, ignore_index=True).to_parquet(folder / "summary.parquet", index=False)

    first = frames[recipe.evaluation.protocols[0]][0]
    ks, rivals = recipe.evaluation.ks, recipe.evaluation.claims
    if rivals is None:
        rivals = [name for name in BASELINES if {name, "retriever"} <= set(contenders(recipe))]
    verdicts = verdict(first, claims_against("retriever", rivals, f"ndcg@{10 if 10 in ks else ks[0]}"))
    about = About(
        dataset=recipe.name,
        split=load_split(workspace, recipe, refit=recipe.evaluation.protocols[0] == "refit")[2].name,
        seeds=recipe.evaluation.seeds,
        simulated=recipe.source.simulated,
        ours=OURS,
        items=len(load_vectors(workspace)),
        command=f"mmrec run recipes/{recipe.name}.yaml",
        commit=results.commit(),
        machine=results.machine(),
    )
    diagnostics = json.loads((workspace.require("ids").path / "diagnostics.json").read_text(encoding="utf-8"))
    write_report(first, folder, about, verdicts=verdicts, diagnostics=diagnostics)
    (folder / "verdicts.json").write_text(json.dumps([str(v) for v in verdicts], indent=1), encoding="utf-8")


def _row(study: Study, name: str, queries: Queries) -> pd.DataFrame:
    """The measurements of one recommender (the retriever: of each of its modes), kept once they are made."""
    import pandas as pd

    from mmrec.evaluation.harness import evaluate as ask

    file = study.measured(name)
    if not file.is_file():
        recommenders = ROWS[name](study) if name in ROWS else [_baseline(study, name)]
        with progress(f"asking {len(queries):,} people, {name}, {study.protocol}, seed {study.seed}") as tick:
            frame = ask(
                recommenders,
                queries,
                vectors=load_vectors(study.workspace),
                train=study.split.train,
                ks=study.recipe.evaluation.ks,
                seed=study.seed,
                progress=tick,
            )
        partial_file = file.with_suffix(".part")
        partial_file.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(partial_file, index=False)
        partial_file.replace(file)
    return pd.read_parquet(file)


def _retriever(study: Study, name: str = "retriever", **changes: Any) -> Retriever:
    """The retriever of the recipe with `changes` to its options: chosen by validation and, for refit, trained again."""
    from retrieval.retriever import Retriever

    recipe = study.recipe.model_copy(update={"retriever": study.recipe.retriever | changes})
    if study.seed == recipe.seed and not changes:
        chosen = Retriever.from_pretrained(study.workspace.require("retriever").path)
    else:
        strict = load_split(study.workspace, recipe)[2]
        train = partial(fit_retriever, study.workspace, recipe, strict, study.seed, study.models / name)
        chosen = _kept(study.models / f"{name}-strict", train)
    if study.protocol == "strict":
        return chosen
    again = study.models / f"{name}-again"
    train = partial(fit_retriever, study.workspace, recipe, study.split, study.seed, again, chosen.config)
    return _kept(study.models / f"{name}-refit", train)


def _kept(folder: Path, train: Callable[[], Retriever]) -> Retriever:
    """The retriever saved in the folder, or a new one, which is then saved there."""
    from retrieval.retriever import Retriever

    if not (folder / "config.json").is_file():
        train().save_pretrained(folder)
    return Retriever.from_pretrained(folder)


def _retriever_rows(study: Study) -> list[Any]:
    from mmrec.evaluation.rankers import RetrieverRanker

    retriever = _retriever(study)
    modes = [RetrieverRanker(retriever, mode) for mode in ("fused", "dense", "codes")]
    return [*modes, RetrieverRanker(retriever, "fused", hide_history=False)]


def _content_rows(study: Study) -> list[Any]:
    from mmrec.evaluation.rankers import RetrieverRanker

    ranker = RetrieverRanker(_retriever(study, "content-only", residual=False), "fused")
    ranker.name = "retriever (content only)"
    return [ranker]


def _prior_rows(study: Study) -> list[Any]:
    from diffusion.prior import Prior

    if study.seed == study.recipe.seed and study.protocol == "strict":
        prior = Prior.from_pretrained(study.workspace.require("prior").path)
    else:
        checkpoints = study.models / f"prior-{study.protocol}"
        prior = fit_prior(study.workspace, study.recipe, study.split, study.seed, checkpoints)
    from retrieval.worth import Worth

    train = study.split.train
    return [_dreams(study, "prior", prior, Worth(train.items, train.preferences, len(load_vectors(study.workspace))))]


def _regression_rows(study: Study) -> list[Any]:
    checkpoints = study.models / f"regression-{study.protocol}"
    model = fit_prior(study.workspace, study.recipe, study.split, study.seed, checkpoints, regression=True)
    return [_dreams(study, "regression", model)]


def _dreams(study: Study, name: str, model: Any, worth: Any = None) -> Any:
    from mmrec.evaluation.rankers import DreamRanker
    from retrieval.index import VectorIndex

    index = VectorIndex.load(study.workspace.require("index").path)
    return DreamRanker(name, model, index, load_vectors(study.workspace), worth, study.seed)


ROWS: dict[str, Callable[[Study], list[Any]]] = {
    "retriever": _retriever_rows,
    "content_only": _content_rows,
    "prior": _prior_rows,
    "regression": _regression_rows,
}


def _baseline(study: Study, name: str) -> Any:
    """The baseline, fitted; one that is trained in epochs stops by validation, and for refit trains as long again."""
    from retrieval.baselines import baseline_class

    strict = study.split if study.protocol == "strict" else load_split(study.workspace, study.recipe)[2]
    if study.protocol == "strict":
        return _fitted(study, name, strict, validation=validation_of(strict))
    if "config" not in signature(baseline_class(name)).parameters:
        return _fitted(study, name, study.split)
    chosen = _fitted(replace(study, protocol="strict"), name, strict, validation=validation_of(strict)).chosen
    return _fitted(study, name, study.split, config=chosen)


def _fitted(study: Study, name: str, split: Split, **given: Any) -> Any:
    from retrieval.baselines import baseline_class

    kept = f"{name}-{study.protocol}-{fingerprint_of(study.recipe.evaluation.baselines.get(name, {}))}"
    accepts = signature(baseline_class(name)).parameters
    options = baseline_options(study.recipe, name) | {key: value for key, value in given.items() if key in accepts}
    with progress(f"fitting {name}, {study.protocol}, seed {study.seed}", unit="epochs") as tick:
        if "checkpoint_dir" in accepts:
            options |= {"checkpoint_dir": study.models / kept, "progress": tick}
        baseline = baseline_class(name)(**options)
        baseline.fit(split.train.items, split.train.preferences, load_vectors(study.workspace), seed=study.seed)
    return baseline


def show(workspace: Workspace, recipe: Recipe) -> None:
    """Print the tables and the verdicts of the workspace's evaluation."""
    import pandas as pd
    from rich.console import Console

    from mmrec.evaluation.report import terminal_table

    folder = workspace.require("evaluation").path
    summary = pd.read_parquet(folder / "summary.parquet")
    people = " · simulated people" if recipe.source.simulated else ""
    seeds = f"{len(recipe.evaluation.seeds)} seed{'s' if len(recipe.evaluation.seeds) > 1 else ''}"
    console = Console(width=None if sys.stdout.isatty() else 140)
    for protocol, table in summary.groupby("protocol", sort=False):
        console.print(terminal_table(table, heading=f"{recipe.name}, {protocol} test{people}, {seeds}"))
    for line in json.loads((folder / "verdicts.json").read_text(encoding="utf-8")):
        console.print(f"  {line}")
    console.print(f"  report: {workspace.root / 'evaluation' / 'report.html'}")


def record(workspace: Workspace, recipe: Recipe, directory: Path) -> Path:
    """Write the evaluation's headline numbers into ``directory/<recipe>.json``, the door every claim goes through."""
    import pandas as pd

    from mmrec import results
    from retrieval.baselines import published_names

    summary = pd.read_parquet(workspace.require("evaluation").path / "summary.parquet")
    told: Sequence[int] = recipe.evaluation.seeds
    command = (
        f"mmrec run recipes/{recipe.name}.yaml && mmrec evaluate -w workspaces/{recipe.name} "
        f"--seeds {','.join(map(str, told))} --record docs/results"
    )
    records = [
        record
        for (protocol, name), rows in summary.groupby(["protocol", "recommender"], sort=False)
        for record in results.records_of(
            rows,
            dataset=recipe.name + (" (simulated people)" if recipe.source.simulated else ""),
            split=f"{protocol}-test" if recipe.split == "leave_one_out" else f"{recipe.split}-{protocol}-test",
            seeds=told,
            command=f"{command} --also {name} --protocol {protocol}" if name in published_names() else command,
        )
    ]
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
