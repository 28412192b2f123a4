"""Importing the package costs nothing: no torch, no librosa, until something is loaded."""

from __future__ import annotations

import subprocess
import sys


def test_imports_are_light() -> None:
    heavy = ["torch", "transformers", "librosa", "open_clip", "torchvision", "sklearn", "scipy", "soundfile"]
    modules = "encoders, encoders.registry, encoders.base, encoders.media, encoders.fusion, encoders.bridge"
    code = f"import sys, {modules}, encoders.audio, encoders.text; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
