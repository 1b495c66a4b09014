"""Makes a built pruner ready for inference."""

from __future__ import annotations

from .builders import Pruner
from .similarity import SimilarityPruner
from .x3d import X3DScorer, fold_norms


def speed_up(pruner: Pruner | SimilarityPruner | None) -> Pruner | SimilarityPruner | None:
    """Folds the batch norms of an X3D into its convolutions, in place. The map stays the same up to rounding."""
    if isinstance(pruner, Pruner) and isinstance(pruner.scorer, X3DScorer):
        fold_norms(pruner.scorer.trunk)
    return pruner
