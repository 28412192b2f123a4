"""Stable Diffusion with IP-Adapter (Ye et al. 2023): picture embeddings through cross-attention of their own.

The adapter's "unconditional" embedding is zeros, as in its training. The words of the prompt are the same for every
item; what to draw is said by the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from diffusion.decoders.pipeline import PipelineConfig, PipelineDecoder


@dataclass(frozen=True)
class IPAdapterConfig(PipelineConfig):
    """`adapter_file` lies in `adapter` (a hub repository or folder); `strength` weighs the embedding against the words.

    Only adapters that read one embedding per picture fit, not the "plus" and "face" ones, which read patches. `size`
    None is the size the model was trained for.
    """

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    space: str = "open_clip:ViT-H-14/laion2b_s32b_b79k"
    dim: int = 1024
    steps: int = 50
    guidance: float = 7.5
    adapter: str = "h94/IP-Adapter"
    adapter_file: str = "models/ip-adapter_sd15.safetensors"
    strength: float = 1.0
    prompt: str = "best quality, high quality"
    negative_prompt: str = "monochrome, lowres, bad anatomy, worst quality, low quality"
    size: int | None = None


class IPAdapterDecoder(PipelineDecoder):
    """Pictures from ViT-H-14 picture embeddings by Stable Diffusion 1.5."""

    name, media = "ip_adapter", "image"
    config_class: type[PipelineConfig] = IPAdapterConfig
    places = ("model", "adapter")
    several = True

    def load(self, options: dict[str, Any]) -> Any:
        file = PurePosixPath(self.config.adapter_file)
        if file.suffix != ".safetensors":
            raise ValueError(f"{self.name}: adapter_file {file} is not a .safetensors file; only those are read")
        pipe = self.base(options)
        pipe.load_ip_adapter(
            self.config.adapter, subfolder=str(file.parent), weight_name=file.name, image_encoder_folder=None
        )
        pipe.set_ip_adapter_scale(self.config.strength)
        return pipe

    def base(self, options: dict[str, Any]) -> Any:
        """Stable Diffusion without the adapter."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline.from_pretrained(self.config.model, **options)

    def reads(self, pipe: Any) -> int:
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        if type(projection).__name__ != "ImageProjection":
            raise ValueError(f"{self.name}: {self.config.adapter_file} reads patches of a picture, not an embedding")
        return int(projection.image_embeds.in_features)

    def run(self, embedding: Tensor, generator: torch.Generator) -> Any:
        both = [torch.zeros_like(embedding), embedding] if self.config.guidance > 1 else [embedding]
        return self.pipe(
            prompt=self.config.prompt,
            negative_prompt=self.config.negative_prompt,
            ip_adapter_image_embeds=[torch.stack(both)],  # [2 or 1, 1 + K, dim]
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            height=self.config.size,
            width=self.config.size,
            generator=generator,
        ).images[0]


@dataclass(frozen=True)
class IPAdapterXLConfig(IPAdapterConfig):
    """The same for SDXL; its adapter of the same picture encoder."""

    model: str = "stabilityai/stable-diffusion-xl-base-1.0"
    guidance: float = 5.0
    adapter_file: str = "sdxl_models/ip-adapter_sdxl_vit-h.safetensors"


class IPAdapterXLDecoder(IPAdapterDecoder):
    """Pictures from ViT-H-14 picture embeddings by SDXL."""

    name, config_class = "ip_adapter_sdxl", IPAdapterXLConfig

    def base(self, options: dict[str, Any]) -> Any:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline.from_pretrained(self.config.model, add_watermarker=False, **options)
