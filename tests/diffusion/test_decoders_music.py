import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.decoders.base import MediaDecoder, SpaceMismatch, load_decoder
from diffusion.decoders.builtin_music import BuiltinMusicDecoder, MusicDecoderConfig, draw
from diffusion.decoders.music_training import MusicTrainingConfig, load_pairs, train_music_decoder
from diffusion.decoders.score import (
    CHORD_SLOTS,
    HARMONIC_BACKS,
    METRES,
    MODES,
    TAIL_SECONDS,
    TOKEN,
    VOCABULARY,
    Grammar,
    Score,
    decode_score,
    encode_score,
    render,
    step_features,
    to_midi,
)
from diffusion.fidelity import presentable

SPACE, DIM = "tiny", 6
TINY = MusicTrainingConfig(
    decoder=MusicDecoderConfig(space=SPACE, dim=DIM, width=32, layers=1, heads=2, prefix=2),
    steps=6,
    batch=4,
    save_every=2,
)


def random_score(seed: int) -> Score:
    """Sample a score from random logits, as an untrained decoder would."""
    rng, grammar = np.random.default_rng(seed), Grammar()
    while not grammar.done:
        logits = rng.normal(0, 3, len(VOCABULARY))
        grammar.push(draw(np.where(grammar.allowed(cadence=True), logits, -np.inf), 0.95, rng))
    return grammar.score()


def reel(lead: str = "fiddle", **changes: object) -> Score:
    line = tuple((62 + step, 6) for step in (0, 2, 4, 5, 7, 5, 4, 2)) * 8
    score = Score("reel", lead, "guitar", "4/4", TOKEN_TEMPO, 8, 2, "major", (line,), ((0, 4), (7, 4)) * 8)
    return replace(score, **changes)  # type: ignore[arg-type]


TOKEN_TEMPO = next(value for kind, value in VOCABULARY if kind == "tempo" and 180 < value < 220)  # type: ignore[operator]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_every_sequence_the_grammar_allows_is_a_whole_score(seed: int) -> None:
    score = random_score(seed)
    assert all(sum(ticks for _, ticks in line) == score.ticks for line in score.voices)
    slots = score.ticks // CHORD_SLOTS[score.metre] if score.back in HARMONIC_BACKS else 0
    assert len(score.chords) == slots
    assert all(0 <= pitch <= 127 for line in score.voices for pitch, _ in line if pitch is not None)
    closing, third = score.voices[0][-1][0], 4 if 4 in MODES[score.mode] else 3
    assert closing is not None
    assert (closing - score.tonic) % 12 in (0, third, 7)
    assert decode_score(encode_score(score)) == score


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_every_sequence_the_grammar_allows_can_be_heard(seed: int) -> None:
    clip = render(to_midi(random_score(seed)))
    assert 6 <= clip.seconds <= 15
    assert clip.samples.dtype == np.float32
    assert 0.5 < np.abs(clip.samples).max() < 1
    assert np.sqrt(np.mean(clip.samples[: clip.rate * 6] ** 2)) > 0.005
    assert abs(clip.samples[-1]) < 1e-3


def test_midi_holds_the_notes_of_the_score() -> None:
    score = reel()
    midi = pretty_midi.PrettyMIDI(io.BytesIO(to_midi(score)))
    melody, backing = midi.instruments[:2]
    assert melody.program == 40
    assert [note.pitch for note in melody.notes] == [pitch for pitch, _ in score.voices[0]]
    assert melody.notes[8].start == pytest.approx(48 * 60 / score.tempo / 12, abs=2e-3)
    assert backing.program == 24
    assert score.seconds < midi.get_end_time() < score.seconds + 2


def test_a_transposed_tune_is_spelled_with_the_same_notes() -> None:
    low = reel(chords=(), back="none")
    high = replace(low, tonic=4, voices=(tuple((p + 2, t) for p, t in low.voices[0] if p is not None),))
    a, b = encode_score(low), encode_score(high)
    assert [VOCABULARY[i][0] for i in a[a != b]] == ["tonic"]


def test_features_count_the_bars_down() -> None:
    score = reel()
    rows = step_features(encode_score(score))
    body = rows[9:]
    assert body[0].tolist() == [Grammar.CHORD_SLOT, 1, 8, 0]
    assert body[-1][2] == 1
    assert (np.diff(body[:, 2]) <= 0).all()
    assert (rows < np.array(Grammar.FEATURES)).all()


