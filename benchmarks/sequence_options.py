"""What others add to a sequence model, each alone on ours, with the same budget for every row.

    python -m benchmarks.sequence_options --record docs/results

Amazon Beauty in the strict protocol; the validation events are asked for, the test events never. The first part learns
items (`EPOCHS` short ones, so rows compare with each other and with nothing else), the second continues from the plain
row, and what gained most is tried again with the recipe's own schedule. Behaviours need people who dislike: MovieLens
latest-small with its times. An option that does not help stays here and out of the package. Finished rows are kept in
--work.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import record
from mmrec import results, stages
from mmrec.config import Recipe
from mmrec.evaluation.metrics import coverage
from mmrec.workspace import Workspace, write_text
from retrieval.baselines.fitting import fit
from retrieval.baselines.hstu import HSTUBlock
from retrieval.decode import beam_search
from retrieval.model import Block, RetrieverConfig, SequenceModel, sampled_softmax
from retrieval.ranking import padded, rank, recall_and_ndcg
from retrieval.retriever import Retriever, some_people
from retrieval.semantic_ids import SemanticIds
from retrieval.training import batches

EPOCHS, WHOLE, SEED = 3, 9, 0
AT_ONCE = 256
COMMAND = "python -m benchmarks.sequence_options --record docs/results"


@dataclass(frozen=True)
class Data:
    histories: list[np.ndarray]
    asked: tuple[list[np.ndarray], np.ndarray]
    vectors: np.ndarray
    ids: SemanticIds
    config: RetrieverConfig


def load(work: Path) -> Data:
    recipe = Recipe.load(Path("recipes/amazon_beauty.yaml"))
    space = Workspace(work / "amazon_beauty")
    for stage in (stages.ingest, stages.embed, stages.fuse, stages.tokenize):
        stage(space, recipe)
    split = stages.load_split(space, recipe)[2]
    return Data(
        stages.wanted_only(split.train.items, split.train.preferences),
        stages.validation_of(split),
        stages.load_vectors(space),
        SemanticIds.load(space.require("ids").path / "ids"),
        replace(stages.configure(RetrieverConfig, recipe.retriever, "retriever"), epochs=EPOCHS, full_softmax_up_to=0),
    )


# -- what learns items -------------------------------------------------------------------------------------------------


class Plain(SequenceModel):
    """Our model; a subclass says what one option changes."""

    def learn(self, sequences: Tensor) -> Tensor:
        negatives = torch.randint(self.items, (self.config.negatives,))
        return self(sequences, negatives)

    def scores(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """int64 [B, T], padded with -1 at the end -> [B, N]"""
        return self.states(histories, embeddings)[torch.arange(len(lengths)), lengths] @ embeddings.T


class Hstu(Plain):
    """Gated attention without a softmax (HSTU, Zhai et al. 2024, section 3.1)."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        c = self.config
        self.backbone.blocks = nn.ModuleList(
            HSTUBlock(c.dim, c.heads, c.dropout, c.max_history + 1) for _ in range(c.blocks)
        )


