"""CLAP (Wu et al. 2023, "Large-scale contrastive language-audio pretraining"): sounds and words in one space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from encoders.base import BatchedEncoder, fingerprint, resample, resolve_device
from encoders.media import Waveform

if TYPE_CHECKING:
    import torch


class Clap(BatchedEncoder):
    """`which` is a repository of the hub (`laion/clap-htsat-unfused`) or a folder made by `save_pretrained`.

    A sound longer than the model's window (10 s) is cut into windows, whose vectors are averaged: every second counts
    once and nothing is drawn at random.
    """

    modalities = frozenset({"text", "audio"})
    batch_size = 8

    def __init__(self, which: str, device: str | None = None) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        self.name = f"clap:{which}"
        self.space = f"clap:{fingerprint(Path(which))}" if Path(which).is_dir() else self.name
        self.device = resolve_device(device)
        self.model = ClapModel.from_pretrained(which).eval().to(self.device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(which, trust_remote_code=False)
        self.features: Any = ClapFeatureExtractor.from_pretrained(which)
        self.dim = int(self.model.config.projection_dim)
        positions = self.model.config.text_config.max_position_embeddings
        self.max_tokens = positions - self.model.config.text_config.pad_token_id - 1  # RoBERTa counts from pad + 1

    def encode_batch(self, items: list[Any], modality: str) -> torch.Tensor:
        return self._text(items) if modality == "text" else self._audio(items)

    def _text(self, texts: list[str]) -> torch.Tensor:
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return _vectors(self.model.get_text_features(**inputs))

    def _audio(self, clips: list[Waveform]) -> torch.Tensor:
        import torch

        rate, window = self.features.sampling_rate, self.features.nb_max_samples
        split = [_windows(resample(clip, rate), window) for clip in clips]
        vectors = []
        flat = [part for clip in split for part in clip]
        for start in range(0, len(flat), self.batch_size):
            inputs = self.features(flat[start : start + self.batch_size], sampling_rate=rate, return_tensors="pt")
            mel = inputs["input_features"].float().to(self.device)
            longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=self.device)  # each fits its window
            vectors.append(_vectors(self.model.get_audio_features(input_features=mel, is_longer=longer)))
        return torch.stack([part.mean(0) for part in torch.cat(vectors).split([len(clip) for clip in split])])


def _windows(samples: np.ndarray, window: int) -> list[np.ndarray]:
    """Consecutive windows; a rest under a quarter window is left out unless it is all there is."""
    parts = [samples[start : start + window] for start in range(0, len(samples), window)]
    return [part for part in parts if len(part) >= window // 4] or parts[:1]


def _vectors(output: Any) -> torch.Tensor:
    return output if not hasattr(output, "pooler_output") else output.pooler_output  # transformers 4 or 5
