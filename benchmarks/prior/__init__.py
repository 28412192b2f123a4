"""The proof of the diffusion prior on real people: `python -m benchmarks.prior` (see docs/prior.md)."""
