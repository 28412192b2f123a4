"""Groups of commands that are too large for `mmrec/cli.py`."""
