"""Descriptors that people read must say what is true of a sound whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from encoders.audio import PITCHES, LibrosaEncoder, explain_audio
from encoders.media import Waveform

RATE = 22_050


def tones(frequencies: list[float], seconds: float = 4.0, rate: int = RATE) -> Waveform:
    t = np.arange(int(seconds * rate)) / rate
    return Waveform((0.2 * sum(np.sin(2 * np.pi * f * t) for f in frequencies)).astype(np.float32), rate)


def clicks(bpm: float, seconds: float = 10.0) -> Waveform:
    samples = np.random.default_rng(0).normal(0, 1e-3, int(seconds * RATE)).astype(np.float32)
    for beat in np.arange(0, seconds - 0.1, 60 / bpm):
        start = int(beat * RATE)
        samples[start : start + 400] += 0.8 * np.exp(-np.arange(400) / 80)
    return Waveform(samples, RATE)


@pytest.mark.parametrize("bpm", [72, 90, 100, 120, 140])
def test_tempo_of_clicks(bpm: float) -> None:
    assert explain_audio(clicks(bpm))["tempo"] == pytest.approx(bpm, rel=0.02)
    assert explain_audio(clicks(bpm))["onsets_per_second"] == pytest.approx(bpm / 60, rel=0.1)


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize(("mode", "steps"), [("major", [0, 4, 7, 12]), ("minor", [0, 3, 7, 12])])
def test_key_of_a_chord(tonic: int, mode: str, steps: list[int]) -> None:
    chord = tones([261.63 * 2 ** ((tonic + step) / 12) for step in steps], seconds=1.5)
    said = explain_audio(chord)
    assert (said["key"], said["mode"]) == (PITCHES[tonic], mode)


def test_key_of_music(music: Callable[[str], Waveform]) -> None:
    assert (explain_audio(music("violin"))["key"], explain_audio(music("violin"))["mode"]) == ("G", "major")
    assert explain_audio(music("piano"))["key"] == "C"


def test_brightness_noise_and_loudness_have_their_order() -> None:
    low, high = explain_audio(tones([200.0])), explain_audio(tones([4000.0]))
    assert low["brightness"] == pytest.approx(200, abs=60)
    assert high["brightness"] == pytest.approx(4000, rel=0.05)
    noise = explain_audio(Waveform(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE))
    assert float(noise["noisiness"]) > 0.3 > float(low["noisiness"])
    quiet = explain_audio(Waveform(tones([440.0]).samples * 0.1, RATE))
    assert float(explain_audio(tones([440.0]))["loudness"]) - float(quiet["loudness"]) == pytest.approx(20, abs=0.5)


def test_silence_and_a_single_sample_are_described_too() -> None:
    for samples in (np.zeros(RATE), np.ones(1)):
        said = explain_audio(Waveform(samples.astype(np.float32), RATE))
        assert said["tempo"] == 0
        assert all(isinstance(value, str) or np.isfinite(value) for value in said.values())


def test_the_rate_of_the_file_hardly_matters() -> None:
    chord = [261.6, 329.6, 392.0]
    one, other = (LibrosaEncoder().encode([tones(chord, rate=rate)], "audio")[0] for rate in (22_050, 44_100))
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.98
