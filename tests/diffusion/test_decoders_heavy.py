"""Every decoder over a published pipeline, really run: a tiny random pipeline of its class, read from disk."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    KandinskyV22Pipeline,
    MusicLDMPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from safetensors.torch import load_file, save_file
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2Model,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffusion.decoders import Clip, MediaDecoder, SpaceMismatch, load_decoder
from diffusion.decoders.base import DECODERS, _decoder_class

SPACE = "tiny"
HEAVY = {  # decoder -> (media, length of its embeddings)
    "kandinsky": ("image", 1280),
    "ip_adapter": ("image", 1024),
    "ip_adapter_sdxl": ("image", 1024),
    "unclip": ("image", 1024),
    "musicldm": ("audio", 512),
    "audioldm2": ("audio", 512),
}
LETTERS = [f"{a}{end}" for a in "abcdefghijklmnopqrstuvwxyz," for end in ("", "</w>")]


def unet(**changes):
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            **changes,
        }
    )


def vae(channels=3):
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )


def scheduler():
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def clip_tokenizer():
    vocab = {token: i for i, token in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def clip_text(kind=CLIPTextModel):
    config = CLIPTextConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=len(LETTERS),
        eos_token_id=len(LETTERS) + 1,
    )
    return kind(config).eval()


def clip_vision(projection_dim):
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=projection_dim,
    )
    return CLIPVisionModelWithProjection(config).eval()


def clap():
    """CLAP as the pipelines carry it: text and sound, 512 numbers."""
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghij", "Ġ"])}
    config = ClapConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 20,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "patch_embeds_hidden_size": 8,
            "hidden_size": 32,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "window_size": 4,
            "num_classes": 2,
        },
        projection_dim=512,
    )
    return {
        "text_encoder": ClapModel(config).eval(),
        "tokenizer": RobertaTokenizer(vocab=vocab, merges=[], model_max_length=16),
        "feature_extractor": ClapFeatureExtractor(
            feature_size=16, max_length_s=1, sampling_rate=8000, hop_length=125, truncation="rand_trunc"
        ),
    }


def vocoder():
    config = SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=8000,
        upsample_initial_channel=8,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    return SpeechT5HifiGan(config).eval()


def kandinsky(folder):
    movq = VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    network = unet(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=1280,
        encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    noise = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    KandinskyV22Pipeline(network, noise, movq).save_pretrained(folder)
    clip_vision(1280).save_pretrained(folder / "image_encoder")
    return {"image_encoder": ".", "size": 32}


def adapter(folder, network):
    """An IP-Adapter for this network: an image projection, and keys and values for each cross-attention."""
    width = network.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * width, 1024),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    place = 1  # adapters number the attentions of a network, and the cross-attentions are the odd ones
    for name in network.attn_processors:
        if name.endswith("attn2.processor"):
            attention = network.get_submodule(name.removesuffix(".processor"))
            for part in ("k", "v"):
                shape = getattr(attention, f"to_{part}").weight.shape
                tensors[f"ip_adapter.{place}.to_{part}_ip.weight"] = torch.randn(shape)
            place += 2
    (folder / "models").mkdir(parents=True)
    save_file(tensors, folder / "models" / "tiny.safetensors")
    return {"adapter": ".", "adapter_file": "models/tiny.safetensors"}


def ip_adapter(folder):
    network = unet()
    StableDiffusionPipeline(
        vae(), clip_text(), clip_tokenizer(), network, scheduler(), None, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return adapter(folder, network)


def ip_adapter_sdxl(folder):
    network = unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    StableDiffusionXLPipeline(
        vae(),
        clip_text(),
        clip_text(CLIPTextModelWithProjection),
        clip_tokenizer(),
        clip_tokenizer(),
        network,
        scheduler(),
    ).save_pretrained(folder)
    return adapter(folder, network)


def unclip(folder):
    StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(size=8, crop_size=8),
        image_encoder=clip_vision(1024),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=1024),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2048),
        scheduler=scheduler(),
        vae=vae(),
    ).save_pretrained(folder)
    return {"noise_level": 10}


def musicldm(folder):
    network = unet(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )
    MusicLDMPipeline(vae=vae(1), unet=network, scheduler=scheduler(), vocoder=vocoder(), **clap()).save_pretrained(
        folder
    )
    return {"seconds": 0.5}


def audioldm2(folder):
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in "▁abcdefghijklmnop")]
    tokenizer = T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=16)
    words = T5EncoderModel(T5Config(vocab_size=len(letters), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    language = GPT2Config(vocab_size=4, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    AudioLDM2Pipeline(
        vae=vae(1),
        text_encoder_2=words.eval(),
        tokenizer_2=tokenizer,
        projection_model=AudioLDM2ProjectionModel(512, 16, 16),
        language_model=GPT2Model(language).eval(),  # as published
        unet=AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=(16, 16),
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=scheduler(),
        vocoder=vocoder(),
        **clap(),
    ).save_pretrained(folder)
    return {"seconds": 0.5, "prompt": "a bad cafe"}


@pytest.fixture(scope="module", params=HEAVY)
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    """A decoder's name and the folder of its tiny pipeline, with the config.json that leads there."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    options = globals()[request.param](folder)
    config = {"decoder": request.param, "model": ".", "space": SPACE, "dim": HEAVY[request.param][1], "steps": 2}
    (folder / "config.json").write_text(json.dumps({**config, "guidance": 3.0, **options}))
    return request.param, folder


