"""The tree of all semantic IDs as sorted ranges: its size grows with the items and not with the codes they could have.

Nodes of each level are numbered from 0 in the order of their codes, so the children of a node are one range of the next
level's nodes and an array of range ends holds the whole tree (the compressed sparse rows of STATIC, "Vectorizing the
Trie", and of every sparse matrix). Where many codes of a level are in use, the first levels of any catalog, a dense
table beside it makes mask and transition one gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from retrieval.ranking import flatten

DENSE_CELLS = 1 << 20  # a level's table may have this many
DENSE_SHARE = 8  # and at least 1 / DENSE_SHARE of its widest row filled


@dataclass(frozen=True)
class Reachable:
    """Which nodes lead to a permitted item.

    alive: per level 1..L bool [nodes], the same for everybody; None means all. dead: per level what is closed to one
    person besides, as parent and child nodes int64 [B, H], -2 where a person has fewer; None where nobody has any.
    """

    alive: list[Tensor | None]
    dead: list[tuple[Tensor, Tensor] | None]

    def of(self, people: slice) -> Reachable:
        """The same for some of the people."""
        dead = [None if pair is None else (pair[0][people], pair[1][people]) for pair in self.dead]
        return Reachable(self.alive, dead)


class Trie:
    """first[l]: int32 [nodes of level l, + 1], where the children of each node begin among the nodes of level l + 1.
    codes[l]: int32 [nodes of level l + 1], the code that leads to each. width[l]: the most children of one node.
    dense[l]: int32 [nodes of level l, sizes[l]], the child by code, -1 where no item goes; None on sparse levels.
    leaf_items: int64 [N], the item of each node of level L. Level 0 is the root alone.
    """

    def __init__(self, codes: np.ndarray, sizes: Sequence[int]) -> None:
        """codes int64 [N, L], no two rows equal (ValueError otherwise)."""
        codes = np.asarray(codes, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or len(codes) == 0:
            raise ValueError(f"codes {list(codes.shape)}: need [N, {len(sizes)}] with at least one item")
        self.items = len(codes)
        self.sizes = tuple(int(size) for size in sizes)
        order = _sorted_rows(codes, self.sizes)
        codes = codes[order]
        # spans[l]: where the leaves under each node of level l begin, int32 [nodes, + 1].
        self.spans = [np.array([0, self.items], dtype=np.int32)]
        starts = np.zeros(self.items, dtype=bool)  # leaf begins a node of this level
        starts[0] = True
        self.first: list[Tensor] = []
        self.codes: list[Tensor] = []
        self.width: list[int] = []
        self.dense: list[Tensor | None] = []
        for level, size in enumerate(self.sizes):
            starts[1:] |= codes[1:, level] != codes[:-1, level]
            leaves = np.flatnonzero(starts)
            first = np.searchsorted(leaves, self.spans[level]).astype(np.int32)
            edge = codes[leaves, level].astype(np.int32)
            self.spans.append(np.append(leaves, self.items).astype(np.int32))
            self.first.append(torch.from_numpy(first))
            self.codes.append(torch.from_numpy(edge))
            self.width.append(int(np.diff(first).max()))
            self.dense.append(_table(first, edge, size, self.width[level]))
        if len(leaves) < self.items:
            raise ValueError("two items share a semantic ID: make the IDs with assign_unique")
        self.leaf_items = torch.from_numpy(order)
        self._order = order
        self._leaf_of = np.empty_like(order)
        self._leaf_of[order] = np.arange(self.items)

    @cached_property
    def path(self) -> list[Tensor]:
        """Per level 0..L the node that each item lies under: int64 [N]."""
        nodes = [np.searchsorted(span, self._leaf_of, side="right") - 1 for span in self.spans]
        return [torch.from_numpy(n).to(self.leaf_items.device) for n in nodes]

    def prefix_hashes(self, buckets: int) -> list[Tensor]:
        """Per level 1..L a bucket for the whole prefix that leads to each node: int64 [nodes], in [0, buckets).

        It depends on the prefix alone, not on what else is in the catalog.
        """
        hashes = [np.zeros(1, dtype=np.uint64)]
        for level in range(len(self.sizes)):
            parents = np.repeat(hashes[-1], np.diff(self.first[level].cpu().numpy()))
            steps = self.codes[level].cpu().numpy().astype(np.uint64) + np.uint64(level * 4099 + 1)
            mixed = (parents ^ steps) * np.uint64(0x9E3779B97F4A7C15)
            hashes.append(mixed ^ (mixed >> np.uint64(29)))
        found = [torch.from_numpy((h % np.uint64(buckets)).astype(np.int64)) for h in hashes[1:]]
        return [bucket.to(self.leaf_items.device) for bucket in found]

    def to(self, device: torch.device | str) -> Trie:
        """Move what the search reads, in place."""
        self.first = [table.to(device) for table in self.first]
        self.codes = [table.to(device) for table in self.codes]
        self.dense = [None if table is None else table.to(device) for table in self.dense]
        self.leaf_items = self.leaf_items.to(device)
        self.__dict__.pop("path", None)
        return self

    def nodes(self, level: int) -> int:
        return len(self.spans[level]) - 1

    @property
    def nbytes(self) -> int:
        """Memory of all tables."""
        tensors = [*self.first, *self.codes, *(table for table in self.dense if table is not None), self.leaf_items]
        return sum(t.nbytes for t in tensors) + sum(span.nbytes for span in self.spans) + self._leaf_of.nbytes

    def reachable(self, allowed: np.ndarray | None = None, hidden: Sequence[np.ndarray] | None = None) -> Reachable:
        """What a search may enter. Its cost per person grows with what is hidden from that person, not with N.

        allowed: bool [N], the same for everybody. hidden: item indices per person, B arrays. Counted from the items up:
        a node is dead for a person once all the allowed items under it are hidden from that person.
        """
        device = self.leaf_items.device
        below = None  # how many allowed items come before each leaf
        if allowed is not None:
            below = np.concatenate([[0], np.cumsum(allowed[self._order])])
        people, leaves = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        if hidden is not None:
            people, items = flatten(hidden)
            pairs = np.unique(people * self.items + self._leaf_of[items])  # a history may repeat an item
            people = pairs // self.items
            leaves = (pairs % self.items).astype(np.int32)  # the type of the spans: to look up others converts a span
            if allowed is not None:
                shown = allowed[self._order[leaves]]
                people, leaves = people[shown], leaves[shown]
        alive: list[Tensor | None] = []
        dead: list[tuple[Tensor, Tensor] | None] = []
        parents = np.zeros(len(leaves), dtype=np.int64)
        for level in range(1, len(self.sizes) + 1):
            span, count = self.spans[level], self.nodes(level)
            edges = span if below is None else below[span]
            alive.append(None if below is None else torch.from_numpy(np.diff(edges) > 0).to(device))
            nodes = np.searchsorted(span, leaves, side="right") - 1
            keys = people * count + nodes  # ascending, as people and their leaves are
            at = np.flatnonzero(np.diff(keys, prepend=-1))  # where each node of a person begins
            gone = np.diff(at, append=len(keys))
            none_left = at[gone == edges[nodes[at] + 1] - edges[nodes[at]]]
            dead.append(_padded(people[none_left], parents[none_left], nodes[none_left], hidden, device))
            parents = nodes
        return Reachable(alive, dead)


def _sorted_rows(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The order that sorts the rows by first code, then second, ...: int64 [N]."""
    return np.lexsort(codes.T[::-1])


def _table(first: np.ndarray, edge: np.ndarray, size: int, width: int) -> Tensor | None:
    nodes = len(first) - 1
    if nodes * size > DENSE_CELLS or width * DENSE_SHARE < size:
        return None
    table = np.full((nodes, size), -1, dtype=np.int32)
    table[np.repeat(np.arange(nodes), np.diff(first)), edge] = np.arange(len(edge))
    return torch.from_numpy(table)


def _padded(
    who: np.ndarray, parent: np.ndarray, child: np.ndarray, hidden: Sequence[np.ndarray] | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Pairs of nodes per person, `who` ascending, as two tables [B, H]."""
    if hidden is None or len(who) == 0:
        return None
    place = np.arange(len(who)) - np.searchsorted(who, who)
    tables = np.full((2, len(hidden), int(place.max()) + 1), -2, dtype=np.int64)
    tables[0, who, place] = parent
    tables[1, who, place] = child
    return torch.from_numpy(tables[0]).to(device), torch.from_numpy(tables[1]).to(device)
