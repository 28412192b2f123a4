"""Training the sequence model, resumable to the bit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.decode import beam_search
from retrieval.files import write_atomically
from retrieval.lazy import LazyAdamW
from retrieval.model import Asked, RetrieverConfig, SequenceModel
from retrieval.ranking import check_histories, padded, recall_and_ndcg
from retrieval.retriever import Retriever, some_people
from retrieval.semantic_ids.base import SemanticIds

log = logging.getLogger(__name__)

LARGE_TABLE = 100_000  # rows; a step of a smaller one is over sooner if it moves them all

Progress = Callable[[int, int], None]
Validation = tuple[Sequence[np.ndarray], np.ndarray]


def train_retriever(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray | None,
    ids: SemanticIds | None,
    config: RetrieverConfig = RetrieverConfig(),
    *,
    steers: Mapping[str, np.ndarray] | None = None,
    validation: Validation | None = None,
    seed: int = 0,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    items: int | None = None,
) -> Retriever:
    """Train on what people liked, in order; return the retriever.

    First the items are learned, and told apart by the dense head; then, with all of that as it is, how to spell them: a
    decoder that follows states which still move learns less in more time.

    histories: one int64 array of item indices per person, oldest first, without the disliked. vectors: float32 [N, D]
    (unit length). ids: the items' semantic IDs. Either may be None, both together leave SASRec; then `items` gives N.
    steers: per modality what a bridge makes of each item alone, float32 [N, D] (NaN where an item lacks it); with
    vectors, they are the queries that are learned, beside noisy item vectors.
    validation: (histories, targets int64 [V]): training stops once NDCG@`choose_at` of the dense head, and later of the
    codes, has not risen for `patience` epochs; the best epoch is kept, and the fusion weight is chosen there. Without
    it, all epochs are run. checkpoint_dir: saved there after every epoch; run again, it goes on from the last one and
    ends with the weights of an undisturbed run. progress: called with (epochs done, epochs). Raises ValueError for a
    checkpoint of another run, or if the arguments do not fit together.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    count = items if vectors is None and ids is None else len(vectors if vectors is not None else ids)  # type: ignore[arg-type]
    if count is None:
        raise ValueError("without vectors and ids, items= must say how many items the catalog has")
    if vectors is not None and ids is not None and len(vectors) != len(ids):
        raise ValueError(f"{len(vectors)} vectors but {len(ids)} semantic IDs: they must be of the same catalog")
    histories = [history for history in check_histories(histories, count) if len(history)]
    if not histories:
        raise ValueError("there is no event to train on: every history is empty")

    # The buffers hold the catalog and never change: nothing to tell each other at every step. On deep levels a batch
    # may have no choice to make, and then there is nothing to learn for them.
    told = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    asks = (
        Queries(np.asarray(vectors), steers or {}, config.queries) if vectors is not None and config.queries else None
    )
    fingerprint = _fingerprint(histories, vectors, ids, config, validation, seed, steers or {})
    run = _Run(Accelerator(kwargs_handlers=[told]), histories, count, asks, config, seed, fingerprint, checkpoint_dir)
    device = run.accelerator.device
    total = config.epochs + (config.code_epochs if ids is not None else 0)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    with torch.random.fork_rng():  # the caller's generator is not ours to move
        torch.manual_seed(seed)
        model = _new_model(histories, vectors, ids, config, count)
        if model.decoder is not None:
            model.decoder.requires_grad_(False)
        score: Callable[[], float] | None = None if validation is None else partial(_ndcg, model, device, validation)
        stopped = run.learn("items", model, config.epochs, config.stop_after, score, tell)
        model.config = replace(config, stop_after=stopped)
        if model.decoder is not None:
            model.requires_grad_(False)
            model.decoder.requires_grad_(True)
            score = None if validation is None else _code_score(model, device, validation)
            codes = CodesLoss(model)
            stopped = run.learn(
                "codes", codes, config.code_epochs, config.codes_stop_after, score, lambda n: tell(config.epochs + n)
            )
            model.config = replace(model.config, codes_stop_after=stopped)
        retriever = Retriever(model, device)
        if validation is not None and ids is not None:
            retriever = retriever.choose_fusion_weight(*validation)
    return retriever.to("cpu")