@pytest.fixture(scope="module")
def decoder(saved) -> MediaDecoder:
    return load_decoder(saved[1], SPACE)


@pytest.fixture(scope="module")
def embeddings(decoder) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, decoder.dim)).astype(np.float32)


@pytest.fixture(scope="module")
def made(decoder, embeddings) -> list:
    return list(decoder.decode(embeddings, seed=5))


def numbers(item) -> np.ndarray:
    return item.samples if isinstance(item, Clip) else np.asarray(item, dtype=np.float32)


def same(a, b) -> bool:
    return np.array_equal(numbers(a), numbers(b))


def test_every_heavy_decoder_is_tested():
    assert set(HEAVY) == {name for name in DECODERS if not name.startswith("builtin")}


@pytest.mark.parametrize("name", HEAVY)
def test_the_page_names_what_is_loaded_by_default(name):
    page = (Path(__file__).parents[2] / "docs" / "decoders.md").read_text(encoding="utf-8")
    config = _decoder_class(name).config_class()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert all(f"`{told}`" in row for told in (config.model, config.space))
    assert f"| {config.dim} |" in row


def test_makes_what_it_says(saved, decoder, made):
    name, _ = saved
    assert isinstance(decoder, MediaDecoder)
    assert (decoder.name, decoder.media, decoder.dim) == (name, *HEAVY[name])
    for item in made:
        assert np.isfinite(numbers(item)).all()
        assert numbers(item).std() > 0
        if decoder.media == "image":
            assert item.mode == "RGB"
        else:
            assert item.samples.dtype == np.float32
            assert np.abs(item.samples).max() <= 1
            assert (item.rate, item.seconds, item.midi) == (8000, 0.5, b"")


def test_the_embedding_matters(decoder, embeddings, made):
    again = decoder.decode(embeddings[[1, 0]], seed=5)  # the same noise, the embeddings exchanged
    assert not same(again[0], made[0])
    assert not same(again[1], made[1])


def test_batches_equal_singles(decoder, embeddings, made):
    for i in range(3):
        assert same(decoder.decode(embeddings[i : i + 1], seed=5, first=i)[0], made[i])


def test_a_seed_repeats_and_another_differs(decoder, embeddings, made, tmp_path):
    decoder.save_pretrained(tmp_path)
    again = load_decoder(tmp_path, SPACE)
    assert again.config == decoder.config
    assert same(again.decode(embeddings[:1], seed=5)[0], made[0])
    assert not same(again.decode(embeddings[:1], seed=6)[0], made[0])
    assert not same(again.decode(embeddings[:1], seed=5, first=1)[0], made[0])


def test_without_guidance(decoder, embeddings, made):
    alone = type(decoder)(replace(decoder.config, guidance=1.0))
    alone.pipe = decoder.pipe
    item = alone.decode(embeddings[:1], seed=5)[0]
    assert np.isfinite(numbers(item)).all()
    assert not same(item, made[0])


def test_length_is_given_to_every_embedding(decoder, embeddings, made):
    fixed = type(decoder)(replace(decoder.config, length=1.0))
    fixed.pipe = decoder.pipe
    short, long = fixed.decode(embeddings[:1], seed=5)[0], fixed.decode(embeddings[:1] * 4, seed=5)[0]
    np.testing.assert_allclose(numbers(short), numbers(long), atol=1e-3 if decoder.media == "audio" else 1)
    assert same(short, made[0]) == (decoder.media == "audio")  # CLAP's have length 1 anyway


