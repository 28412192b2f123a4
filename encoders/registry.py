"""Encoders by name."""

from __future__ import annotations

from encoders.base import Encoder


def encoder_names() -> list[str]:
    """What `load_encoder` takes; the last two are patterns to fill in.

    >>> encoder_names()[:4]
    ['minilm', 'efficientnet_lite0', 'musicnn', 'librosa']
    """
    return [
        "minilm",
        "efficientnet_lite0",
        "musicnn",
        "librosa",
        "hashed_tags",
        "open_clip:<model>/<pretrained>",
        "clap:<path or hub name>",
    ]


def load_encoder(name: str, device: str | None = None) -> Encoder:
    """The encoder called `name`, its weights loaded on `device` (None: the best there is).

    Raises KeyError for an unknown name and FileNotFoundError or OSError for weights that are not there.
    """
    family, _, which = name.partition(":")
    if name == "minilm":
        from encoders.text import MiniLM

        return MiniLM(device)
    if name == "efficientnet_lite0":
        from encoders.image import EfficientNetLite0

        return EfficientNetLite0(device)
    if name == "musicnn":
        from encoders.audio import MusiCNNEncoder

        return MusiCNNEncoder(device)
    if name == "librosa":
        from encoders.audio import LibrosaEncoder

        return LibrosaEncoder()
    if name == "hashed_tags":
        from encoders.tags import HashedTags

        return HashedTags()
    if family == "open_clip" and which:
        from encoders.clip import OpenClip

        return OpenClip(which, device)
    if family == "clap" and which:
        from encoders.clap import Clap

        return Clap(which, device)
    raise KeyError(f"no encoder is called {name!r}; there are {', '.join(encoder_names())}")
