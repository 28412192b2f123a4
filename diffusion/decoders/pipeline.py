"""What the decoders over published pipelines of diffusers share: where the weights are, when they load, whose noise.

A decoder is made from its config alone, so that a foreign space is refused before gigabytes are read; the pipeline
loads when the first item is decoded. Items are decoded one by one, each with its own generator: a network's numbers
change in the last bits with the size of the batch, and an item must not depend on its neighbours. Weights are read from
safetensors only, and no code that comes with them is run.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.decoders.base import check_embeddings, check_references, mix


@dataclass(frozen=True)
class PipelineConfig:
    """Which pipeline, which embeddings it reads, how it samples.

    `model` is a hub repository or a folder with `model_index.json`; `space` is what the encoder of the embeddings calls
    its space, `dim` their length. `guidance` 1 means none. `length` is given to every embedding before it is decoded
    (None: it stays as it is). `variant` picks files of the hub ("fp16" halves the download where there are any).
    """

    model: str
    space: str
    dim: int
    steps: int
    guidance: float
    length: float | None = None
    variant: str | None = None


class PipelineDecoder:
    """A decoder is its config until the first item; a subclass says how to load, measure and run its pipeline."""

    name: str
    media: str
    config_class: type[PipelineConfig]
    places: tuple[str, ...] = ("model",)  # fields of the config that name a repository or a folder
    several = False  # whether the pipeline attends to several embeddings; otherwise references are mixed into the one

    def __init__(self, config: PipelineConfig | None = None) -> None:
        self.config: Any = config or self.config_class()  # type: ignore[call-arg]  # subclasses have defaults
        self.space, self.dim = self.config.space, self.config.dim
        for place in self.places:
            where = getattr(self.config, place)
            if where and Path(where).is_absolute() and not Path(where).is_dir():
                raise FileNotFoundError(f"{self.name}: {place} {where} is no folder; give one or a hub repository")

    @classmethod
    def from_pretrained(cls, which: str | Path | None = None) -> Any:
        """`which` is a folder that holds a config.json of this decoder, or a pipeline: a folder or a hub repository.

        In config.json any field of the config may be set; folders are relative to it. None: the hub's usual pipeline.
        Raises `ValueError` for a config.json of something else and `FileNotFoundError` for a folder that is not there.
        """
        if which is None:
            return cls()
        file = Path(which) / "config.json"
        if not file.is_file():
            return cls(replace(cls.config_class(), model=str(which)))  # type: ignore[call-arg]
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored.pop("decoder", None) != cls.name:
            raise ValueError(f'{file} is no config of this decoder: it must say "decoder": "{cls.name}"')
        known = {field.name for field in fields(cls.config_class)}
        if unknown := sorted(stored.keys() - known):
            raise ValueError(f"{file}: unknown {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        for place in cls.places:
            if stored.get(place) and (Path(which) / stored[place]).is_dir():
                stored[place] = str((Path(which) / stored[place]).resolve())
        return cls(cls.config_class(**stored))

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json, which `from_pretrained` and `load_decoder` read; the pipeline stays where it is."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        stored = {"decoder": self.name, **asdict(self.config)}
        for place in self.places:
            if stored[place] and Path(stored[place]).is_dir():
                stored[place] = str(Path(stored[place]).resolve())
        temporary = folder / ".config.json.tmp"
        temporary.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "config.json")

    def decode(
        self, embeddings: np.ndarray, *, seed: int = 0, first: int = 0, references: np.ndarray | None = None
    ) -> list[Any]:
        """A picture or clip for each of `embeddings` float32 `[n, dim]`; item i depends on (row i, seed, first + i).

        The first call loads the pipeline: `FileNotFoundError` where it is not to be had, `ValueError` where it reads
        embeddings of another length than the config says.
        """
        values = check_embeddings(embeddings, self.dim, self.name)
        guides = check_references(references, len(values), self.dim, self.name)
        if not self.several:
            values, guides = mix(values, guides), guides[:, :0]
        read = np.concatenate([values[:, None], guides], axis=1)  # [n, 1 + K, dim]
        if self.config.length is not None:
            norms = np.linalg.norm(read, axis=2, keepdims=True)
            read = read * (self.config.length / np.maximum(norms, 1e-12))
        return [self._decode(rows, seed, first + i) for i, rows in enumerate(read)]

    def _decode(self, rows: np.ndarray, seed: int, index: int) -> Any:
        state = np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state))  # of the CPU: the same noise on every device
        with torch.no_grad():
            return self.run(torch.tensor(rows).to(self.pipe.device, self.pipe.dtype), generator)

    @cached_property
    def pipe(self) -> Any:
        """The loaded pipeline, on the device that accelerate picks; half precision on CUDA."""
        from accelerate import PartialState

        device = PartialState().device
        options = {"use_safetensors": True, "trust_remote_code": False, "variant": self.config.variant}
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            pipe = self.load({**options, "dtype": dtype}).to(device, dtype)
        except OSError as error:
            raise FileNotFoundError(
                f"{self.name}: {self.config.model!r} could not be loaded ({error}); "
                "give a folder that holds the pipeline as safetensors, or let this machine reach the hub once"
            ) from error
        pipe.set_progress_bar_config(disable=True)
        if (reads := self.reads(pipe)) != self.dim:
            raise ValueError(
                f"{self.name}: {self.config.model} reads embeddings of length {reads}, its config says {self.dim}: "
                "set dim and space to those of the encoder it was trained with"
            )
        return pipe

    def load(self, options: dict[str, Any]) -> Any:
        """The pipeline, loaded with these options of `from_pretrained`."""
        raise NotImplementedError

    def reads(self, pipe: Any) -> int:
        """The length of the embeddings that the pipeline's own weights read."""
        raise NotImplementedError

    def run(self, embedding: Tensor, generator: torch.Generator) -> Any:
        """One item from one embedding `[1, dim]`; references follow in further rows where there are `several`."""
        raise NotImplementedError
