"""mmrec: raw media and a log of likes to recommendations and creations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion.guidance import Dials as Dials
    from mmrec.recommender import Recommender as Recommender

__version__ = "0.1.0"
__all__ = ["Dials", "Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Recommender":
        from mmrec.recommender import Recommender

        return Recommender
    if name == "Dials":
        from diffusion.guidance import Dials

        return Dials
    raise AttributeError(f"module 'mmrec' has no attribute {name!r}")
