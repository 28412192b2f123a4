"""OpenCLIP (Radford et al. 2021; Cherti et al. 2023): pictures and words in one space, with any of its models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.base import BatchedEncoder, fingerprint, resolve_device

if TYPE_CHECKING:
    import torch


class OpenClip(BatchedEncoder):
    """`which` is one of

    - `ViT-B-32/laion2b_s34b_b79k`: a model and a set of weights from `open_clip.list_pretrained()`;
    - `ViT-B-32//data/my.safetensors` (or a relative path that exists): a model and a checkpoint file;
    - `hf-hub:org/name`: a repository of the hub;
    - `/data/my-model`: a folder with `open_clip_config.json` and weights.

    Raises FileNotFoundError for weights that are not there and cannot be fetched.
    """

    modalities = frozenset({"text", "image"})

    def __init__(self, which: str, device: str | None = None) -> None:
        import open_clip

        self.name = f"open_clip:{which}"
        self.device = resolve_device(device)
        if which.startswith("hf-hub:"):
            model, weights, self.space = which, None, self.name
        elif Path(which).is_dir():
            model, weights = f"local-dir:{which}", None
            self.space = f"open_clip:{fingerprint(Path(which))}"
        else:
            model, _, pretrained = which.partition("/")
            weights = pretrained or None
            if weights is None or model not in open_clip.list_models():
                raise FileNotFoundError(
                    f"{self.name!r}: neither a folder nor <model>/<pretrained> with a model that open_clip knows; "
                    "see open_clip.list_pretrained()"
                )
            local = Path(weights).is_file()
            self.space = f"open_clip:{model}/{fingerprint(Path(weights))}" if local else self.name
        try:
            self.model, self.preprocess = open_clip.create_model_from_pretrained(model, weights)
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(f"{self.name!r}: the weights could not be loaded ({error})") from error
        self.model.eval().to(self.device)
        self.tokenizer: Any = open_clip.get_tokenizer(model)
        self.dim = int(self._text([""]).shape[1])

    def encode_batch(self, items: list[Any], modality: str) -> torch.Tensor:
        import torch

        if modality == "text":
            return self._text(items)
        pixels = torch.stack([self.preprocess(image.convert("RGB")) for image in items])  # [B, 3, H, W]
        return self.model.encode_image(pixels.to(self.device))

    def _text(self, texts: list[str]) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(texts).to(self.device))  # cut at the context length