class CodesLoss(nn.Module):
    """The loss of the codes after the states of a model that stays as it is."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.embeddings = model.item_embeddings()  # [N, d]

    def train(self, mode: bool = True) -> CodesLoss:
        """The states are read without dropout, as they are when people ask."""
        return super().train(False)

    def forward(self, sequences: Tensor, negatives: None, asked: Asked | None) -> Tensor:
        with torch.no_grad():
            h, items = self.model.pairs(sequences, self.embeddings, asked)
        h = F.dropout(h, self.model.config.dropout)
        return -self.model.log_prob_of_codes(h, items).mean()


class Queries:
    """Draws queries for the sequences of a batch: what is asked for is one of their items.

    Said through a bridge as people will say it, four times of five where the item has a modality with one; else the
    item's own vector with noise. Three in ten are asked by somebody without a history.
    """

    def __init__(self, vectors: np.ndarray, steers: Mapping[str, np.ndarray], share: float) -> None:
        self.vectors, self.steers, self.share = vectors, list(steers.values()), share

    def of(
        self, batch: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """batch int64 [B, T] -> the fields of `Asked`"""
        row = np.sort(random.choice(len(batch), max(1, round(self.share * len(batch))), replace=False))
        place = random.integers((batch[row] >= 0).sum(axis=1))
        told = np.where(random.random(len(row)) < 0.3, 0, place)
        items = batch[row, place]
        noise = random.standard_normal((len(row), self.vectors.shape[1])) / np.sqrt(self.vectors.shape[1])
        about = self.vectors[items] + random.random((len(row), 1)) * noise
        which, said = random.integers(max(1, len(self.steers)), size=len(row)), random.random(len(row)) < 0.8
        for number, steer in enumerate(self.steers):
            through = said & (which == number) & np.isfinite(steer[items]).all(axis=1)
            about[through] = steer[items[through]]
        about /= np.linalg.norm(about, axis=1, keepdims=True) + 1e-9
        return row, place, told, about.astype(np.float32)


@dataclass
class _Run:
    """What the two parts of a training share."""

    accelerator: Any
    histories: list[np.ndarray]
    items: int
    asks: Queries | None
    config: RetrieverConfig
    seed: int
    fingerprint: str
    checkpoint_dir: Path | None

    def learn(
        self,
        what: str,
        module: nn.Module,
        epochs: int,
        stop_after: int | None,
        score: Callable[[], float] | None,
        tell: Callable[[int], None],
    ) -> int | None:
        """Learn what of the module needs a gradient; return the epoch that `score` chose, else `stop_after`.

        what: names the checkpoint. module: (sequences, negatives) -> loss. tell: is told each epoch that is done.
        """
        learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizers = _optimizers(module, learned, self.config, alone=self.accelerator.num_processes == 1)
        state: dict[str, Any] = {"epoch": 0, "best": None, "best_epoch": 0, "best_score": -math.inf, "finished": False}
        checkpoint = None if self.checkpoint_dir is None else self.checkpoint_dir / f"{what}.pt"
        if checkpoint is not None and checkpoint.is_file():
            state = _load_checkpoint(checkpoint, self.fingerprint, learned, optimizers)
        wrapped, *prepared = self.accelerator.prepare(module, *optimizers)
        lazy = [optimizer for optimizer in optimizers if isinstance(optimizer, LazyAdamW)]
        while state["epoch"] < (stop_after or epochs) and not state["finished"]:
            epoch = state["epoch"]
            loss = self._epoch(what, wrapped, prepared, lazy, epoch, epochs)
            state["epoch"] = epoch + 1
            note = ""
            if score is not None:
                found = score()
                note = f", validation ndcg@{self.config.choose_at} {found:.4f}"
                if found > state["best_score"]:
                    best = {name: p.detach().cpu().clone() for name, p in learned.items()}
                    state.update(best=best, best_epoch=epoch + 1, best_score=found)
                state["finished"] = epoch + 1 - state["best_epoch"] >= self.config.patience
            log.info("%s: epoch %d of %d: loss %.4f%s", what, epoch + 1, epochs, loss, note)
            if checkpoint is not None and self.accelerator.is_main_process:
                _save_checkpoint(checkpoint, self.fingerprint, state, learned, optimizers)
            tell(epoch + 1)
        for optimizer in lazy:
            optimizer.release()
        if state["best"] is None:
            return stop_after
        with torch.no_grad():
            for name, p in learned.items():
                p.copy_(state["best"][name])
        return int(state["best_epoch"])

    def _epoch(
        self, what: str, module: nn.Module, optimizers: list[Any], lazy: list[LazyAdamW], epoch: int, epochs: int
    ) -> float:
        """One epoch, after which all weights are up to date. lazy: which of the optimizers need to be told."""
        # Everything random in this epoch follows from (seed, epoch), so resuming needs no generator state.
        accelerator, config = self.accelerator, self.config
        part = ("items", "codes").index(what)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, part, 0))
        torch.manual_seed(mix(self.seed, epoch, part, 1 + accelerator.process_index))
        random = np.random.default_rng([self.seed, epoch, part])
        todo = batches(self.histories, config.max_history, config.batch_size, self.seed, epoch + part * config.epochs)
        module.train()
        total = torch.zeros((), device=accelerator.device)  # read once an epoch: a device need not be waited for
        for step, batch in enumerate(todo):
            rate = config.learning_rate * schedule((epoch + step / len(todo)) / epochs, config.warmup)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            negatives = None
            if what == "items" and self.items > config.full_softmax_up_to:
                negatives = torch.randint(self.items, (config.negatives,), generator=generator).to(accelerator.device)
            asked = None if self.asks is None else self.asks.of(batch, random)
            rows, asked, share = _mine(batch, asked, accelerator.process_index, accelerator.num_processes)
            told = None if asked is None else Asked(*(torch.from_numpy(part).to(accelerator.device) for part in asked))
            loss = share * module(torch.from_numpy(rows).to(accelerator.device), negatives, told)
            accelerator.backward(loss)
            for tables in lazy:
                tables.join()
            accelerator.clip_grad_norm_(module.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            total += loss.detach()
        for tables in lazy:
            tables.flush()
        return float(total) / len(todo)


def batches(histories: Sequence[np.ndarray], window: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch of batches int64 [B, T], padded with -1 at the end: a pure function of its arguments.

    A history longer than `window` is cut into pieces at an offset drawn anew every epoch, so that all of it is trained
    on. Batches hold pieces of like length, in random order.
    """
    random = np.random.default_rng([seed, epoch])
    pieces: list[np.ndarray] = []
    for history in histories:
        cut = int(random.integers(window)) if len(history) > window else 0
        edges = [0, *range(cut or window, len(history), window), len(history)]
        pieces.extend(history[start:end] for start, end in pairwise(edges))
    lengths = np.array([len(piece) for piece in pieces])
    order = np.lexsort([random.random(len(pieces)), lengths])
    groups = np.split(order, range(batch_size, len(order), batch_size))
    return [padded([pieces[row] for row in groups[group]])[0] for group in random.permutation(len(groups))]


