"""Sound to vectors: MusiCNN's learned features, and librosa's descriptors, which a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from encoders.base import BatchedEncoder, Item, check_items, resample, resolve_device
from encoders.media import Waveform

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(__file__).parent / "weights" / "musicnn_mtt.safetensors"
PATCHES_AT_ONCE = 8


class MusiCNNEncoder(BatchedEncoder):
    """200 numbers per clip: the penultimate layer averaged over its 3-second patches."""

    name = "musicnn"
    space = "musicnn_mtt"
    dim = 200
    modalities = frozenset({"audio"})
    batch_size = 8

    def __init__(self, device: str | None = None) -> None:
        from safetensors.torch import load_file

        from encoders.musicnn import MusiCNN

        self.device = resolve_device(device)
        self.model = MusiCNN()
        self.model.load_state_dict(load_file(WEIGHTS))
        self.model.eval().to(self.device)

    def encode_batch(self, items: list[Waveform], modality: str) -> torch.Tensor:
        return self._per_clip(items)[0]

    def tag(self, waveforms: Sequence[Waveform]) -> np.ndarray:
        """[n, 50] probabilities of encoders.musicnn.TAGS, averaged over patches as the authors do."""
        import torch

        check_items(self.name, self.modalities, waveforms, "audio")
        with torch.inference_mode():
            parts = [self._per_clip([waveform])[1] for waveform in waveforms]
        return torch.cat(parts).float().cpu().numpy() if parts else np.zeros((0, 50), np.float32)

    def top_tags(self, waveform: Waveform, k: int = 5) -> list[str]:
        """The k likeliest tags, likeliest first."""
        from encoders.musicnn import TAGS

        return [TAGS[tag] for tag in np.argsort(-self.tag([waveform])[0], kind="stable")[:k]]

    def _per_clip(self, clips: list[Waveform]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        from encoders.musicnn import RATE, log_mel, patches

        with torch.autocast(self.device.type, enabled=False):  # powers of a loud sound overflow half precision
            split = [patches(log_mel(torch.from_numpy(resample(clip, RATE)).float().to(self.device))) for clip in clips]
        outputs = [self.model(chunk) for chunk in torch.cat(split).split(PATCHES_AT_ONCE)]
        features = torch.cat([feature for feature, _ in outputs])
        tags = torch.cat([logits.sigmoid() for _, logits in outputs])
        counts = [len(clip) for clip in split]
        return (
            torch.stack([part.mean(0) for part in features.split(counts)]),
            torch.stack([part.mean(0) for part in tags.split(counts)]),
        )


RATE = 22_050
N_FFT, HOP = 2048, 512
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# How well each pitch fits a key, from C upwards (Krumhansl & Kessler 1982, probe-tone ratings)
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


class LibrosaEncoder:
    """81 numbers per clip, each a descriptor with a name: pitch, timbre, loudness and rhythm.

    In order: chroma (12), chroma turned so that the key comes first (12), fit to the best major and minor key (2), MFCC
    mean (20) and spread (20), spectral contrast (7), brightness and its spread (2), bandwidth and noisiness (2),
    loudness and its spread (2), tempo in octaves around 120 and strength of onsets (2). Each is scaled by a fixed
    number so that none rules a cosine.
    """

    name = "librosa"
    space = "librosa"
    dim = 81
    modalities = frozenset({"audio"})

    def encode(self, items: Sequence[Item], modality: str) -> np.ndarray:
        """[n, 81] float32."""
        check_items(self.name, self.modalities, items, modality)
        rows = [_Descriptors(item).vector() for item in items if isinstance(item, Waveform)]
        return np.stack(rows).astype(np.float32) if rows else np.zeros((0, self.dim), np.float32)


def explain_audio(waveform: Waveform) -> dict[str, float | str]:
    """What the sound is like, in words and plain units.

    Keys: tempo (beats per minute), key ("C" ... "B"), mode ("major" or "minor"), key_confidence (-1 to 1),
    brightness (Hz, the spectrum's centre of mass), noisiness (0 pure tones to 1 white noise), loudness (dB below full
    scale), dynamics (dB between loud and quiet moments), onsets_per_second, seconds.
    """
    return _Descriptors(waveform).words()


class _Descriptors:
    """Everything is computed from one spectrogram."""

    def __init__(self, waveform: Waveform) -> None:
        import librosa

        samples = resample(waveform, RATE)
        if len(samples) < N_FFT:
            samples = np.pad(samples, (0, N_FFT - len(samples)))
        self.seconds = waveform.seconds
        magnitude = np.abs(librosa.stft(samples, n_fft=N_FFT, hop_length=HOP))  # [1025, T]
        power = magnitude**2
        mel = librosa.feature.melspectrogram(S=power, sr=RATE, n_mels=64)
        decibel = librosa.power_to_db(mel, ref=1.0, top_db=None)
        self.mfcc = librosa.feature.mfcc(S=np.maximum(decibel, decibel.max() - 80), n_mfcc=20)  # [20, T]
        self.contrast = librosa.feature.spectral_contrast(S=magnitude, sr=RATE)  # [7, T]
        self.centroid = librosa.feature.spectral_centroid(S=magnitude + 1e-10, sr=RATE)[0]
        self.bandwidth = librosa.feature.spectral_bandwidth(S=magnitude + 1e-10, sr=RATE)[0]
        self.flatness = librosa.feature.spectral_flatness(S=magnitude)[0]
        self.loudness = 20 * np.log10(np.maximum(librosa.feature.rms(S=magnitude, frame_length=N_FFT)[0], 1e-5))
        chroma = librosa.feature.chroma_stft(S=power, sr=RATE, tuning=0.0, norm=None)  # [12, T]
        total = chroma.sum(axis=1)
        self.chroma = total / max(float(np.linalg.norm(total)), 1e-10)
        rise = np.maximum(np.diff(np.maximum(decibel, decibel.max() - 80), axis=1, prepend=decibel[:, :1]), 0)
        self.onset = rise.mean(axis=0)  # [T]
        fits = np.array([[_correlate(self.chroma, np.roll(p, k)) for k in range(12)] for p in (MAJOR, MINOR)])
        self.fits = fits  # [2, 12]
        self.mode, self.key = (int(i) for i in np.unravel_index(fits.argmax(), fits.shape))
        self.tempo = self._tempo()

    def _tempo(self) -> float:
        """The lag at which the onsets best repeat, with the usual preference for tempi near 120 (Ellis 2007)."""
        centred = self.onset - self.onset.mean()
        if len(centred) < 16 or not centred.any():
            return 0.0
        spectrum = np.fft.rfft(centred, 2 * len(centred))
        autocorrelation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(centred)]
        lags = np.arange(1, len(centred) - 1)
        bpm = 60 * RATE / HOP / lags
        prior = np.exp(-0.5 * np.log2(bpm / 120) ** 2)
        prior[(bpm < 40) | (bpm > 240)] = 0
        strength = np.maximum(autocorrelation[1:-1], 0) * prior
        best = int(strength.argmax())
        if not strength[best]:
            return 0.0
        before, peak, after = autocorrelation[best], autocorrelation[best + 1], autocorrelation[best + 2]
        bend = before - 2 * peak + after
        shift = 0.5 * (before - after) / bend if bend < 0 else 0.0  # the peak lies between frames
        return float(60 * RATE / HOP / (best + 1 + np.clip(shift, -0.5, 0.5)))

    def onsets(self) -> float:
        import librosa

        peaks = librosa.util.peak_pick(
            self.onset, pre_max=2, post_max=2, pre_avg=4, post_avg=5, delta=0.5 * self.onset.std() + 0.1, wait=2
        )
        return len(peaks) / self.seconds

    def words(self) -> dict[str, float | str]:
        return {
            "tempo": round(self.tempo, 1),
            "key": PITCHES[self.key],
            "mode": ("major", "minor")[self.mode],
            "key_confidence": round(float(self.fits[self.mode, self.key]), 3),
            "brightness": round(float(self.centroid.mean()), 1),
            "noisiness": round(float(self.flatness.mean()), 4),
            "loudness": round(float(self.loudness.mean()), 1),
            "dynamics": round(float(np.percentile(self.loudness, 95) - np.percentile(self.loudness, 5)), 1),
            "onsets_per_second": round(self.onsets(), 2),
            "seconds": round(self.seconds, 2),
        }

    def vector(self) -> np.ndarray:
        octaves = np.log2(self.tempo / 120) if self.tempo else 0.0
        brightness = np.log2(self.centroid / 2000)
        parts = [
            self.chroma,
            np.roll(self.chroma, -self.key),
            self.fits.max(axis=1),
            self.mfcc.mean(axis=1) / 100,
            self.mfcc.std(axis=1) / 50,
            self.contrast.mean(axis=1) / 30,
            [brightness.mean() / 2, brightness.std()],
            [np.log2(self.bandwidth.mean() / 2000 + 1e-6) / 4, np.log10(self.flatness.mean() + 1e-6) / 6],
            [self.loudness.mean() / 50, self.loudness.std() / 20],
            [octaves, self.onset.mean() / 5],
        ]
        return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def _correlate(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-10))
