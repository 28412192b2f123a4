"""Exact batched beam search over semantic IDs: only existing, allowed items ever enter the beam.

The score of an item is the plain model's log-probability of its code, the sum over levels of a log-softmax over *all*
codes of the level. It is not renormalised over the codes that exist or are allowed, so an item's score does not depend
on what else is in the catalog or the allow-list, and equals what `score_items` computes without any beam.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.model import DepthDecoder
from retrieval.trie import Trie


@torch.no_grad()
def beam_search(
    decoder: DepthDecoder, h: Tensor, trie: Trie, reachable: list[Tensor], k: int, beam: int
) -> tuple[Tensor, Tensor]:
    """The k best items per person, best first, ties by item index: items int64 [B, k] (-1), log-probs [B, k] (-inf).

    h: [B, d]. reachable: from `trie.reachable`. A beam narrower than k is widened to k; since only nodes that lead to a
    permitted item enter it, k items come back wherever k are permitted. With beam >= N the search is exhaustive.
    """
    people = len(h)
    beam = max(beam, k)
    state = h.unsqueeze(1)  # [B, W, d], one beam at first
    scores = h.new_zeros(people, 1)  # [B, W]
    nodes = torch.zeros(people, 1, dtype=torch.long, device=h.device)  # [B, W]
    for level, size in enumerate(trie.sizes):
        log_p = F.log_softmax(decoder.logits(level, state), dim=-1)  # [B, W, V]
        child = trie.children[level][nodes].long().flatten(1)  # [B, W * V]
        open_ = reachable[level].expand(people, -1).gather(1, child.clamp(min=0)) & (child >= 0)
        total = (scores.unsqueeze(-1) + log_p).flatten(1).masked_fill(~open_, -torch.inf)
        scores, picked = total.topk(min(beam, total.shape[1]), dim=1)  # [B, W']
        nodes = child.gather(1, picked).clamp(min=0)
        parents = (picked // size).unsqueeze(-1).expand(-1, -1, state.shape[-1])
        state = decoder.advance(level, state.gather(1, parents), picked % size)
    nodes = nodes.masked_fill(scores == -torch.inf, trie.items)
    by_item = nodes.argsort(dim=1, stable=True)
    nodes, scores = nodes.gather(1, by_item), scores.gather(1, by_item)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    nodes, scores = nodes.gather(1, best), scores.gather(1, best)
    nodes = nodes.masked_fill(scores == -torch.inf, -1)
    missing = k - nodes.shape[1]
    return F.pad(nodes, (0, missing), value=-1), F.pad(scores, (0, missing), value=-torch.inf)


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
