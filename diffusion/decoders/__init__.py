"""Decoders: embeddings to pictures and music. One file a decoder, one contract (`base.MediaDecoder`)."""

from diffusion.decoders.base import Clip, MediaDecoder, SpaceMismatch, decoder_names, load_decoder

__all__ = ["Clip", "MediaDecoder", "SpaceMismatch", "decoder_names", "load_decoder"]
