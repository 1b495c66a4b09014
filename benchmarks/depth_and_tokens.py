"""The time of depth pruning, of token pruning, and of both, where the scorer is a small part: VideoMAE-B.

    python benchmarks/depth_and_tokens.py [--dtype bf16] [--repeats 11] [--removed 3]

Prints, for the whole backbone and for one without some of its 12 blocks, with all tokens and with x3d_s at keep 0.3:
GMACs and milliseconds per clip (median and quartiles), and how many times as fast as the dense whole model it is. The
four take turns in one process. Weights are random, which changes no time; so this says nothing about accuracy.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn

from video_papr.assembly.runtime import DTYPES
from video_papr.backbones.builders import build_backbone
from video_papr.backbones.depth_pruned import REMOVED, WHOLE, depth_prune_backbone
from video_papr.benchmark.clips import synthetic_clips
from video_papr.benchmark.flops import count_gmacs
from video_papr.benchmark.suite import DENSE
from video_papr.benchmark.timing import alternate, ratios, spread
from video_papr.benchmark.variants import build_variants
from video_papr.evaluation.results import describe_device

BACKBONE, DEPTH, KEEP = "videomae_b", 12, 0.3


def variants(removed: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    """By blocks and tokens; the removed blocks lie at even distances."""
    gone = {DEPTH * place // removed for place in range(removed)}
    kinds = [REMOVED if block in gone else WHOLE for block in range(DEPTH)]
    found = {}
    for blocks, words in ((DEPTH, [WHOLE] * DEPTH), (DEPTH - removed, kinds)):
        backbone = build_backbone(BACKBONE)
        depth_prune_backbone(backbone, words)
        for variant in build_variants(backbone, None, pruners=[("x3d_s", {})], keep_ratios=[KEEP]):
            tokens = "all tokens" if variant.name == DENSE else variant.name
            found[f"{blocks} blocks, {tokens}"] = variant.flow.to(dtype)
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--removed", type=int, default=3, choices=range(1, DEPTH), metavar="1..11")
    options = parser.parse_args()
    flows = variants(options.removed, DTYPES[options.dtype])
    dense, *_ = flows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = synthetic_clips(build_backbone(BACKBONE), 1).to(device)
    calls = {name: partial(flow.to(device), clips) for name, flow in flows.items()}
    times = alternate(calls, device, repeats=options.repeats)
    print(f"{BACKBONE}, {options.dtype}, on {describe_device(device)}\n")
    print("| | GMACs | ms | times as fast |\n|---|---:|---:|---:|")
    for name, call in calls.items():
        ms, faster = spread(times[name]), ratios(times[dense], times[name])
        print(
            f"| {name} | {count_gmacs(call):.1f} | {ms['median']:.0f} ({ms['low']:.0f}-{ms['high']:.0f}) | "
            f"{faster['median']:.2f} ({faster['low']:.2f}-{faster['high']:.2f}) |"
        )


if __name__ == "__main__":
    main()
