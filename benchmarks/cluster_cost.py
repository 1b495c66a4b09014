"""What `pruner.diversity=cluster` costs beside the O(N D) of mean similarity.

    python benchmarks/cluster_cost.py

Prints the median milliseconds of processor time per clip on one CPU thread, for 768 channels and the token grids of
VideoMAE-B (1568) and ViViT-B (3136). "patterns": 32 directions with noise; as in pictures, most tokens have near
neighbours. "noise": nobody is near to anybody, so that all tokens are kept: the slowest case.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from torch import Tensor

from video_papr.benchmark.flops import count_gmacs
from video_papr.pruning.scorers.token_similarity import mean_similarity, representatives

REPEATS = 5


def patterns(count: int) -> tuple[Tensor, Tensor, float]:
    """tokens (1, N, 768), significance (1, N), tau."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(32, 768, generator=generator)
    which = torch.randint(0, 32, (1, count), generator=generator)
    tokens = centres[which] + 0.2 * torch.randn(1, count, 768, generator=generator)
    return tokens, -mean_similarity(tokens), 0.9


def noise(count: int) -> tuple[Tensor, Tensor, float]:
    """tokens (1, N, 768), significance (1, N), tau."""
    tokens = torch.randn(1, count, 768, generator=torch.Generator().manual_seed(0))
    return tokens, -mean_similarity(tokens), 0.9


def milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = process_time()
        call()
        times.append(1000 * (process_time() - start))
    return median(times)


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{'tokens':>6}  {'features':<8}  {'mean similarity ms':>18}  {'cluster ms':>10}  {'GMACs':>6}  {'kept':>5}"
    )
    for count in (1568, 3136):
        for make in (patterns, noise):
            tokens, significance, tau = make(count)

            def plain(tokens: Tensor = tokens) -> Tensor:
                return mean_similarity(tokens)

            def cluster(
                tokens: Tensor = tokens, significance: Tensor = significance, tau: float = tau
            ) -> Tensor:
                kept = torch.zeros_like(significance, dtype=torch.bool)
                return representatives(tokens, significance, kept, tau=tau)

            kept, gmacs = int(cluster().sum()), count_gmacs(cluster)
            print(
                f"{count:>6}  {make.__name__:<8}  {milliseconds(plain):>18.1f}  {milliseconds(cluster):>10.1f}  "
                f"{gmacs:>6.2f}  {kept:>5}"
            )


if __name__ == "__main__":
    main()
