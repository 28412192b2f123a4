"""Exact batched beam search over semantic IDs: only existing, allowed items ever enter the beam.

The score of an item is the plain model's log-probability of its code, the sum over levels of a log-softmax over *all*
codes of the level. It is not renormalised over the codes that exist or are allowed, so an item's score does not depend
on what else is in the catalog or the allow-list, and equals what `score_items` computes without any beam.

`extend` and `finish` are the search itself, whatever model gives the probabilities; `beam_search` runs it with the
depth decoder of our own model, `retrieval.baselines.t5` with an encoder-decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.model import DepthDecoder
from retrieval.trie import Reachable, Trie


@torch.no_grad()
def beam_search(
    decoder: DepthDecoder, h: Tensor, trie: Trie, reachable: Reachable, k: int, beam: int
) -> tuple[Tensor, Tensor]:
    """The k best items per person, best first, ties by item index: items int64 [B, k] (-1), log-probs [B, k] (-inf).

    h: [B, d]. reachable: from `trie.reachable`. A beam narrower than k is widened to k; since only nodes that lead to a
    permitted item enter it, k items come back wherever k are permitted. With beam >= N the search is exhaustive.
    """
    state = h.unsqueeze(1)  # [B, W, d], one beam at first
    nodes = torch.zeros(len(h), 1, dtype=torch.long, device=h.device)  # [B, W]
    scores = h.new_zeros(len(h), 1)  # [B, W]
    for level in range(len(trie.sizes)):
        log_p = F.log_softmax(decoder.logits(level, state), dim=-1)  # [B, W, V]
        nodes, scores, parents, codes = extend(trie, reachable, level, nodes, scores, log_p, max(beam, k))
        if level + 1 < len(trie.sizes):
            state = decoder.advance(level, take(state, parents), codes)
    return finish(trie, nodes, scores, k)


def take(beams: Tensor, parents: Tensor) -> Tensor:
    """Rows of each person: beams [B, W, ...], parents int64 [B, W'] -> [B, W', ...]"""
    people, width = beams.shape[:2]
    rows = parents + torch.arange(0, people * width, width, device=parents.device).unsqueeze(1)
    return beams.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, parents.shape)


def extend(
    trie: Trie, reachable: Reachable, level: int, nodes: Tensor, scores: Tensor, log_p: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step: the best children of all beams. -> nodes, scores, parents, codes, each [B, W']

    nodes: int64 [B, W] of `level`, -1 for a dead beam, whose score is -inf; no person has a node twice.
    log_p: [B, W, sizes[level]] of each next code. parents: which of the W beams each came from. W' is `beam`, or less
    where the tree has no more.
    """
    known = nodes.clamp(min=0)
    first = trie.first[level]
    table = trie.dense[level]
    alive, dead = reachable.alive[level], reachable.dead[level]
    if table is not None:
        child = table.index_select(0, known.flatten()).view_as(log_p)  # [B, W, V]
        open_ = child >= 0
        total = log_p + scores.unsqueeze(-1)
    else:
        start = first[known].long()  # [B, W]
        degree = first[known + 1] - start
        # The widest node at hand where asking is free; on a GPU asking would stall the search, so the widest of all.
        width = int(degree.max()) if nodes.device.type == "cpu" else trie.width[level]
        slot = torch.arange(width, device=nodes.device)
        open_ = slot < degree.unsqueeze(-1)  # [B, W, D]
        child = (start.unsqueeze(-1) + slot).clamp_(max=len(trie.codes[level]) - 1)
        total = log_p.gather(-1, trie.codes[level][child].long()) + scores.unsqueeze(-1)
    if alive is not None:
        open_ = open_ & alive[child.clamp(min=0)]
    total = total.masked_fill_(~open_, -torch.inf)
    width = total.shape[-1]
    total = total.flatten(1)  # [B, W * D]
    if dead is not None:
        parent, gone = dead  # [B, H]
        here = parent.unsqueeze(2) == nodes.unsqueeze(1)  # [B, H, W]
        last = gone.clamp(min=0)
        slot = trie.codes[level][last] if table is not None else last - first[parent.clamp(min=0)]
        cell = here.to(torch.uint8).argmax(dim=2) * width + slot.clamp(min=0, max=width - 1)
        floor = torch.where(here.any(dim=2), -torch.inf, torch.inf).to(total.dtype)
        total.scatter_reduce_(1, cell, floor, "amin")
    scores, picked = top(total, min(beam, total.shape[1]))
    nodes = child.flatten(1).gather(1, picked).long().masked_fill_(scores == -torch.inf, -1)
    return nodes, scores, picked // width, trie.codes[level][nodes.clamp(min=0)].long()


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
def score_items(decoder: DepthDecoder, h: Tensor, codes: Tensor) -> Tensor:
    """Log-probability of each code: h [B, d], codes int64 [B, C, L] or [C, L] (the same for everybody) -> [B, C]"""
    if codes.dim() == 2:
        codes = codes.expand(len(h), -1, -1)
    levels = decoder.log_probs(h.unsqueeze(1).expand(-1, codes.shape[1], -1), codes)  # [B, C, L]
    total = levels[..., 0]
    for level in range(1, levels.shape[-1]):  # added in the order of the beam
        total = total + levels[..., level]
    return total