class TwoBranches(Plain):
    """A branch that reads meaning alone beside the one that reads all, and a gate between them (after DiscRec, Liu et
    al. 2025, whose item-level positions a model over items has anyway). Items are [everything | meaning]."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        c = self.config
        self.meaning = Block(c.dim, c.heads, c.dropout)
        self.gate = nn.Linear(2 * c.dim, c.dim)
        whole = self.tower.forward

        def both(items: Tensor) -> Tensor:
            everything, own = whole(items), self.tower.residual(items) * self.tower.seen[items].unsqueeze(-1)
            return torch.cat([everything, everything - own], dim=-1)

        self.tower.forward = both  # type: ignore[method-assign]

    def states(self, history: Tensor, embeddings: Tensor, about: Tensor | None = None) -> Tensor:
        whole, meaning = embeddings[history.clamp(min=0)].chunk(2, dim=-1)
        h = self.backbone(whole * self.config.dim**0.5)
        other = F.pad(self.meaning(meaning * self.config.dim**0.5), (0, 0, 1, 0))  # state 0 has read nothing
        gate = self.gate(torch.cat([h, other], dim=-1)).sigmoid()
        return F.pad(gate * h + (1 - gate) * other, (0, self.config.dim))


class Experts(nn.Module):
    """One of several feed-forward parts for each position, by a router kept in balance (Fedus et al. 2022, "Switch
    Transformers", section 2.2; OneRec, Deng et al. 2025, has such layers)."""

    def __init__(self, dim: int, many: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(dim, many, bias=False)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(many)
        )
        self.imbalance: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        chance = self.router(rows).softmax(dim=1)
        weight, chosen = chance.max(dim=1)
        self.imbalance = len(self.parts) * (F.one_hot(chosen, len(self.parts)).float().mean(0) * chance.mean(0)).sum()
        out = torch.zeros_like(rows)
        for number, part in enumerate(self.parts):
            mine = (chosen == number).nonzero().squeeze(1)
            out = out.index_copy(0, mine, part(rows[mine]) * weight[mine, None])
        return out.view_as(x)


class SparseExperts(Plain):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        for block in self.backbone.blocks:
            block.mlp = Experts(self.config.dim)

    def learn(self, sequences: Tensor) -> Tensor:
        layers = [layer for layer in self.modules() if isinstance(layer, Experts)]
        return super().learn(sequences) + 0.01 * sum(layer.imbalance for layer in layers)


class NextSession(Plain):
    """The next three items as targets, and a loss that ranks each above the hardest negatives (after SessionRec, Huang
    et al. 2025; this log has no sessions, so three events stand for the next one)."""

    ahead, hardest = (1.0, 0.3, 0.1), 16

    def learn(self, sequences: Tensor) -> Tensor:
        negatives = torch.randint(self.items, (self.config.negatives,))
        embeddings = self.item_embeddings()
        states = self.states(sequences[:, :-1], embeddings)  # [B, T, d]
        total = states.new_zeros(())
        for step, weight in enumerate(self.ahead):
            target = sequences[:, step:]
            if not target.shape[1]:
                break
            h, wanted = states[:, : target.shape[1]][target >= 0], target[target >= 0]
            if not len(wanted):
                break
            total = total + weight * sampled_softmax(h, embeddings, wanted, negatives, self.items)
            hard = (h @ embeddings[negatives].T).topk(self.hardest, dim=1).values  # [P, 16]
            right = (h * embeddings[wanted]).sum(dim=1, keepdim=True)
            total = total + 0.1 * weight * F.softplus(hard - right).mean()
        return total


class Interests(Plain):
    """Several states a person, the nearest of which judges an item (MiCRO, and kNN-Embed, El-Kishky et al. 2022)."""

    many = 4

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.split = nn.Linear(self.config.dim, self.many * self.config.dim)
        nn.init.normal_(self.split.weight, std=0.3 * self.config.dim**-0.5)

    def interests(self, h: Tensor) -> Tensor:
        """[P, d] -> [P, 4, d]"""
        return h.unsqueeze(1) + self.split(h).unflatten(1, (self.many, -1))

    def learn(self, sequences: Tensor) -> Tensor:
        negatives = torch.randint(self.items, (self.config.negatives,))
        embeddings = self.item_embeddings()
        h, target = self.pairs(sequences, embeddings, None)
        several = self.interests(h)
        right = torch.einsum("pkd,pd->pk", several, embeddings[target]).amax(dim=1, keepdim=True)
        logits = (several @ embeddings[negatives].T).amax(dim=1)
        logits = logits.masked_fill(target.unsqueeze(1) == negatives, -torch.inf)
        logits = logits + np.log(self.items / len(negatives))
        return (torch.cat([right, logits], dim=1).logsumexp(dim=1) - right.squeeze(1)).mean()

    def scores(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        several = self.interests(self.states(histories, embeddings)[torch.arange(len(lengths)), lengths])
        return torch.stack([interest @ embeddings.T for interest in several.unbind(1)]).amax(dim=0)


OPTIONS: dict[str, type[Plain]] = {
    "plain": Plain,
    "HSTU block": Hstu,
    "two branches and a gate (DiscRec)": TwoBranches,
    "sparse experts": SparseExperts,
    "next three items, rank loss (SessionRec)": NextSession,
    "four interests": Interests,
}


def learned(kind: type[Plain], data: Data, work: Path) -> Plain:
    seen = torch.zeros(len(data.vectors), dtype=torch.bool)
    seen[torch.from_numpy(np.unique(np.concatenate(data.histories)))] = True
    parts = (data.config, torch.from_numpy(data.vectors), torch.from_numpy(data.ids.codes), data.ids.sizes, seen)

    def new() -> Plain:
        model = kind(*parts)
        assert model.decoder is not None
        model.decoder.requires_grad_(False)
        return model

    def loss(model: Any, batch: np.ndarray, device: torch.device) -> Tensor:
        return model.learn(torch.from_numpy(batch))

    return trained(new, loss, data, work / kind.__name__)


def trained(new: Callable[[], nn.Module], loss: Any, data: Data, folder: Path, epochs: int | None = None) -> Any:
    """The last epoch of a short schedule: nothing is chosen, so that the same events can judge."""
    config = replace(data.config, epochs=epochs or data.config.epochs)
    return fit(
        new,
        config,
        lambda epoch: batches(data.histories, config.max_history, config.batch_size, SEED, epoch),
        loss,
        score=None,
        fingerprint=folder.name,
        seed=SEED,
        checkpoint_dir=folder,
        progress=lambda done, of: print(f"  {folder.name}: epoch {done} of {of}", flush=True),
    )[0]


@torch.no_grad()
def lists(
    model: Plain, histories: Sequence[np.ndarray], k: int = 10, hidden: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """The k best items of each person, int64 [B, k], without the `hidden`: what was read, unless that says more."""
    embeddings, found = model.item_embeddings(), []
    for start in range(0, len(histories), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        recent = padded([history[-model.config.max_history :] for history in histories[part]])
        scores = model.scores(*map(torch.from_numpy, recent), embeddings)
        found.append(rank(scores.numpy(), k, hidden=(hidden or histories)[part])[0])
    return np.concatenate(found)


def one_after_another(model: Plain, histories: Sequence[np.ndarray], k: int = 10) -> np.ndarray:
    """A list of which each item is the likeliest after the person's history and the items before it: what a model of
    whole sessions generates (list-wise generation, OneRec section 3.2; ours is a model of sequences already)."""
    found = np.empty((len(histories), 0), np.int64)
    for _ in range(k):
        told = [np.concatenate(pair) for pair in zip(histories, found, strict=True)]
        found = np.concatenate([found, lists(model, told, 1)], axis=1)
    return found


# -- what learns codes, or goes on from them ---------------------------------------------------------------------------


class Spells(nn.Module):
    """Learns codes after the states of a model that stays."""

    def __init__(self, model: Plain) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        assert model.decoder is not None
        model.decoder.requires_grad_(True)
        with torch.no_grad():
            self.embeddings = model.item_embeddings()

    def train(self, mode: bool = True) -> Spells:
        return super().train(False)

    def pairs(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            h, items = self.model.pairs(sequences, self.embeddings, None)
        return F.dropout(h, self.model.config.dropout), items

    def learn(self, sequences: Tensor) -> Tensor:
        return -self.model.log_prob_of_codes(*self.pairs(sequences)).mean()


class Preferred(Spells):
    """Direct pairwise optimisation of generated IDs (DDRO, Mekonnen et al. 2025, after DPO, Rafailov et al. 2023): what
    was used is preferred to what the search would have said, against the model as it was."""

    beta, likelihood = 0.1, 0.0

    def __init__(self, model: Plain) -> None:
        super().__init__(model)
        self.before = [copy.deepcopy(model).requires_grad_(False)]  # in a list, so that it is not saved

    def learn(self, sequences: Tensor) -> Tensor:
        h, items = self.pairs(sequences)
        some = torch.randperm(len(items))[:64]
        h, items = h[some], items[some]
        said, _ = beam_search(self.before[0], h, self.model.trie.reachable(), 10, 10)  # [64, 10]
        said = said.gather(1, torch.randint(10, (len(said), 1))).squeeze(1)
        asked = torch.cat([items, said])
        now = self.model.log_prob_of_codes(torch.cat([h, h]), asked)
        with torch.no_grad():
            then = self.before[0].log_prob_of_codes(torch.cat([h, h]), asked)
        better, worse = (self.beta * (now - then)).chunk(2)
        preferred = F.softplus(worse - better)[said != items].mean()
        return preferred - self.likelihood * now[: len(items)].mean()


class PreferredAndLikely(Preferred):
    """The same beside the likelihood, which preferences alone forget (Pang et al. 2024, "Iterative Reasoning Preference
    Optimization", section 2)."""

    likelihood = 1.0


class Flows(Spells):
    """Codes also learn to be chosen in proportion to what flows through them, the events of the items below (Flower,
    Gao et al. 2025, section 4): the log-probability of an item is drawn to that of its share of all events."""

    weight = 0.005

    def __init__(self, model: Plain, counts: np.ndarray) -> None:
        super().__init__(model)
        self.flow = torch.from_numpy(np.log((counts + 1) / (counts + 1).sum())).float()

    def learn(self, sequences: Tensor) -> Tensor:
        h, items = self.pairs(sequences)
        log_p = self.model.log_prob_of_codes(h, items)
        return (self.weight * (log_p - self.flow[items]).square() - log_p).mean()


def spelled(model: Plain, asked: tuple[list[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Beam search, for some of the people."""
    histories, targets = some_people(*asked)
    items, _ = Retriever(model).recommend(histories, 10, mode="codes")
    return told(items, targets, model.items)


def told(items: np.ndarray, targets: np.ndarray, catalog: int) -> dict[str, float]:
    recall, ndcg = recall_and_ndcg(items, targets)
    return {"recall@10": recall, "ndcg@10": ndcg, "coverage@10": coverage(items, catalog, 10)}


# -- behaviours --------------------------------------------------------------------------------------------------------


class Behaviours(Plain):
    """Each event read with what the person thought of it, and asked for with what is wanted: the next item is foretold
    given that it will be liked (after MBGen, Liu et al. 2024, where behaviours are tokens before the items')."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.read, self.wanted = (nn.Embedding(3, self.config.dim) for _ in range(2))  # disliked, neither, liked
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.wanted.weight)

    def states(self, history: Tensor, embeddings: Tensor, about: Tensor | None = None) -> Tensor:
        """history: item + N * behaviour, so that one number tells both."""
        item, behaviour = history.clamp(min=0) % self.items, history.clamp(min=0) // self.items
        return self.backbone((embeddings[item] + self.read(behaviour)) * self.config.dim**0.5)

    def learn(self, sequences: Tensor) -> Tensor:
        negatives = torch.randint(self.items, (self.config.negatives,))
        real, embeddings = sequences >= 0, self.item_embeddings()
        h, both = self.states(sequences[:, :-1], embeddings)[real], sequences[real]
        h = h + self.wanted(both // self.items)
        return sampled_softmax(h, embeddings, both % self.items, negatives, self.items)

    def scores(self, histories: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        h = self.states(histories, embeddings)[torch.arange(len(lengths)), lengths]
        return (h + self.wanted.weight[2]) @ embeddings.T


def behaviours(work: Path) -> dict[str, dict[str, float]]:
    """MovieLens latest-small, items by number alone: each person's last like is asked for, three seeds' mean."""
    recipe = Recipe.load(Path("recipes/movielens_posters.yaml"))
    space = Workspace(work / "movielens_posters")
    stages.ingest(space, recipe)
    catalog, _, split = stages.load_split(space, recipe)
    count = len(catalog)
    asked = split.valid
    targets = np.array([wanted[0] for wanted in asked.targets])
    config = RetrieverConfig(epochs=12, learning_rate=2e-3, negatives=1024, queries=0.0)
    none = (torch.zeros(count, 0), torch.zeros(count, 0, dtype=torch.long), (), torch.ones(count, dtype=torch.bool))

    def mark(items: np.ndarray, preferences: np.ndarray) -> np.ndarray:
        return items + count * (1 + np.sign(preferences)).astype(np.int64)

    rows: dict[str, dict[str, float]] = {}
    ways: dict[str, tuple[type[Plain], Any]] = {
        "liked and neither": (Plain, lambda items, liking: items[liking >= 0]),
        "all events alike": (Plain, lambda items, liking: items),
        "all events, behaviours as tokens (MBGen)": (Behaviours, mark),
    }
    for name, (kind, read) in ways.items():
        learn = [read(h, p) for h, p in zip(split.train.items, split.train.preferences, strict=True)]
        told_of = [read(h, p) for h, p in zip(asked.histories, asked.preferences, strict=True)]
        found = []
        for seed in range(3):
            model = fit(
                lambda kind=kind: kind(config, *none),
                config,
                lambda epoch, seed=seed, learn=learn: batches(
                    [h for h in learn if len(h)], config.max_history, config.batch_size, seed, epoch
                ),
                lambda model, batch, _: model.learn(torch.from_numpy(batch)),
                score=None,
                fingerprint=name,
                seed=seed,
                checkpoint_dir=None,
                progress=None,
            )[0]
            found.append(told(lists(model, told_of, hidden=asked.histories), targets, count))
        rows[name] = {metric: float(np.mean([row[metric] for row in found])) for metric in found[0]}
    return rows


# -- the table ---------------------------------------------------------------------------------------------------------


def measure(data: Data, work: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """Each row of each part of the table; what is finished is read from `work`, and `keep` is told after each row."""
    file = work / "measured.json"
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def row(part: str, name: str, make: Callable[[], dict[str, float]]) -> None:
        rows = table.setdefault(part, {})
        if name not in rows:
            rows[name] = make()
            write_text(file, json.dumps(table, indent=1))
        print(f"{part}: {name}: {rows[name]}", flush=True)
        keep(table)

    histories, targets = data.asked
    count = len(data.vectors)
    for name, kind in OPTIONS.items():
        row("dense head", name, lambda kind=kind: told(lists(learned(kind, data, work), histories), targets, count))
    some, few = some_people(histories, targets)

    def plain() -> Plain:
        return learned(Plain, data, work)

    row("dense head, some people", "plain", lambda: told(lists(plain(), some), few, count))
    row(
        "dense head, some people",
        "one item after another (OneRec)",
        lambda: told(one_after_another(plain(), some), few, count),
    )

    def loss(module: Any, batch: np.ndarray, device: torch.device) -> Tensor:
        return module.learn(torch.from_numpy(batch))

    def codes() -> Spells:
        return trained(lambda: Spells(plain()), loss, data, work / "Spells")

    counts = np.bincount(np.concatenate(data.histories), minlength=count)
    row("codes alone", "plain", lambda: spelled(codes().model, data.asked))
    row(
        "codes alone",
        "flow-proportional (Flower)",
        lambda: spelled(trained(lambda: Flows(plain(), counts), loss, data, work / "Flows").model, data.asked),
    )
    row(
        "codes alone",
        "one epoch more",
        lambda: spelled(trained(codes, loss, data, work / "More", 1).model, data.asked),
    )
    for name, kind in (("preferences (DDRO)", Preferred), ("preferences and likelihood (DDRO)", PreferredAndLikely)):
        row(
            "codes alone",
            f"one epoch of {name}",
            lambda kind=kind: spelled(
                trained(lambda: kind(codes().model), loss, data, work / kind.__name__, 1).model, data.asked
            ),
        )
    whole = replace(data, config=replace(data.config, epochs=WHOLE))
    for name in ("plain", "HSTU block"):
        row(
            f"dense head, {WHOLE} epochs",
            name,
            lambda kind=OPTIONS[name]: told(lists(learned(kind, whole, work / "whole"), histories), targets, count),
        )
    if "behaviours" not in table:
        table["behaviours"] = behaviours(work)
        write_text(file, json.dumps(table, indent=1))
    keep(table)


def records_of(table: dict[str, Any]) -> list[results.Record]:
    made = []
    for part, rows in table.items():
        split = "latest-small, validation" if part == "behaviours" else "amazon_beauty, strict-validation"
        seeds = (0, 1, 2) if part == "behaviours" else (SEED,)
        for name, numbers in rows.items():
            for metric, value in numbers.items():
                made.append(record(f"sequence options: {part}", split, name, metric, [value], seeds, COMMAND))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("workspaces/options"), help="where finished rows are kept")
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    options = parser.parse_args()

    def keep(table: dict[str, Any]) -> None:
        if options.record:
            results.write_records("sequence-options", records_of(table), options.record)

    measure(load(options.work), options.work, keep)


if __name__ == "__main__":
    main()
