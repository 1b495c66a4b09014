"""The time of the bundled pair, pruned in depth and in tokens: what docs/depth_results.md puts beside the accuracy.

    python benchmarks/joint_latency.py --backbones FILE ... --scorers FILE ... [--batch 8] [--repeats 15]

Prints milliseconds per clip (medians) from uint8 frames to logits, on all cores: one line for each backbone and scorer,
the bundled ones first, then the files that tools/depth_prune.py has left; one column for each keep ratio of x3d_s, and
one without token pruning. All take turns in one process.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from torch import nn

from video_papr.backbones.builders import build_backbone
from video_papr.benchmark.clips import synthetic_clips
from video_papr.benchmark.timing import alternate, spread
from video_papr.benchmark.variants import build_variants
from video_papr.evaluation.results import describe_device

KEEP = (0.2, 0.3, 0.5)
# What conf/dataset/synthetic.yaml asks of the bundled X3D-S.
SCORER: dict[str, Any] = {"size": 96, "stage": "res4", "align_corners": False, "cell_center": 0.0}


def build(backbones: list[str], scorers: list[str]) -> dict[tuple[str, str, float], nn.Module]:
    """(backbone, scorer, keep ratio) -> pipeline; without token pruning the scorer is "" and the ratio 1."""
    flows: dict[tuple[str, str, float], nn.Module] = {}
    for name in ["videomae_tiny_synthetic", *backbones]:
        net = build_backbone("videomae_tiny", weights=name)
        for scorer in ["x3d_s_synthetic", *scorers]:
            pruners = [("x3d_s", {"weights": scorer, **SCORER})]
            for variant in build_variants(net, None, pruners=pruners, keep_ratios=KEEP):
                keep = variant.settings.get("keep_ratio", 1.0)
                flows[name, scorer if keep < 1 else "", keep] = variant.flow
    return flows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--scorers", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    flows = build(options.backbones, options.scorers)
    device = torch.device("cpu")
    clips = synthetic_clips(build_backbone("videomae_tiny"), options.batch)
    calls = {str(key): partial(flow, clips) for key, flow in flows.items()}
    times = alternate(calls, device, repeats=options.repeats)
    print(f"batches of {options.batch}, on {describe_device(device)}\n")
    print(f"| backbone | scorer | {' | '.join(f'keep {keep}' for keep in KEEP)} | no token pruning |")
    print("|---|---|" + "---:|" * (len(KEEP) + 1))
    for name, scorer in dict.fromkeys((name, scorer) for name, scorer, _ in flows if scorer):
        keys = [*((name, scorer, keep) for keep in KEEP), (name, "", 1.0)]
        cells = [f"{spread(times[str(key)])['median'] / options.batch:.1f}" for key in keys]
        print(f"| {name} | {scorer} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
