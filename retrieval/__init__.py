"""Vectors to semantic IDs to the next item; nearest neighbours and grounding."""
