"""The tree of all semantic IDs as dense tables, so that mask and transition are one gather."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from retrieval.ranking import flatten


class Trie:
    """Nodes of each level are numbered from 0 in the order of their codes; a leaf is its item's index.

    children[l]: int32 [nodes of level l, sizes[l]], the node of level l + 1 that a code leads to, -1 where no item
    goes. paths[l]: int64 [N], the node of level l that each item lies under; level 0 is the root, level L the items
    themselves.
    """

    def __init__(self, codes: np.ndarray, sizes: Sequence[int]) -> None:
        """codes int64 [N, L], no two rows equal (ValueError otherwise)."""
        codes = np.asarray(codes, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or len(codes) == 0:
            raise ValueError(f"codes {list(codes.shape)}: need [N, {len(sizes)}] with at least one item")
        self.items = len(codes)
        self.sizes = tuple(int(size) for size in sizes)
        self.children: list[torch.Tensor] = []
        self.paths: list[np.ndarray] = [np.zeros(self.items, dtype=np.int64)]
        nodes = 1
        for level, size in enumerate(self.sizes):
            edge = self.paths[level] * size + codes[:, level]
            edges, child = np.unique(edge, return_inverse=True)
            if level == len(self.sizes) - 1:
                if len(edges) < self.items:
                    raise ValueError("two items share a semantic ID: make the IDs with assign_unique")
                child = np.arange(self.items)
            table = np.full(nodes * size, -1, dtype=np.int32)
            table[edge] = child
            self.children.append(torch.from_numpy(table.reshape(nodes, size)))
            self.paths.append(child.astype(np.int64).reshape(-1))
            nodes = len(edges)

    def to(self, device: torch.device | str) -> Trie:
        """Move the tables, in place."""
        self.children = [table.to(device) for table in self.children]
        return self

    def nodes(self, level: int) -> int:
        return self.items if level == len(self.sizes) else len(self.children[level])

    def reachable(
        self, allowed: np.ndarray | None = None, hidden: Sequence[np.ndarray] | None = None
    ) -> list[torch.Tensor]:
        """Which nodes lead to a permitted item: bool [B, nodes] per level 1..L, or [1, nodes] for everybody.

        allowed: bool [N]. hidden: item indices per person, B arrays. Counted from the items up: a node is dead for a
        person once all the allowed items under it are hidden from that person.
        """
        shown = np.ones(self.items, dtype=bool) if allowed is None else allowed
        masks = []
        if hidden is not None:
            people, items = flatten(hidden)
            pairs = np.unique(people * self.items + items)  # a history may repeat an item
            people, items = pairs // self.items, pairs % self.items
            people, items = people[shown[items]], items[shown[items]]
        for level in range(1, len(self.sizes) + 1):
            count = self.nodes(level)
            path = self.paths[level]
            under = np.bincount(path[shown], minlength=count)  # allowed items under each node
            mask = (under > 0)[None]
            if hidden is not None:
                mask = np.repeat(mask, len(hidden), axis=0)  # [B, nodes]
                keys, gone = np.unique(people * count + path[items], return_counts=True)
                dead = keys[gone == under[keys % count]]
                mask.reshape(-1)[dead] = False
            masks.append(torch.from_numpy(mask).to(self.children[0].device))
        return masks
