"""mmrec: raw media and a log of likes to recommendations and creations."""

__version__ = "0.1.0"