def test_what_breaks_the_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="family is due"):
        decode_score([TOKEN["rest", None]])
    with pytest.raises(ValueError, match="not finished"):
        decode_score(encode_score(reel())[:-1])
    with pytest.raises(ValueError, match="the end is due"):
        decode_score([*encode_score(reel()), TOKEN["rest", None]])
    with pytest.raises(ValueError, match="lead 'kazoo'"):
        encode_score(reel("kazoo"))
    with pytest.raises(ValueError, match="past the end"):
        decode_score([*encode_score(reel())[:-1], TOKEN["duration", 48], TOKEN["pitch", 0]])


def test_draw_takes_only_from_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.05, 0.6, 0.35]))
    drawn = np.bincount([draw(logits, 0.9, rng) for _ in range(2000)], minlength=3) / 2000
    assert drawn[0] == 0
    assert drawn[1] == pytest.approx(0.6 / 0.95, abs=0.04)


@pytest.fixture(scope="module")
def pairs() -> tuple[list[Score], np.ndarray]:
    return [random_score(seed) for seed in range(10)], np.random.default_rng(1).normal(size=(10, DIM)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def decoder(pairs: tuple[list[Score], np.ndarray]) -> BuiltinMusicDecoder:
    return train_music_decoder(*pairs, TINY, seed=3)


def test_contract(decoder: BuiltinMusicDecoder, pairs: tuple[list[Score], np.ndarray], tmp_path: Path) -> None:
    assert isinstance(decoder, MediaDecoder)
    embeddings = pairs[1][:4]
    scores = decoder.write(embeddings, seed=5)
    assert decoder.write(embeddings, seed=5) == scores
    assert decoder.write(embeddings, seed=6) != scores
    assert decoder.write(embeddings[2:], seed=5, first=2) == scores[2:]
    assert len({score.voices for score in decoder.write(embeddings[[0, 0]], seed=5)}) == 2
    assert decoder.decode(embeddings[:0]) == []
    clip = decoder.decode(embeddings[:1], seed=5)[0]
    assert clip.midi == to_midi(scores[0])
    np.testing.assert_array_equal(clip.samples, render(clip.midi).samples)
    with pytest.raises(ValueError, match=r"\[n, 6\], got \[2, 5\]"):
        decoder.decode(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="embedding 1 holds a NaN"):
        decoder.decode(np.array([[0.0] * 6, [np.nan] * 6], np.float32))

    decoder.save_pretrained(tmp_path)
    assert load_decoder(tmp_path, SPACE).write(embeddings, seed=5) == scores  # type: ignore[attr-defined]
    with pytest.raises(SpaceMismatch):
        load_decoder(tmp_path, "another space")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_decoder(tmp_path, SPACE)


def test_a_killed_training_resumes_to_the_same_weights(
    decoder: BuiltinMusicDecoder, pairs: tuple[list[Score], np.ndarray], tmp_path: Path
) -> None:
    def stop_at_5(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_music_decoder(*pairs, TINY, seed=3, checkpoint_dir=tmp_path, progress=stop_at_5)
    seen: list[int] = []
    resumed = train_music_decoder(
        *pairs, TINY, seed=3, checkpoint_dir=tmp_path, progress=lambda done, total: seen.append(done)
    )
    assert seen == [5, 6]
    for name, value in decoder.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    with pytest.raises(ValueError, match="another folder"):
        train_music_decoder(*pairs, TINY, seed=4, checkpoint_dir=tmp_path)


def test_the_decoder_learns_what_an_embedding_sounds_like() -> None:
    rng = np.random.default_rng(0)
    kinds = [reel("fiddle"), reel("harp", family="jig", metre="6/8", voices=(((62, 18),) * 16,), chords=((0, 4),) * 16)]
    centres = rng.normal(size=(2, DIM))
    labels = np.arange(40) % 2
    embeddings = (centres[labels] + 0.1 * rng.normal(size=(40, DIM))).astype(np.float32)
    config = replace(TINY, steps=120, batch=8, rate=5e-3)
    decoder = train_music_decoder([kinds[i] for i in labels], embeddings, config)
    made = decoder.write((centres[labels[:10]]).astype(np.float32), seed=1)
    assert np.mean([score.lead == kinds[i].lead for score, i in zip(made, labels, strict=False)]) >= 0.9
    assert np.mean([score.metre == kinds[i].metre for score, i in zip(made, labels, strict=False)]) >= 0.9


def test_pairs_are_read_back_and_must_fit(pairs: tuple[list[Score], np.ndarray], tmp_path: Path) -> None:
    tokens = [encode_score(score) for score in pairs[0][:3]]
    np.savez(
        tmp_path / "a.npz", tokens=np.concatenate(tokens), lengths=[len(t) for t in tokens], embeddings=pairs[1][:3]
    )
    scores, embeddings = load_pairs(tmp_path)
    assert scores == pairs[0][:3]
    np.testing.assert_array_equal(embeddings, pairs[1][:3])
    with pytest.raises(FileNotFoundError, match="music_pairs"):
        load_pairs(tmp_path / "nothing")
    with pytest.raises(ValueError, match="10 scores and 3 embeddings"):
        train_music_decoder(pairs[0], embeddings, TINY)


def test_shipped_weights() -> None:
    decoder = load_decoder("builtin_music", "musicnn_mtt")
    size = sum(
        path.stat().st_size for path in Path(load_pairs.__code__.co_filename).parent.glob("weights/builtin_music/*")
    )
    assert size < 6_000_000
    mean = decoder.network.mean.numpy()  # type: ignore[attr-defined]
    scale = decoder.network.scale.numpy()  # type: ignore[attr-defined]
    embeddings = (mean + scale * np.random.default_rng(0).normal(size=(4, 200))).astype(np.float32)
    clips = decoder.decode(embeddings, seed=0)
    assert all(6 <= clip.seconds <= 15 for clip in clips)
    assert all(0.5 < np.abs(clip.samples).max() < 1 for clip in clips)
    assert len({clip.midi for clip in clips}) == 4
    scores = decoder.write(embeddings, seed=0)  # type: ignore[attr-defined]
    steps = [(pitch - score.tonic) % 12 for score in scores for pitch, _ in score.voices[0] if pitch is not None]
    in_scale = [step in MODES[score.mode] for score in scores for step in steps]
    assert np.mean(in_scale) > 0.75
    assert all(METRES[score.metre] for score in scores)


def test_shipped_weights_play_what_one_can_listen_to() -> None:
    decoder = load_decoder("builtin_music", "musicnn_mtt")
    mean = decoder.network.mean.numpy()  # type: ignore[attr-defined]
    scale = decoder.network.scale.numpy()  # type: ignore[attr-defined]
    embeddings = (mean + scale * np.random.default_rng(1).normal(size=(6, 200))).astype(np.float32)
    for clip, score in zip(decoder.decode(embeddings, seed=2), decoder.write(embeddings, seed=2), strict=True):  # type: ignore[attr-defined]
        assert presentable(clip)
        assert (np.abs(clip.samples) >= 0.999).sum() == 0, "clipped"
        body = clip.samples[: -int(TAIL_SECONDS * clip.rate)]
        loud = np.sqrt(np.mean(body**2))
        assert 0.02 < loud < 0.4
        assert abs(body.mean()) < 0.02, "an offset is heard as a click"
        windows = body[: len(body) // clip.rate * clip.rate].reshape(-1, clip.rate)  # seconds
        assert (np.sqrt((windows**2).mean(1)) > 0.02 * loud).all(), "a second of silence"
        melody = [pitch for pitch, _ in score.voices[0] if pitch is not None]
        assert len(melody) >= 6
        assert len(set(melody)) >= 3, "one note again and again"
        assert all(33 <= pitch <= 100 for voice in score.voices for pitch, _ in voice if pitch is not None)
        leaps = np.abs(np.diff(melody))
        assert np.mean(leaps <= 12) > 0.9, "leaps beyond an octave are rare"
        assert np.median(leaps) <= 5


def test_training_can_begin_with_a_decoder(decoder: BuiltinMusicDecoder, pairs: tuple[list[Score], np.ndarray]) -> None:
    still = train_music_decoder(*pairs, replace(TINY, steps=1, rate=1e-9), start=decoder)
    for name, value in decoder.network.state_dict().items():
        torch.testing.assert_close(still.network.state_dict()[name], value, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="to start from"):
        train_music_decoder(*pairs, replace(TINY, decoder=replace(TINY.decoder, width=16)), start=decoder)
