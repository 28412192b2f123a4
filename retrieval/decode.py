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

PEOPLE_AT_ONCE = 64  # on a CPU: few enough for its cache, enough to meet on the same first nodes


@torch.no_grad()
def beam_search(model: SequenceModel, h: Tensor, reachable: Reachable, k: int, beam: int) -> tuple[Tensor, Tensor]:
    """The k best items per person, best first, ties by item index: items int64 [B, k] (-1), log-probs [B, k] (-inf).

    h: [B, d]. reachable: from `model.trie.reachable`. A beam narrower than k is widened to k; since only nodes that
    lead to a permitted item enter it, k items come back wherever k are permitted. With beam >= N the search is
    exhaustive.
    """
    assert model.decoder is not None
    trie = model.trie
    if len(h) > PEOPLE_AT_ONCE and h.device.type == "cpu":
        parts = [slice(start, start + PEOPLE_AT_ONCE) for start in range(0, len(h), PEOPLE_AT_ONCE)]
        found = [beam_search(model, h[part], reachable.of(part), k, beam) for part in parts]
        return torch.cat([items for items, _ in found]), torch.cat([scores for _, scores in found])
    state = h.unsqueeze(1)  # [B, W, d], one beam at first
    nodes = torch.zeros(len(h), 1, dtype=torch.long, device=h.device)  # [B, W]
    scores = h.new_zeros(len(h), 1)  # [B, W]
    for level in range(len(trie.sizes)):
        child, open_ = by_range(trie, level, nodes)  # [B, W, D]
        total = continuations(model, level, state, child, open_).add_(scores.unsqueeze(-1))
        nodes, scores, parents = choose(trie, reachable, level, nodes, child, open_, total, max(beam, k))
        if level + 1 < len(trie.sizes):
            codes = trie.codes[level][nodes.clamp(min=0)].long()
            state = model.decoder.advance(level, take(state, parents), codes)
    return finish(trie, nodes, scores, k)


def continuations(model: SequenceModel, level: int, state: Tensor, child: Tensor, open_: Tensor) -> Tensor:
    """`SequenceModel.continuations` for searching: state [B, W, d], child and open_ [B, W, D] -> [B, W, D]

    The same numbers with children side by side instead of one after the other, which is faster without gradients. Where
    only one can follow nothing is computed: it is certain. On the last levels that is nearly everywhere.
    """
    decoder = model.decoder
    assert decoder is not None
    shape = open_.shape
    open_, child = open_.flatten(0, 1), child.flatten(0, 1)
    total = torch.zeros(open_.shape, dtype=state.dtype, device=state.device)  # [B * W, D]
    if open_.shape[1] > 1:
        asked = open_[:, 1].nonzero().squeeze(1)  # [R], who has a choice
        asked = asked[child[asked, 0].argsort()]  # brothers together
        state, child, there = state.flatten(0, 1)[asked], child[asked], open_[asked]
        read = decoder.norms[level](state + decoder.mlps[level](state))  # [R, d]
        logits = (read @ decoder.codes[level].weight.T).gather(1, model.trie.codes[level][child].long())  # [R, D]
        if level:
            _add_prefixes(logits, decoder.narrow[level - 1](read), model, level, child, there)
        total[asked] = logits.masked_fill_(~there, -torch.inf).log_softmax(dim=1)
    return total.view(shape)


def _add_prefixes(logits: Tensor, read: Tensor, model: SequenceModel, level: int, child: Tensor, there: Tensor) -> None:
    """Add to logits [R, D], in place, what the prefixes say: read [R, narrow], child and `there` [R, D], brothers
    together."""
    assert model.decoder is not None
    prefixes, buckets = model.decoder.prefixes, model._buckets[level]
    if logits.device.type == "cpu":
        first, rows = child[:, 0].unique_consecutive(return_counts=True)
        if 4 * len(first) <= len(child):  # many beams on few nodes: each node's prefixes are read once for all of them
            ends = rows.cumsum(0)
            degree = there[ends - 1].sum(dim=1)
            places = zip(first.tolist(), degree.tolist(), (ends - rows).tolist(), ends.tolist(), strict=True)
            for node, count, start, end in places:
                logits[start:end, :count].addmm_(read[start:end], prefixes(buckets[node : node + count]).T)
            return
    row, place = there.nonzero(as_tuple=True)  # [E], the children that exist
    said = (read.index_select(0, row) * prefixes(buckets[child[row, place]])).sum(dim=1)
    logits.view(-1).index_add_(0, row * logits.shape[1] + place, said)


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
    scores, which are overwritten; the place of a child is its code (by_code) or its number among its parent's.
    parents: which of the W beams each came from. W' is `beam`, or less where the tree has no more.
    """
    alive, dead = reachable.alive[level], reachable.dead[level]
    if alive is not None:
        open_ = open_ & alive[child.clamp(min=0)]
    total = total.masked_fill_(~open_, -torch.inf)
    width = total.shape[-1]
    total = total.flatten(1)  # [B, W * D]
    if dead is not None:
        parent, gone = dead  # [B, H]
        # Where each parent is among the beams, counted from 1; 0: nowhere.
        places = torch.arange(1.0, nodes.shape[1] + 1, device=nodes.device)
        place = (parent.unsqueeze(2) == nodes.unsqueeze(1)).to(places.dtype) @ places  # [B, H]
        last = gone.clamp(min=0)
        slot = trie.codes[level][last] if by_code else last - trie.first[level][parent.clamp(min=0)]
        cell = ((place.long() - 1) * width + slot).where(place > 0, 0)
        floor = torch.where(place > 0, -torch.inf, torch.inf).to(total.dtype)
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
def score_items(model: SequenceModel, h: Tensor, items: Tensor, people: int = 64) -> Tensor:
    """Log-probability of each item: h [B, d], items int64 [B, C] -> [B, C]. `people` are worked out at once."""
    parts = []
    for states, wanted in zip(h.split(people), items.split(people), strict=True):
        who = torch.arange(len(states), device=h.device).repeat_interleave(wanted.shape[1])
        parts.append(model.log_prob_of_codes(states, wanted.flatten(), who).view_as(wanted))
    return torch.cat(parts)
