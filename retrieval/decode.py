"""Exact batched beam search over semantic IDs: only existing, allowed items ever enter the beam.

The score of an item is its log-probability under the model, which spreads 1 over the items of the catalog. It is not
renormalised over the allowed ones: what else may be shown does not change the score of an item, and it equals what
`score_items` computes without any beam.

`extend`, `choose` and `finish` are the search itself, whatever model gives the probabilities; `beam_search` runs it
with our own model, `retrieval.baselines.t5` with an encoder-decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.model import SequenceModel
from retrieval.trie import Reachable, Trie


@torch.no_grad()
def beam_search(model: SequenceModel, h: Tensor, reachable: Reachable, k: int, beam: int) -> tuple[Tensor, Tensor]:
    """The k best items per person, best first, ties by item index: items int64 [B, k] (-1), log-probs [B, k] (-inf).

    h: [B, d]. reachable: from `model.trie.reachable`. A beam narrower than k is widened to k; since only nodes that
    lead to a permitted item enter it, k items come back wherever k are permitted. With beam >= N the search is
    exhaustive.
    """
    assert model.decoder is not None
    trie = model.trie
    state = h.unsqueeze(1)  # [B, W, d], one beam at first
    nodes = torch.zeros(len(h), 1, dtype=torch.long, device=h.device)  # [B, W]
    scores = h.new_zeros(len(h), 1)  # [B, W]
    for level in range(len(trie.sizes)):
        child, open_ = by_range(trie, level, nodes)  # [B, W, D]
        rows = open_.flatten(0, 1).nonzero()[:, 0]  # [E], the beam of each existing child
        total = h.new_full(open_.shape, -torch.inf)
        total[open_] = model.continuations(level, state.flatten(0, 1), rows, child[open_])
        total += scores.unsqueeze(-1)
        nodes, scores, parents = choose(trie, reachable, level, nodes, child, open_, total, max(beam, k))
        if level + 1 < len(trie.sizes):
            codes = trie.codes[level][nodes.clamp(min=0)].long()
            state = model.decoder.advance(level, take(state, parents), codes)
    return finish(trie, nodes, scores, k)


def take(beams: Tensor, parents: Tensor) -> Tensor:
    """Rows of each person: beams [B, W, ...], parents int64 [B, W'] -> [B, W', ...]"""
    people, width = beams.shape[:2]
    rows = parents + torch.arange(0, people * width, width, device=parents.device).unsqueeze(1)
    return beams.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, parents.shape)


def extend(
    trie: Trie, reachable: Reachable, level: int, nodes: Tensor, scores: Tensor, log_p: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step with probabilities over all codes of a level. -> nodes, scores, parents, codes, each [B, W']

    nodes: int64 [B, W] of `level`, -1 for a dead beam, whose score is -inf; no person has a node twice.
    log_p: [B, W, sizes[level]] of each next code. The rest as in `choose`.
    """
    table = trie.dense[level]
    if table is not None:
        child = table.index_select(0, nodes.clamp(min=0).flatten()).view_as(log_p)  # [B, W, V]
        open_ = child >= 0
        total = log_p + scores.unsqueeze(-1)
    else:
        child, open_ = by_range(trie, level, nodes)
        total = log_p.gather(-1, trie.codes[level][child].long()) + scores.unsqueeze(-1)
    nodes, scores, parents = choose(trie, reachable, level, nodes, child, open_, total, beam, by_code=table is not None)
    return nodes, scores, parents, trie.codes[level][nodes.clamp(min=0)].long()


