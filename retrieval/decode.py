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

from retrieval.model import SequenceModel, dots
from retrieval.trie import Reachable, Trie

PEOPLE_AT_ONCE = 128  # on a CPU: few enough for its cache, enough to meet on the same first nodes
WEIGHED_AT_ONCE = 1 << 28  # numbers of all that may follow, on a GPU


def runs_ahead(tensor: Tensor) -> bool:
    """Whether its device works behind the program's back, so that to ask what is in a tensor would stall both."""
    return tensor.device.type != "cpu"


@torch.no_grad()
def beam_search(model: SequenceModel, h: Tensor, reachable: Reachable, k: int, beam: int) -> tuple[Tensor, Tensor]:
    """The k best items per person, best first, ties by item index: items int64 [B, k] (-1), log-probs [B, k] (-inf).

    h: [B, d]. reachable: from `model.trie.reachable`. A beam narrower than k is widened to k; since only nodes that
    lead to a permitted item enter it, k items come back wherever k are permitted. With beam >= N the search is
    exhaustive.
    """
    trie = model.trie
    if len(h) > PEOPLE_AT_ONCE and not runs_ahead(h):
        parts = [slice(start, start + PEOPLE_AT_ONCE) for start in range(0, len(h), PEOPLE_AT_ONCE)]
        found = [beam_search(model, h[part], reachable.of(part), k, beam) for part in parts]
        return torch.cat([items for items, _ in found]), torch.cat([scores for _, scores in found])
    nodes = torch.zeros(len(h), 1, dtype=torch.long, device=h.device)  # [B, W], one beam at first
    scores = h.new_zeros(len(h), 1)  # [B, W]
    spelled = nodes.unsqueeze(2)[..., :0]  # [B, W, level]
    for level in range(len(trie.sizes)):
        who = torch.arange(nodes.numel(), device=h.device) // nodes.shape[1]
        total = continuations(model, level, h, who, nodes.flatten(), spelled.flatten(0, 1)).unflatten(0, nodes.shape)
        nodes, scores, parents = choose(trie, reachable, level, nodes, total.add_(scores.unsqueeze(-1)), max(beam, k))
        if level + 1 < len(trie.sizes):
            codes = trie.codes[level][nodes.clamp(min=0)].long()
            spelled = torch.cat([take(spelled, parents), codes.unsqueeze(2)], dim=2)
    return finish(trie, nodes, scores, k)


def continuations(model: SequenceModel, level: int, h: Tensor, who: Tensor, nodes: Tensor, spelled: Tensor) -> Tensor:
    """Log-probabilities of what may follow each of P nodes: int64 [P] and their codes [P, level] -> [P, D]

    h: [B, d]; who: int64 [P], after which of the states each node was spelled. In the D places are the children of each
    node in order, -inf where it has fewer. Where only one can follow nothing is computed: it is certain. On the last
    levels that is nearly everywhere. A dead beam (-1) has the children of node 0; its score keeps them out.
    """
    assert model.decoder is not None
    choices, parents = model.choices[level], nodes.clamp(min=0)
    begin = choices.begin[parents]
    count = choices.begin[parents + 1] - begin
    if runs_ahead(h):
        read = model.decoder.read(level, h, spelled, who)
        return _weigh_unasked(read, begin, count, choices.known, model.trie.width[level])
    total = h.new_empty(len(parents), max(1, int(count.max())))
    asked = count.nonzero().squeeze(1)  # [R], who has a choice
    if len(asked) < len(parents):
        total.fill_(-torch.inf)[:, 0] = 0.0
    if len(asked):
        asked = asked[begin[asked].argsort()]  # brothers together
        read = model.decoder.read(level, h, spelled[asked], who[asked])  # [R, width]
        total[asked] = _weigh(read, begin[asked], count[asked], choices.known, total.shape[1]).log_softmax(dim=1)
    return total


def _weigh(read: Tensor, begin: Tensor, count: Tensor, known: Tensor, width: int) -> Tensor:
    """Dot products of read [R, w] with rows begin to begin + count of known [E, w], brothers together -> [R, width]"""
    logits = read.new_full((len(read), width), -torch.inf)
    first, rows = begin.unique_consecutive(return_counts=True)
    if 4 * len(first) <= len(begin):  # many beams on few nodes: one product for all beams of a node
        ends = rows.cumsum(0)
        places = zip(first.tolist(), count[ends - 1].tolist(), (ends - rows).tolist(), ends.tolist(), strict=True)
        for child, degree, start, end in places:
            torch.mm(read[start:end], known[child : child + degree].T, out=logits[start:end, :degree])
        return logits
    ends = count.cumsum(0)
    at = torch.arange(int(ends[-1])) + torch.repeat_interleave(begin - (ends - count), count)  # [E]
    said = dots(read, known, F.pad(ends, (1, 0)), at)
    return logits.masked_scatter_(torch.arange(width) < count.unsqueeze(1), said)


