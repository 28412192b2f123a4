"""Small real inputs: pictures, sounds and music rendered from notes."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.media import Waveform

SCALE = [67, 69, 71, 72, 74, 76, 78, 79, 78, 76, 74, 72, 71, 69, 67, 66] * 3
ARPEGGIO = ([60, 64, 67, 72, 76, 67, 72, 76] * 2 + [60, 62, 69, 74, 77, 69, 74, 77] * 2) * 2
CHORDS = [(60, 64, 67, 72), (65, 69, 72, 77), (67, 71, 74, 79), (60, 64, 67, 72)]

Notes = list[tuple[int, float, float]]  # pitch, start, end


def melody(pitches: list[int], step: float) -> Notes:
    return [(pitch, i * step, (i + 1) * step) for i, pitch in enumerate(pitches)]


def chords(shapes: list[tuple[int, ...]], step: float) -> Notes:
    return [(pitch, i * step, (i + 1) * step) for i, shape in enumerate(shapes) for pitch in shape]


def drums(step: float) -> Notes:
    hits: Notes = []
    for i in range(int(9 / step)):
        hits.append((42, i * step, i * step + 0.05))
        if i % 4 == 0:
            hits.append((36, i * step, i * step + 0.1))
        if i % 4 == 2:
            hits.append((38, i * step, i * step + 0.1))
    return hits


# name: [(General MIDI program, None for the drum kit; notes)]
PIECES: dict[str, list[tuple[int | None, Notes]]] = {
    "violin": [(40, melody(SCALE, 0.25))],
    "piano": [(0, melody(ARPEGGIO, 0.14))],
    "choir": [(52, chords(CHORDS * 2, 1.5))],
    "flute": [(73, melody(SCALE, 0.3))],
    "strings": [(48, chords(CHORDS * 2, 1.5))],
    "techno": [
        (81, melody([45, 45, 57, 45, 48, 45, 57, 52] * 10, 0.125)),
        (38, melody([33] * 70, 0.125)),
        (None, drums(0.125)),
    ],
    "rock": [
        (30, chords([(40, 47, 52), (43, 50, 55), (45, 52, 57), (40, 47, 52)] * 4, 0.6)),
        (34, melody([28] * 40, 0.25)),
        (None, drums(0.25)),
    ],
}


@cache
def render(name: str, seconds: float = 6.0) -> Waveform:
    """A piece of PIECES, played by the General MIDI soundfont that pretty_midi carries."""
    import midirenderer
    import pretty_midi
    import soundfile

    midi = pretty_midi.PrettyMIDI()
    for program, notes in PIECES[name]:
        instrument = pretty_midi.Instrument(program or 0, is_drum=program is None)
        instrument.notes = [pretty_midi.Note(90, pitch, start, end) for pitch, start, end in notes if start < seconds]
        midi.instruments.append(instrument)
    written = io.BytesIO()
    midi.write(written)
    soundfont = (Path(pretty_midi.__file__).parent / "TimGM6mb.sf2").read_bytes()
    wave = midirenderer.render_wave_from(soundfont, written.getvalue())
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)[: int(seconds * rate)]
    return Waveform(mono / np.abs(mono).max() * 0.8, rate)


@pytest.fixture(scope="session")
def music() -> Callable[[str], Waveform]:
    return render


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Five pictures of different shapes: noise, gradients, one pixel wide."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 90, dtype=np.uint8)
    return [
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)),
        Image.fromarray(np.stack([np.tile(ramp, (50, 1))] * 3, axis=2)),
        Image.new("RGB", (1, 300), "red"),
        Image.new("RGB", (300, 200), "navy"),
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)),
    ]
