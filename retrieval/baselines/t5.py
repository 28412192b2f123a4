"""Exact batched beam search with the weights of a T5-shaped encoder-decoder (Raffel et al. 2020).

The items, their order and their scores are those of `generate(num_beams=..., prefix_allowed_tokens_fn=...)` of
`transformers` (length_penalty=0, early_stopping="never"), whose score is the sum of log-softmaxes over the whole
vocabulary. What is saved, without approximating anything:

- the memory of a person is read by all beams as query positions of one attention: its keys and values are made once
  per person and neither repeated nor reordered;
- the first step runs on one beam, and what it leaves in the self-attention is shared by all beams of the person;
- only the self-attention's keys and values of the steps after it follow the beams;
- mask and transition come from the tree's tables (`retrieval.decode.extend`), before the top-k;
- norms are folded into the projections that follow them, projections of one input are one matrix, and those of the
  first layer, which reads nothing but one token, are a table by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.decode import extend, finish, take
from retrieval.trie import Reachable, Trie

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration


def people_at_once(device: torch.device) -> int:
    """How many people a search is fastest for: on a CPU what their beams need stays in its cache."""
    return 8 if device.type == "cpu" else 256


@dataclass(frozen=True)
class _Layer:
    """The matrices of one block, each [out, in], with the norms before them folded in."""

    qkv: Tensor
    out: Tensor
    wide: Tensor
    narrow: Tensor


@dataclass(frozen=True)
class _CrossLayer(_Layer):
    cross_q: Tensor
    cross_kv: Tensor
    cross_out: Tensor


class T5Speller:
    """Reads a person with the model's encoder and spells semantic IDs with its decoder.

    model: a `T5ForConditionalGeneration` with a plain ReLU feed-forward; its weights are copied, so make a new speller
    after training. offsets: per level, the token of code 0; the codes of a level are consecutive tokens.
    """

    def __init__(self, model: T5ForConditionalGeneration, offsets: tuple[int, ...]) -> None:
        config: Any = model.config
        if config.feed_forward_proj != "relu":
            raise ValueError(f"feed_forward_proj is {config.feed_forward_proj!r}; this search computes 'relu' only")
        self.offsets = offsets
        self.heads, self.eps, self.start = config.num_heads, config.layer_norm_epsilon, config.decoder_start_token_id
        with torch.no_grad():
            encoder: Any = model.encoder.block
            decoder: Any = model.decoder.block
            self.encoder = [_Layer(**_own(block)) for block in encoder]
            self.decoder = [_CrossLayer(**_own(block), **_cross(block)) for block in decoder]
            self.embeddings = model.shared.weight.detach()
            plain = self._norm(self.embeddings)
            self.read_first = F.linear(plain, self.encoder[0].qkv)  # [tokens, 3 * heads * d_kv]
            self.spell_first = F.linear(plain, self.decoder[0].qkv)
            self.memory_norm = model.encoder.final_layer_norm.weight.detach()
            scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
            self.head = model.lm_head.weight * model.decoder.final_layer_norm.weight * scale  # [tokens, d]
            self.encoder_bias = encoder[0].layer[0].SelfAttention.compute_bias
            self.bias = decoder[0].layer[0].SelfAttention.compute_bias(len(offsets), len(offsets))[0]  # [heads, L, L]

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The encoder: tokens int64 and mask bool, both [B, S] -> memory [B, S, d]"""
        steps = tokens.shape[1]
        bias = self.encoder_bias(steps, steps) + _closed(mask, self.embeddings.dtype)  # [B, heads, S, S]
        x = self.embeddings[tokens]
        for layer in self.encoder:
            qkv = self.read_first[tokens] if layer is self.encoder[0] else F.linear(self._norm(x), layer.qkv)
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, S, d_kv]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
            x = x + F.linear(mixed.transpose(1, 2).flatten(-2), layer.out)
            x = x + F.linear(F.linear(self._norm(x), layer.wide).relu_(), layer.narrow)
        return self._norm(x) * self.memory_norm

    @torch.no_grad()
    def search(
        self, tokens: Tensor, mask: Tensor, trie: Trie, reachable: Reachable, k: int, beam: int
    ) -> tuple[Tensor, Tensor]:
        """The k best items per person: items int64 [B, k] (-1) and log-probabilities [B, k] (-inf).

        tokens int64 and mask bool, both [B, S]: what the encoder reads. The rest as in `retrieval.decode.beam_search`.
        """
        people = len(tokens)
        memory = self.read(tokens, mask)  # [B, S, d]
        cross = [F.linear(memory, layer.cross_kv).unflatten(-1, (2, self.heads, -1)) for layer in self.decoder]
        closed = _closed(mask, memory.dtype)
        past: list[list[Tensor]] = [[] for _ in self.decoder]  # per layer and step: k and v, [B, W, 2, heads, d_kv]
        nodes = torch.zeros(people, 1, dtype=torch.long, device=tokens.device)  # [B, W]
        scores = memory.new_zeros(people, 1)  # [B, W]
        token = torch.full_like(nodes, self.start)
        for level, (size, offset) in enumerate(zip(trie.sizes, self.offsets, strict=True)):
            x = self.embeddings[token]  # [B, W, d]
            for layer, keys_values, before in zip(self.decoder, cross, past, strict=True):
                qkv = self.spell_first[token] if layer is self.decoder[0] else F.linear(self._norm(x), layer.qkv)
                x = x + F.linear(self._look_back(qkv, before, level), layer.out)
                x = x + F.linear(
                    self._look_across(F.linear(self._norm(x), layer.cross_q), keys_values, closed), layer.cross_out
                )
                x = x + F.linear(F.linear(self._norm(x), layer.wide).relu_(), layer.narrow)
            log_p = F.log_softmax(F.linear(self._norm(x), self.head), dim=-1)[..., offset : offset + size]
            nodes, scores, parents, codes = extend(trie, reachable, level, nodes, scores, log_p, max(beam, k))
            if level + 1 < len(self.offsets):  # the first step is the same for all beams
                past = [before[:1] + [take(each, parents) for each in before[1:]] for before in past]
            token = codes + offset
        return finish(trie, nodes, scores, k)

    def _norm(self, x: Tensor) -> Tensor:
        # As F.rms_norm, which on a CPU writes the squares down first.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (length * length / x.shape[-1] + self.eps).rsqrt_()

    def _look_back(self, qkv: Tensor, before: list[Tensor], level: int) -> Tensor:
        """qkv [B, W, 3 * heads * d_kv] -> [B, W, heads * d_kv]; appends this step to `before`."""
        qkv = qkv.unflatten(-1, (3, self.heads, -1))  # [B, W, 3, heads, d_kv]
        q = qkv[:, :, 0]
        before.append(qkv[:, :, 1:])
        if level == 0:
            return qkv[:, :, 2].flatten(-2)  # the only step there is
        # At most as many steps as levels: products of vectors, since matrices this small cost more to set up.
        weights = torch.stack([(q * each[:, :, 0]).sum(dim=-1) for each in before])  # [steps, B, W, heads]
        weights = (weights + self.bias[:, level, : level + 1].T[:, None, None]).softmax(dim=0).unsqueeze(-1)
        mixed = weights[0] * before[0][:, :, 1]
        for weight, each in zip(weights[1:], before[1:], strict=True):
            mixed.addcmul_(weight, each[:, :, 1])
        return mixed.flatten(-2)

    def _look_across(self, q: Tensor, keys_values: Tensor, closed: Tensor) -> Tensor:
        """q [B, W, heads * d_kv], keys and values [B, S, 2, heads, d_kv] -> [B, W, heads * d_kv]"""
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, W, d_kv]
        k, v = keys_values.permute(2, 0, 3, 1, 4)  # [B, heads, S, d_kv]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=closed, scale=1.0)
        return mixed.transpose(1, 2).flatten(-2)


def _closed(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [B, S] -> what is added to attention scores, [B, 1, 1, S]"""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None]


def _own(block: Any) -> dict[str, Tensor]:
    attention, norm = block.layer[0].SelfAttention, block.layer[0].layer_norm
    feed = block.layer[-1]
    return {
        "qkv": torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]) * norm.weight,
        "out": attention.o.weight.detach(),
        "wide": feed.DenseReluDense.wi.weight * feed.layer_norm.weight,
        "narrow": feed.DenseReluDense.wo.weight.detach(),
    }


def _cross(block: Any) -> dict[str, Tensor]:
    attention, norm = block.layer[1].EncDecAttention, block.layer[1].layer_norm
    return {
        "cross_q": attention.q.weight * norm.weight,
        "cross_kv": torch.cat([attention.k.weight, attention.v.weight]),
        "cross_out": attention.o.weight.detach(),
    }
