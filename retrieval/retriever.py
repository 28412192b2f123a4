"""Retriever: the trained sequence model with its catalog, answering "what next"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.decode import beam_search, runs_ahead, score_items
from retrieval.files import read_arrays, read_json, write_arrays, write_json
from retrieval.model import RetrieverConfig, SequenceModel
from retrieval.ranking import Ranked, check_allowed, check_histories, flatten, liked_part, padded, rank
from retrieval.trie import Trie

Mode = Literal["fused", "dense", "codes"]
PEOPLE_AT_ONCE = 256
PEOPLE_TO_WEIGH_BY = 5_000
SCORES_AT_ONCE = 1 << 25  # people times items
FUSION_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


class Retriever:
    """Recommends the next items of histories. Made by `retrieval.training.train_retriever` or `from_pretrained`."""

    name = "retriever"

    def __init__(self, model: SequenceModel, device: torch.device | str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.config = model.config
        self.device = torch.device(device)
        with torch.no_grad():
            self._embeddings = model.item_embeddings()  # [N, d]

    @property
    def items(self) -> int:
        return self.model.items

    @property
    def trie(self) -> Trie:
        return self.model.trie

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        mode: Mode = "fused",
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
        about: np.ndarray | None = None,
        beam: int = 50,
    ) -> Ranked:
        """The k best next items per history: items int64 [B, k], scores float32 [B, k]; empty places hold -1 and -inf.

        histories: item indices, oldest first; an empty one is answered by the learned start. preferences: with them,
        events below 0 are not read as taste (they are still hidden). allowed: bool [N]. hide_history: leave out what
        the history holds. mode: "dense" ranks the whole catalog by the dense head's log-probability; "codes" is beam
        search over semantic IDs and nothing else; "fused" takes the candidates of both and ranks them by dense +
        fusion_weight * codes. about: a query of each person, float32 [B, D] in the item space, which the same model
        reads after the history. beam: width of the search (at least k). Raises ValueError for item indices outside the
        catalog, a wrong mask, an unknown mode, or a query that this model cannot read.
        """
        if mode not in ("fused", "dense", "codes"):
            raise ValueError(f"mode is {mode!r}; it must be 'fused', 'dense' or 'codes'")
        if mode != "dense" and not self.model.sizes:
            raise ValueError(f"mode {mode!r} needs semantic IDs and this model was trained without: use mode='dense'")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        allowed = check_allowed(allowed, self.items)
        histories = check_histories(histories, self.items)
        taste = liked_part(histories, preferences)
        if about is not None:
            about = self._check_about(about, len(histories))
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        for rows in self._batches(len(histories)):
            h = self.states(taste[rows], None if about is None else about[rows])
            hidden = histories[rows] if hide_history else None
            if mode == "codes":
                found = self._search(h, k, allowed, hidden, beam)
            elif mode == "dense" or self.config.fusion_weight == 0:
                found = self._rank(self._dense(h), k, allowed, hidden)
            else:
                found = self._fuse(h, self._dense(h), k, allowed, hidden, max(beam, k))
            items[rows], scores[rows] = (part.cpu().numpy() for part in found)
        return items, scores

    def score_all(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The dense head's log-probability of every item: float32 [B, N]."""
        histories = check_histories(histories, self.items)
        parts = [self._dense(self.states(histories[rows])).cpu().numpy() for rows in self._batches(len(histories))]
        return np.concatenate(parts) if parts else np.empty((0, self.items), np.float32)

    def rank_of(self, histories: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
        """How many items the dense head puts before each person's target, int64 [B]; what was met before is last."""
        histories = check_histories(histories, self.items)
        ranks = np.empty(len(histories), dtype=np.int64)
        for rows in self._batches(len(histories)):
            scores = self.states(histories[rows]) @ self._embeddings.T  # [B, N]
            target = torch.as_tensor(np.asarray(targets)[rows], device=self.device).unsqueeze(1)
            _hide(scores, histories[rows])
            ranks[rows] = (scores > scores.gather(1, target)).sum(dim=1).cpu().numpy()
        return ranks

    @torch.no_grad()
    def states(self, histories: Sequence[np.ndarray], about: np.ndarray | None = None) -> Tensor:
        """What the model has made of each history (its last `max_history` events) and query float32 [B, D]: [B, d]."""
        table, lengths = padded([history[-self.config.max_history :] for history in histories])
        heard = None if about is None else torch.from_numpy(about).to(self.device)
        states = self.model.states(torch.from_numpy(table).to(self.device), self._embeddings, heard)  # [B, T + 1, d]
        return states[np.arange(len(table)), lengths if heard is None else lengths + 1]

    def choose_fusion_weight(self, histories: Sequence[np.ndarray], targets: np.ndarray) -> Retriever:
        """The same retriever with the `fusion_weight` of best NDCG@`choose_at` on 5,000 of these people."""
        histories, targets = some_people(histories, targets)
        histories = check_histories(histories, self.items)
        gains = np.zeros(len(FUSION_WEIGHTS))
        for rows in self._batches(len(histories)):
            h = self.states(histories[rows])
            candidates, dense, codes = self._candidates(h, self._dense(h), None, histories[rows], 50)
            for i, weight in enumerate(FUSION_WEIGHTS):
                order = (dense + weight * codes).argsort(1, descending=True)[:, : self.config.choose_at]
                found = candidates.gather(1, order).cpu().numpy()
                hit = found == targets[rows, None]
                gains[i] += (hit / np.log2(np.arange(hit.shape[1]) + 2.0)).sum()
        self.model.config = replace(self.config, fusion_weight=FUSION_WEIGHTS[int(gains.argmax())])
        return Retriever(self.model, self.device)

    def with_items(self, vectors: np.ndarray, codes: np.ndarray) -> Retriever:
        """A retriever that also knows new items, numbered after the old ones; nothing is trained again.

        vectors: float32 [n, D]; codes: int64 [n, L] from `assign_unique(..., taken=...)`. The learned residual of a new
        item is zero. Raises ValueError if the shapes do not fit or a code is taken.
        """
        tower = self.model.tower
        vectors, codes = np.asarray(vectors, dtype=np.float32), np.asarray(codes, dtype=np.int64)
        if vectors.ndim != 2 or vectors.shape[1] != tower.vectors.shape[1]:
            raise ValueError(f"vectors {list(vectors.shape)}: this model reads [n, {tower.vectors.shape[1]}]")
        if (
            codes.shape != (len(vectors), len(self.model.sizes))
            or not ((codes >= 0) & (codes < np.array(self.model.sizes))).all()
        ):
            raise ValueError(
                f"codes {list(codes.shape)}: need [{len(vectors)}, {len(self.model.sizes)}] below {self.model.sizes}"
            )
        weights = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        more = {
            "tower.vectors": torch.from_numpy(vectors),
            "tower.codes": torch.from_numpy(codes),
            "tower.seen": torch.zeros(len(vectors), dtype=torch.bool),
            "tower.residual.weight": torch.zeros(len(vectors), self.config.dim),
        }
        for name, rows in more.items():
            weights[name] = torch.cat([weights[name], rows])
        return Retriever(_model_from(self.config, self.model.sizes, self.model.buckets, weights), self.device)

    def to(self, device: torch.device | str) -> Retriever:
        return Retriever(self.model, device)

    def save_pretrained(self, path: Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`."""
        path = Path(path)
        weights = {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
        write_arrays(path / "model.safetensors", weights)
        about = {"config": asdict(self.config), "sizes": list(self.model.sizes), "buckets": self.model.buckets}
        write_json(path / "config.json", about)

    @classmethod
    def from_pretrained(cls, path: Path, device: torch.device | str = "cpu") -> Retriever:
        """Read what `save_pretrained` wrote. Raises FileNotFoundError or ValueError."""
        path = Path(path)
        about = read_json(path / "config.json")
        weights = {name: torch.from_numpy(array) for name, array in read_arrays(path / "model.safetensors").items()}
        try:
            config = RetrieverConfig(**about["config"])
            return cls(_model_from(config, about["sizes"], about["buckets"], weights), device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold a retriever of this version ({error}): train it again") from error

    @property
    def hears(self) -> bool:
        """Whether the model was trained to read queries (`RetrieverConfig.queries`, with item vectors)."""
        return self.model.query is not None

    def _check_about(self, about: np.ndarray, people: int) -> np.ndarray:
        if not self.hears:
            raise ValueError("this retriever was trained without queries: train it with queries > 0 and item vectors")
        about, dim = np.asarray(about, dtype=np.float32), self.model.tower.vectors.shape[1]
        if about.shape != (people, dim) or not np.isfinite(about).all():
            raise ValueError(f"about {list(about.shape)}: need finite numbers [{people}, {dim}], one query a history")
        return about

    def _batches(self, people: int) -> Iterator[slice]:
        size = max(1, min(PEOPLE_AT_ONCE, SCORES_AT_ONCE // self.items))
        for start in range(0, people, size):
            yield slice(start, start + size)

    @torch.no_grad()
    def _dense(self, h: Tensor) -> Tensor:
        return torch.log_softmax(h @ self._embeddings.T, dim=-1)  # [B, N]

    def _search(
        self, h: Tensor, k: int, allowed: np.ndarray | None, hidden: Sequence[np.ndarray] | None, beam: int
    ) -> tuple[Tensor, Tensor]:
        assert self.model.decoder is not None
        return beam_search(self.model, h, self.trie.reachable(allowed, hidden), k, beam)

    def _rank(
        self, scores: Tensor, k: int, allowed: np.ndarray | None, hidden: Sequence[np.ndarray] | None
    ) -> tuple[Tensor, Tensor]:
        """`rank` of scores [B, N], without taking them from their device."""
        if not runs_ahead(scores):
            found = rank(scores.numpy(), k, allowed=allowed, hidden=hidden)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        scores = scores.clone()
        if allowed is not None:
            scores.masked_fill_(~torch.from_numpy(allowed).to(scores.device), -torch.inf)
        if hidden is not None:
            _hide(scores, hidden)
        scores, items = (part[:, :k] for part in scores.sort(dim=1, descending=True, stable=True))  # ties: lower item
        missing = k - items.shape[1]
        items = F.pad(items.masked_fill(scores == -torch.inf, -1), (0, missing), value=-1)
        return items, F.pad(scores, (0, missing), value=-torch.inf)

    @torch.no_grad()
    def _candidates(
        self, h: Tensor, dense: Tensor, allowed: np.ndarray | None, hidden: Sequence[np.ndarray] | None, wide: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each head's `wide` best: items [B, 2 * wide] in ascending order, and both log-probs (-inf: no candidate)."""
        assert self.model.decoder is not None
        from_dense, _ = self._rank(dense, wide, allowed, hidden)
        from_codes, _ = self._search(h, wide, allowed, hidden, wide)
        items = torch.cat([from_dense, from_codes], dim=1).sort(dim=1).values
        empty = items < 0
        empty[:, 1:] |= items[:, 1:] == items[:, :-1]
        known = items.clamp(min=0)
        codes = score_items(self.model, h, known)  # [B, 2 * wide]
        return items, dense.gather(1, known).masked_fill(empty, -torch.inf), codes

    def _fuse(
        self,
        h: Tensor,
        dense: Tensor,
        k: int,
        allowed: np.ndarray | None,
        hidden: Sequence[np.ndarray] | None,
        wide: int,
    ) -> tuple[Tensor, Tensor]:
        items, of_dense, of_codes = self._candidates(h, dense, allowed, hidden, wide)
        score = of_dense + self.config.fusion_weight * of_codes
        order = score.argsort(dim=1, descending=True, stable=True)[:, :k]  # ties keep the lower item
        score = score.gather(1, order)
        return items.gather(1, order).masked_fill(score == -torch.inf, -1), score


def _hide(scores: Tensor, histories: Sequence[np.ndarray]) -> None:
    """Set what each person has met to -inf in the scores [B, N]."""
    people, met = (torch.from_numpy(part).to(scores.device) for part in flatten(histories))
    scores[people, met] = -torch.inf


def some_people(histories: Sequence[np.ndarray], targets: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """At most `PEOPLE_TO_WEIGH_BY` of them, from everywhere: in many logs the first are not like the rest."""
    rows = np.unique(np.linspace(0, len(histories) - 1, min(len(histories), PEOPLE_TO_WEIGH_BY)).astype(np.int64))
    return [histories[row] for row in rows], np.asarray(targets)[rows]


def _model_from(
    config: RetrieverConfig, sizes: Sequence[int], buckets: int, weights: dict[str, Tensor]
) -> SequenceModel:
    parts = (weights["tower.vectors"], weights["tower.codes"], sizes, weights["tower.seen"])
    model = SequenceModel(config, *parts, buckets)
    model.load_state_dict(weights)
    return model
