"""mmrec: raw media and a log of likes to recommendations and creations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrec.recommender import Recommender as Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Recommender":
        from mmrec.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'mmrec' has no attribute {name!r}")