def _weigh_unasked(read: Tensor, begin: Tensor, count: Tensor, known: Tensor, width: int) -> Tensor:
    """Log-probabilities of what may follow, as of `continuations`, of all P nodes and in `width` places: [P, width]

    For a device that runs ahead of the program: no shape depends on what is in a tensor, so the whole search is queued
    without once waiting for it.
    """
    place = torch.arange(width, device=read.device)
    certain = torch.full((width,), -torch.inf, device=read.device).masked_fill(place == 0, 0.0)
    if len(known) == 0:
        return certain.expand(len(read), -1).clone()
    parts = []
    at_once = max(1, WEIGHED_AT_ONCE // (width * known.shape[1]))
    for some, start, many in zip(read.split(at_once), begin.split(at_once), count.split(at_once), strict=True):
        child = (start.unsqueeze(1) + place).clamp(max=len(known) - 1)  # [P, width]
        logits = torch.bmm(known[child], some.unsqueeze(2)).squeeze(2)
        log_p = logits.masked_fill(place >= many.unsqueeze(1), -torch.inf).log_softmax(dim=1)
        parts.append(torch.where(many.unsqueeze(1) > 0, log_p, certain))
    return torch.cat(parts)


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
        there = table.index_select(0, nodes.clamp(min=0).flatten()).view_as(log_p) >= 0  # [B, W, V]
        total = log_p + scores.unsqueeze(-1)
    else:
        child, there = by_range(trie, level, nodes)
        total = log_p.gather(-1, trie.codes[level][child].long()) + scores.unsqueeze(-1)
    total.masked_fill_(~there, -torch.inf)
    nodes, scores, parents = choose(trie, reachable, level, nodes, total, beam, by_code=table is not None)
    return nodes, scores, parents, trie.codes[level][nodes.clamp(min=0)].long()


def by_range(trie: Trie, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The children of nodes int64 [B, W], in order: child int64 [B, W, D], and which of the D places are taken.

    A dead beam (-1) has the children of node 0; its score keeps them out.
    """
    first = trie.first[level]
    known = nodes.clamp(min=0)
    start = first[known].long()  # [B, W]
    degree = first[known + 1] - start
    width = trie.width[level] if runs_ahead(nodes) else int(degree.max())
    slot = torch.arange(width, device=nodes.device)
    there = slot < degree.unsqueeze(-1)  # [B, W, D]
    return (start.unsqueeze(-1) + slot).clamp_(max=len(trie.codes[level]) - 1), there


def choose(
    trie: Trie, reachable: Reachable, level: int, nodes: Tensor, total: Tensor, beam: int, *, by_code: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of the children. -> nodes, scores and parents, each [B, W']; a node of -1 has a score of -inf.

    nodes: int64 [B, W]. total: [B, W, D], the scores of the children in D places, -inf where there is none; it is
    overwritten. The place of a child is its code (by_code) or its number among its parent's. parents: which of the W
    beams each came from. W' is `beam`, or less where the tree has no more.
    """
    alive, dead = reachable.alive[level], reachable.dead[level]
    width = total.shape[-1]
    table = trie.dense[level] if by_code else None

    def child(parent: Tensor, place: Tensor) -> Tensor:
        parent = parent.clamp(min=0)
        if table is not None:
            return table[parent, place].clamp(min=0).long()
        return (trie.first[level][parent] + place).clamp_(max=len(trie.codes[level]) - 1).long()

    if alive is not None:
        total.masked_fill_(~alive[child(nodes.unsqueeze(-1), torch.arange(width, device=nodes.device))], -torch.inf)
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
    parents = picked // width
    found = child(nodes.gather(1, parents), picked - parents * width)
    return found.masked_fill_(scores == -torch.inf, -1), scores, parents


def top(values: Tensor, k: int, fold: int = 16) -> tuple[Tensor, Tensor]:
    """topk of [B, C] along the last dimension, several times faster where C is much larger than k.

    The columns are folded into groups; the k best are among the k groups with the best maximum, whatever the values.
    """
    groups = values.shape[1] // fold
    if groups < 2 * k:
        return values.topk(k, dim=1)
    folded = values[:, : fold * groups].unflatten(1, (fold, groups))
    best = folded.amax(dim=1).topk(k, dim=1, sorted=False).indices  # [B, k]
    some = folded.gather(2, best.unsqueeze(1).expand(-1, fold, -1)).flatten(1)  # [B, fold * k]
    column = (best.unsqueeze(1) + groups * torch.arange(fold, device=values.device).unsqueeze(1)).flatten(1)
    if fold * groups < values.shape[1]:  # what does not fill a group competes by itself
        some = torch.cat([some, values[:, fold * groups :]], dim=1)
        rest = torch.arange(fold * groups, values.shape[1], device=values.device)
        column = torch.cat([column, rest.expand(len(column), -1)], dim=1)
    found, at = some.topk(k, dim=1)
    return found, column.gather(1, at)


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
def score_items(model: SequenceModel, h: Tensor, items: Tensor, people: int = PEOPLE_AT_ONCE) -> Tensor:
    """Log-probability of each item: h [B, d], items int64 [B, C] -> [B, C]. `people` are worked out at once; what the
    items of a person share of their codes is worked out once."""
    if len(h) > people:
        parts = [score_items(model, *part, people) for part in zip(h.split(people), items.split(people), strict=True)]
        return torch.cat(parts)
    trie, wanted = model.trie, items.flatten()
    codes, total = model.tower.codes[wanted], h.new_zeros(len(wanted))
    # The places items are asked from: after which state, at which node, with which codes spelled; `at`: from which.
    who = torch.arange(len(h), device=h.device)
    node, spelled, at = torch.zeros_like(who), codes[: len(h), :0], who.repeat_interleave(items.shape[1])
    for level in range(len(trie.sizes)):
        log_p = continuations(model, level, h, who, node, spelled)  # [P, D]
        target = trie.path[level + 1][wanted]
        total += log_p[at, target - trie.first[level][node[at]]]
        groups, group = (at * trie.nodes(level + 1) + target).unique(return_inverse=True)
        one = torch.empty_like(groups).scatter_(0, group, torch.arange(len(wanted), device=h.device))
        who, node, spelled, at = who[at[one]], target[one], codes[one, : level + 1], group
    return total.view_as(items)
