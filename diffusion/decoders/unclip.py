"""Stable unCLIP (Stable Diffusion 2.1 finetuned in the manner of Ramesh et al. 2022, section 2.1).

The embedding, noised by `noise_level` steps, is added to the time embedding of the network; the words stay empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.decoders.pipeline import PipelineConfig, PipelineDecoder


@dataclass(frozen=True)
class UnCLIPConfig(PipelineConfig):
    """`noise_level` 0 to 999 blurs the embedding: more variety, less likeness. `size` None is the model's own."""

    model: str = "sd2-community/stable-diffusion-2-1-unclip"
    space: str = "open_clip:ViT-H-14/laion2b_s32b_b79k"
    dim: int = 1024
    steps: int = 20
    guidance: float = 10.0
    noise_level: int = 0
    size: int | None = None


class UnCLIPDecoder(PipelineDecoder):
    """Pictures from ViT-H-14 picture embeddings (ViT-L-14 for the small model)."""

    name, media, config_class = "unclip", "image", UnCLIPConfig

    def load(self, options: dict[str, Any]) -> Any:
        from diffusers import StableUnCLIPImg2ImgPipeline

        return StableUnCLIPImg2ImgPipeline.from_pretrained(self.config.model, **options)

    def reads(self, pipe: Any) -> int:
        return int(pipe.image_normalizer.config.embedding_dim)

    def run(self, embedding: Tensor, generator: torch.Generator) -> Any:
        return self.pipe(
            prompt=[""],
            image_embeds=embedding,
            noise_level=self.config.noise_level,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            height=self.config.size,
            width=self.config.size,
            generator=generator,
        ).images[0]
