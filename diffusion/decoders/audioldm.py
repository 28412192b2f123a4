"""MusicLDM (Chen et al. 2023) and AudioLDM 2 (Liu et al. 2023): clips from CLAP embeddings.

Each was trained with a CLAP of its own, whose weights come with the pipeline. Other CLAPs also give 512 numbers and
mean other things by them; `save_encoder` writes the right one as a folder for the encoder `clap:<folder>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.decoders.base import Clip
from diffusion.decoders.pipeline import PipelineConfig, PipelineDecoder


@dataclass(frozen=True)
class MusicLDMConfig(PipelineConfig):
    """`seconds` of each clip. CLAP embeddings have length 1."""

    model: str = "ucsd-reach/musicldm"
    space: str = "clap:ucsd-reach/musicldm"
    dim: int = 512
    steps: int = 200
    guidance: float = 2.0
    length: float | None = 1.0
    seconds: float = 10.0


class MusicLDMDecoder(PipelineDecoder):
    """Music from CLAP embeddings, of sound or words; no text is read."""

    name, media = "musicldm", "audio"
    config_class: type[PipelineConfig] = MusicLDMConfig

    def load(self, options: dict[str, Any]) -> Any:
        from diffusers import MusicLDMPipeline

        return MusicLDMPipeline.from_pretrained(self.config.model, **options)

    def reads(self, pipe: Any) -> int:
        return int(pipe.unet.config.projection_class_embeddings_input_dim)

    def run(self, embedding: Tensor, generator: torch.Generator) -> Clip:
        return self.play(generator, prompt_embeds=embedding, negative_prompt_embeds=self.no_words)

    def play(self, generator: torch.Generator, **conditions: Tensor) -> Clip:
        """A clip under the conditions, turned down where it would leave [-1, 1]."""
        samples = self.pipe(
            **conditions,
            audio_length_in_s=self.config.seconds,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance,
            generator=generator,
        ).audios[0]
        return Clip(samples / max(1.0, float(abs(samples).max())), int(self.pipe.vocoder.config.sampling_rate))

    @cached_property
    def no_words(self) -> Tensor:
        """The CLAP embedding `[1, dim]` of an empty text."""
        tokens = self.pipe.tokenizer([""], return_tensors="pt").to(self.pipe.device)
        output = self.pipe.text_encoder.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return output if isinstance(output, Tensor) else output.pooler_output  # transformers 4 or 5

    def save_encoder(self, folder: str | Path) -> None:
        """Write the pipeline's own CLAP with its tokenizer and feature extractor, for the encoder `clap:<folder>`."""
        for part in (self.pipe.text_encoder, self.pipe.tokenizer, self.pipe.feature_extractor):
            part.save_pretrained(folder)


@dataclass(frozen=True)
class AudioLDM2Config(MusicLDMConfig):
    """`prompt` is what its second text encoder (T5) reads beside every embedding; it may be empty."""

    model: str = "cvssp/audioldm2-music"
    space: str = "clap:cvssp/audioldm2-music"
    guidance: float = 3.5
    prompt: str = ""


class AudioLDM2Decoder(MusicLDMDecoder):
    """Music from CLAP embeddings by way of the language of audio (section 3): GPT-2 continues embedding and words."""

    name, config_class = "audioldm2", AudioLDM2Config

    def load(self, options: dict[str, Any]) -> Any:
        from diffusers import AudioLDM2Pipeline
        from transformers import GPT2LMHeadModel

        # Published pipelines name GPT2Model, which generates nothing since transformers 4.50.
        language: Any = GPT2LMHeadModel.from_pretrained(
            self.config.model, subfolder="language_model", use_safetensors=True, variant=self.config.variant
        )
        return AudioLDM2Pipeline.from_pretrained(self.config.model, language_model=language, **options)

    def reads(self, pipe: Any) -> int:
        return int(pipe.projection_model.config.text_encoder_dim)

    def run(self, embedding: Tensor, generator: torch.Generator) -> Clip:
        words, mask = self.words
        empty, empty_mask = self.empty_words
        return self.play(
            generator,
            prompt_embeds=words,
            attention_mask=mask,
            generated_prompt_embeds=self.continued(embedding, words, mask),
            negative_prompt_embeds=empty,
            negative_attention_mask=empty_mask,
            negative_generated_prompt_embeds=self.continued(self.no_words, empty, empty_mask),
        )

    def continued(self, embedding: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """What GPT-2 says after the CLAP embedding `[1, dim]` and the words `[1, T, E]`: `[1, 8, H]`."""
        projected = self.pipe.projection_model(
            hidden_states=embedding[:, None],  # [1, 1, dim]
            hidden_states_1=words,
            attention_mask=mask.new_ones(1, 1),
            attention_mask_1=mask,
        )
        return self.pipe.generate_language_model(projected.hidden_states, attention_mask=projected.attention_mask)

    @cached_property
    def words(self) -> tuple[Tensor, Tensor]:
        """T5's states `[1, T, E]` of the prompt, and their mask `[1, T]`."""
        return self._read(self.config.prompt, None)

    @cached_property
    def empty_words(self) -> tuple[Tensor, Tensor]:
        """The same of an empty text, padded to the same T."""
        return self._read("", self.words[1].shape[1])

    def _read(self, text: str, length: int | None) -> tuple[Tensor, Tensor]:
        tokenizer = self.pipe.tokenizer_2
        tokens = tokenizer(
            [text],
            padding="max_length" if length else False,
            max_length=length or tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.pipe.device)
        return self.pipe.text_encoder_2(**tokens)[0], tokens["attention_mask"]