Fields = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _mine(
    batch: np.ndarray, asked: Fields | None, process: int, processes: int
) -> tuple[np.ndarray, Fields | None, float]:
    """The rows of a batch [B, T] and their queries that one of the processes takes, and what their mean loss counts.

    Gradients are averaged over processes; weighed so, their average is that of the whole batch's mean over all it
    foretells.
    """
    rows = batch[process::processes]
    if not len(rows):  # fewer rows than processes: somebody's counts nothing
        return batch[:1], None, 0.0
    mine, everybody = (rows >= 0).sum(), (batch >= 0).sum()
    if asked is not None:
        everybody += len(asked[0])
        own = asked[0] % processes == process
        mine += own.sum()
        row, place, told, about = (field[own] for field in asked)
        asked = (row // processes, place, told, about) if own.any() else None
    return rows, asked, float(mine * processes / everybody)


def schedule(done: float, warmup: float) -> float:
    """Linear warmup, then a cosine down to a hundredth; `done` runs from 0 to 1."""
    if done < warmup:
        return max(0.01, done / warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def mix(*numbers: int) -> int:
    """One seed of several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def fingerprint_of(config: Any, seed: int, arrays: Sequence[np.ndarray]) -> str:
    """Tells one run from another: the config (a dataclass), the seed, the precision and all that is learned from."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    digest = hashlib.sha256(json.dumps([asdict(config), seed, precision], sort_keys=True).encode())
    for array in arrays:
        digest.update(str(np.shape(array)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _new_model(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray | None,
    ids: SemanticIds | None,
    config: RetrieverConfig,
    count: int,
) -> SequenceModel:
    seen = torch.zeros(count, dtype=torch.bool)
    seen[torch.from_numpy(np.unique(np.concatenate(histories)))] = config.residual
    content = torch.zeros(count, 0) if vectors is None else torch.tensor(np.asarray(vectors), dtype=torch.float32)
    codes = torch.zeros(count, 0, dtype=torch.long) if ids is None else torch.tensor(ids.codes)
    return SequenceModel(config, content, codes, () if ids is None else ids.sizes, seen)


def _optimizers(
    module: nn.Module, learned: dict[str, nn.Parameter], config: RetrieverConfig, *, alone: bool
) -> list[torch.optim.Optimizer]:
    """AdamW; norms, biases and positions do not decay. Of large tables it moves what a step has met, in a process that
    trains alone: several that exchange sparse gradients were found to end elsewhere."""
    tables = [
        part
        for part in module.modules()
        if alone and isinstance(part, nn.Embedding) and part.weight.requires_grad and len(part.weight) >= LARGE_TABLE
    ]
    large = {id(table.weight) for table in tables}
    rest = {name: p for name, p in learned.items() if id(p) not in large}
    decay = [p for name, p in rest.items() if p.dim() > 1 and name != "backbone.positions"]
    others = [p for name, p in rest.items() if p.dim() <= 1 or name == "backbone.positions"]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (0.9, 0.98)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    ]
    if tables:
        optimizers.append(LazyAdamW(tables, config.learning_rate, betas, config.weight_decay))
    return optimizers


def _ndcg(model: SequenceModel, device: torch.device, validation: Validation) -> float:
    """NDCG of the dense head."""
    ranks = Retriever(model, device).rank_of(*validation)
    return float(np.where(ranks < model.config.choose_at, 1.0 / np.log2(ranks + 2.0), 0.0).mean())


def _code_score(model: SequenceModel, device: torch.device, validation: Validation) -> Callable[[], float]:
    """What tells the NDCG of the codes alone, after states that stay.

    By beam search, for the probability of the targets falls long before their ranks do.
    """
    histories, targets = some_people(*validation)
    histories = check_histories(histories, model.items)
    retriever = Retriever(model, device)
    parts = [slice(start, start + 256) for start in range(0, len(histories), 256)]
    asked = [(retriever.states(histories[part]), model.trie.reachable(None, histories[part])) for part in parts]

    def score() -> float:
        k = model.config.choose_at
        found = [beam_search(model, h, reachable, k, 50)[0].cpu().numpy() for h, reachable in asked]
        return recall_and_ndcg(np.concatenate(found), targets)[1]

    return score


def _fingerprint(
    histories: Sequence[np.ndarray],
    vectors: np.ndarray | None,
    ids: SemanticIds | None,
    config: RetrieverConfig,
    validation: Validation | None,
    seed: int,
    steers: Mapping[str, np.ndarray],
) -> str:
    arrays = [*histories, *steers.values(), *([] if validation is None else [*validation[0], validation[1]])]
    arrays += [] if vectors is None else [vectors]
    arrays += [] if ids is None else [ids.codes]
    return fingerprint_of(config, seed, arrays)


def _save_checkpoint(
    path: Path,
    fingerprint: str,
    state: dict[str, Any],
    learned: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    everything = {
        **state,
        "fingerprint": fingerprint,
        "learned": {name: tensor.detach() for name, tensor in learned.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    write_atomically(path, lambda temporary: torch.save(everything, temporary))


def _load_checkpoint(
    path: Path, fingerprint: str, learned: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    everything = torch.load(path, map_location="cpu", weights_only=True)
    saved = everything.get("optimizers", [])
    if everything["fingerprint"] != fingerprint or len(saved) != len(optimizers):
        raise ValueError(
            f"{path} belongs to another run (other data, config, seed, precision, version, or one process for "
            "several): delete it or give another folder"
        )
    with torch.no_grad():
        for name, p in learned.items():
            p.copy_(everything["learned"][name])
    for optimizer, its_state in zip(optimizers, saved, strict=True):
        optimizer.load_state_dict(its_state)
    return {name: everything[name] for name in ("epoch", "best", "best_epoch", "best_score", "finished")}
