"""Datasets: each module turns a source into a catalog and, where people are known, a log."""