def test_real_neighbours_guide_what_is_made(decoder, embeddings, made):
    references = np.random.default_rng(1).standard_normal((3, 2, decoder.dim)).astype(np.float32)
    guided = decoder.decode(embeddings, seed=5, references=references)
    assert not any(same(a, b) for a, b in zip(guided, made, strict=True))
    assert same(decoder.decode(embeddings[1:2], seed=5, first=1, references=references[1:2])[0], guided[1])
    others = decoder.decode(embeddings[:1], seed=5, references=references[1:2])
    assert not same(others[0], guided[0])
    assert same(decoder.decode(embeddings[:1], seed=5, references=references[:1, :0])[0], made[0])
    for wrong in (references[:2], references[:, :, 1:], references[0], references * np.nan):
        with pytest.raises(ValueError, match="references"):
            decoder.decode(embeddings, references=wrong)


def test_an_adapter_attends_to_each_reference_and_others_to_their_mean(saved, decoder, embeddings):
    references = np.random.default_rng(1).standard_normal((1, 2, decoder.dim)).astype(np.float32)
    mean = references.mean(axis=1, keepdims=True).repeat(2, axis=1)
    apart, merged = (decoder.decode(embeddings[:1], seed=5, references=r)[0] for r in (references, mean))
    assert same(apart, merged) != saved[0].startswith("ip_adapter")


def test_refuses_another_space_before_it_loads_anything(saved, tmp_path):
    name, folder = saved
    with pytest.raises(SpaceMismatch, match="minilm"):
        load_decoder(folder, "minilm")
    with pytest.raises(SpaceMismatch):
        load_decoder(name, SPACE)  # the hub's usual pipeline, of which nothing is here
    with pytest.raises(SpaceMismatch):
        load_decoder(f"{name}:some/repository", SPACE)


def test_refuses_embeddings_that_do_not_fit(decoder, embeddings):
    for wrong in (embeddings[0], embeddings[:, 1:], np.full_like(embeddings, np.nan)):
        with pytest.raises(ValueError, match=decoder.name):
            decoder.decode(wrong)


def test_refuses_a_pipeline_of_another_length(decoder):
    with pytest.raises(ValueError, match=f"length {decoder.dim}"):
        type(decoder)(replace(decoder.config, dim=7)).decode(np.ones((1, 7), np.float32))


def test_config_mistakes_are_told(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"decoder": "unclip", "model": "."}))
    with pytest.raises(ValueError, match=r"unclip|kandinsky"):
        load_decoder(f"kandinsky:{tmp_path}", SPACE)
    file.write_text(json.dumps({"decoder": "kandinsky", "stepz": 3}))
    with pytest.raises(ValueError, match="stepz"):
        load_decoder(tmp_path, SPACE)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_decoder(f"kandinsky:{tmp_path / 'absent'}", SPACE)


def test_a_pipeline_without_its_files_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"decoder": "kandinsky", "model": ".", "space": SPACE}))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_decoder(tmp_path, SPACE).decode(np.ones((1, 1280), np.float32))


def test_pickled_weights_are_not_read(tmp_path):
    torch.manual_seed(0)
    options = kandinsky(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    config = {"decoder": "kandinsky", "model": ".", "space": SPACE, "steps": 1, **options}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_decoder(tmp_path, SPACE).decode(np.ones((1, 1280), np.float32))


def test_pickled_adapters_are_not_read(tmp_path):
    config = {"decoder": "ip_adapter", "space": SPACE, "adapter_file": "models/ip-adapter_sd15.bin"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"only those|safetensors"):
        load_decoder(tmp_path, SPACE).decode(np.ones((1, 1024), np.float32))


def test_the_clap_of_a_pipeline_becomes_an_encoder(tmp_path):
    from encoders.registry import load_encoder

    torch.manual_seed(0)
    musicldm(tmp_path / "pipeline")
    decoder = load_decoder(f"musicldm:{tmp_path / 'pipeline'}", "clap:ucsd-reach/musicldm")
    decoder.save_encoder(tmp_path / "clap")
    encoder = load_encoder(f"clap:{tmp_path / 'clap'}", device="cpu")
    assert encoder.dim == decoder.dim
    np.testing.assert_allclose(encoder.encode([""], "text"), decoder.no_words.detach().cpu(), atol=1e-5)
    decoder.config = replace(decoder.config, space=encoder.space)
    decoder.save_pretrained(tmp_path / "decoder")
    assert load_decoder(tmp_path / "decoder", encoder.space).space == encoder.space
