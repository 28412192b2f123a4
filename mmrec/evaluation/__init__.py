"""Measuring recommenders: what they get right, whom they show, and how sure one can be of it."""
