"""SASRec as published (Kang & McAuley 2018, section III-E): binary cross-entropy against one sampled item per event.

Transformer and training loop are those of our other SASRec row; what differs is the loss, which is what most later
papers compare with. Of the item an event is compared with the paper asks that the person has not used it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.baselines.item_model import CausalModel, ItemBaseline


class SASRecBCE(ItemBaseline):
    name = "sasrec_bce"

    def network(self, items: int) -> CausalModel:
        return CausalModel(self.config, items)

    def loss(self, model: CausalModel, sequences: Tensor) -> Tensor:
        h, target = model.pairs(sequences)
        other = torch.randint(len(model.items.weight), sequences.shape, device=sequences.device)
        used = (other.unsqueeze(2) == sequences.unsqueeze(1)).any(dim=2)[sequences >= 0]  # [P]
        other = other[sequences >= 0]
        right, wrong = ((h * model.items(each)).sum(dim=-1) for each in (target, other))  # [P]
        return (F.softplus(-right) + F.softplus(wrong).masked_fill(used, 0.0)).mean()