def by_range(trie: Trie, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The children of nodes int64 [B, W], in order: child int64 [B, W, D], and which of the D places are taken.

    A dead beam (-1) has the children of node 0; its score keeps them out.
    """
    first = trie.first[level]
    known = nodes.clamp(min=0)
    start = first[known].long()  # [B, W]
    degree = first[known + 1] - start
    # The widest node at hand where asking is free; on a GPU asking would stall the search, so the widest of all.
    width = int(degree.max()) if nodes.device.type == "cpu" else trie.width[level]
    slot = torch.arange(width, device=nodes.device)
    open_ = slot < degree.unsqueeze(-1)  # [B, W, D]
    return (start.unsqueeze(-1) + slot).clamp_(max=len(trie.codes[level]) - 1), open_


def choose(
    trie: Trie,
    reachable: Reachable,
    level: int,
    nodes: Tensor,
    child: Tensor,
    open_: Tensor,
    total: Tensor,
    beam: int,
    *,
    by_code: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of the children. -> nodes, scores and parents, each [B, W']; a node of -1 has a score of -inf.

    nodes: int64 [B, W]. child, open_, total: [B, W, D], the children in D places, which of these are taken, and their
    scores; the place of a child is its code (by_code) or its number among its parent's. parents: which of the W beams
    each came from. W' is `beam`, or less where the tree has no more.
    """
    alive, dead = reachable.alive[level], reachable.dead[level]
    if alive is not None:
        open_ = open_ & alive[child.clamp(min=0)]
    total = total.masked_fill(~open_, -torch.inf)
    width = total.shape[-1]
    total = total.flatten(1)  # [B, W * D]
    if dead is not None:
        parent, gone = dead  # [B, H]
        here = parent.unsqueeze(2) == nodes.unsqueeze(1)  # [B, H, W]
        last = gone.clamp(min=0)
        slot = trie.codes[level][last] if by_code else last - trie.first[level][parent.clamp(min=0)]
        cell = here.to(torch.uint8).argmax(dim=2) * width + slot.clamp(min=0, max=width - 1)
        floor = torch.where(here.any(dim=2), -torch.inf, torch.inf).to(total.dtype)
        total.scatter_reduce_(1, cell, floor, "amin")
    scores, picked = top(total, min(beam, total.shape[1]))
    found = child.flatten(1).gather(1, picked).long().masked_fill_(scores == -torch.inf, -1)
    return found, scores, picked // width


def top(values: Tensor, k: int, fold: int = 16) -> tuple[Tensor, Tensor]:
    """topk of [B, C] along the last dimension, several times faster where C is much larger than k.

    The columns are folded into groups; the k best are among the k groups with the best maximum, whatever the values.
    """
    people, columns = values.shape
    groups = columns // fold
    if groups < 2 * k or columns % fold:
        return values.topk(k, dim=1)
    folded = values.view(people, fold, groups)
    best = folded.amax(dim=1).topk(k, dim=1, sorted=False).indices  # [B, k]
    some = folded.gather(2, best.unsqueeze(1).expand(-1, fold, -1)).flatten(1)  # [B, fold * k]
    found, at = some.topk(k, dim=1)
    return found, at // k * groups + best.gather(1, at % k)


def finish(trie: Trie, nodes: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Leaves to the k best items, ties by item index: items int64 [B, k] (-1) and scores [B, k] (-inf)."""
    items = trie.leaf_items[nodes.clamp(min=0)].masked_fill(nodes < 0, trie.items)
    by_item = items.argsort(dim=1, stable=True)
    items, scores = items.gather(1, by_item), scores.gather(1, by_item)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    items, scores = items.gather(1, best), scores.gather(1, best)
    items = items.masked_fill(scores == -torch.inf, -1)
    missing = k - items.shape[1]
    return F.pad(items, (0, missing), value=-1), F.pad(scores, (0, missing), value=-torch.inf)


@torch.no_grad()
def score_items(model: SequenceModel, h: Tensor, items: Tensor, rows: int = 8192) -> Tensor:
    """Log-probability of each item: h [B, d], items int64 [B, C] -> [B, C]. `rows` of them are worked out at once."""
    people = torch.arange(len(h), device=h.device).repeat_interleave(items.shape[1])
    parts = zip(people.split(rows), items.flatten().split(rows), strict=True)
    return torch.cat([model.log_prob_of_codes(h[who], what) for who, what in parts]).view_as(items)
