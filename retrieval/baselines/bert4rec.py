"""BERT4Rec (Sun et al. 2019, section 3): items hidden at random are told from what stands before and after them.

At the end of a history stands one more hidden place, and what is told of it is the recommendation. A part of the
sequences has the last item hidden and nothing else, as the question will be (section 3.6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.baselines.item_model import ItemBaseline, ItemModel
from retrieval.model import RetrieverConfig


class BidirectionalModel(ItemModel):
    def __init__(self, config: RetrieverConfig, items: int) -> None:
        super().__init__(config, items)
        self.hidden = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_history, config.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.heads, 4 * config.dim, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.blocks, nn.LayerNorm(config.dim), enable_nested_tensor=False)

    def states(self, sequences: Tensor, hide: Tensor) -> Tensor:
        """sequences int64 and hide bool [B, T]; -1 at the end is padding unless hidden -> [B, T, d]"""
        x = self.items(sequences.clamp(min=0)) * self.config.dim**0.5
        x = torch.where(hide.unsqueeze(-1), self.hidden, x) + self.positions[: x.shape[1]]
        x = F.dropout(x, self.config.dropout, self.training)
        return self.layers(x, src_key_padding_mask=(sequences < 0) & ~hide)

    def next(self, histories: Tensor, lengths: Tensor) -> Tensor:
        histories = F.pad(histories, (0, 1), value=-1)
        hide = torch.arange(histories.shape[1], device=histories.device) == lengths.unsqueeze(1)
        return self.states(histories, hide)[hide]


class BERT4Rec(ItemBaseline):
    name = "bert4rec"
    last_window = 1
    share = 0.2  # of the items that are hidden
    last_only = 0.2  # of the sequences, that have only the last item hidden

    def network(self, items: int) -> BidirectionalModel:
        return BidirectionalModel(self.config, items)

    def loss(self, model: BidirectionalModel, sequences: Tensor) -> Tensor:
        real = sequences >= 0
        last = real & ~F.pad(real, (0, 1))[:, 1:]
        some = (torch.rand(sequences.shape, device=sequences.device) < self.share) & real
        only_last = torch.rand(len(sequences), 1, device=sequences.device) < self.last_only
        hide = torch.where(only_last | ~some.any(dim=1, keepdim=True), last, some)
        return F.cross_entropy(model.states(sequences, hide)[hide] @ model.items.weight.T, sequences[hide])
