"""Kandinsky 2.2 (Razzhigaev et al. 2023): a latent diffusion model whose only condition is a CLIP picture embedding.

The unconditional side of its guidance is the embedding of an empty picture (all zeros after preprocessing), as in the
prior that was published with it, so the picture encoder is read once, asked that one question and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffusion.decoders.pipeline import PipelineConfig, PipelineDecoder


@dataclass(frozen=True)
class KandinskyConfig(PipelineConfig):
    """`image_encoder` holds the folder `image_encoder` of the CLIP that `space` names; `size` is of the picture."""

    model: str = "kandinsky-community/kandinsky-2-2-decoder"
    space: str = "open_clip:ViT-bigG-14/laion2b_s39b_b160k"
    dim: int = 1280
    steps: int = 100
    guidance: float = 4.0
    image_encoder: str = "kandinsky-community/kandinsky-2-2-prior"
    size: int = 512


class KandinskyDecoder(PipelineDecoder):
    """Pictures from ViT-bigG-14 picture embeddings."""

    name, media, config_class = "kandinsky", "image", KandinskyConfig
    places = ("model", "image_encoder")

    def load(self, options: dict[str, Any]) -> Any:
        from diffusers import KandinskyV22Pipeline

        return KandinskyV22Pipeline.from_pretrained(self.config.model, **options)

    def reads(self, pipe: Any) -> int:
        return int(pipe.unet.config.encoder_hid_dim)

    def run(self, embedding: Tensor, generator: torch.Generator) -> Any:
        return self.pipe(
            image_embeds=embedding,
            negative_image_embeds=self._empty.to(embedding) if self.config.guidance > 1 else embedding,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            height=self.config.size,
            width=self.config.size,
            generator=generator,
        ).images[0]

    @cached_property
    def _empty(self) -> Tensor:
        """The embedding `[1, dim]` of a picture of zeros."""
        from transformers import CLIPVisionModelWithProjection

        try:
            encoder: Any = CLIPVisionModelWithProjection.from_pretrained(
                self.config.image_encoder, subfolder="image_encoder", use_safetensors=True
            )
        except OSError as error:
            raise FileNotFoundError(
                f"{self.name}: no image_encoder in {self.config.image_encoder!r} ({error}); "
                'name a folder that has one in config.json under "image_encoder", or draw without it: "guidance": 1'
            ) from error
        picture = torch.zeros(1, 3, encoder.config.image_size, encoder.config.image_size)
        device, dtype = self.pipe.device, self.pipe.dtype
        return encoder.eval().to(device, dtype)(picture.to(device, dtype)).image_embeds
