"""How many clips of a batch a processor should run at a time: what docs/performance.md says of it.

    python benchmarks/side_by_side.py [--backbone videomae_s] [--dtype fp32] [--repeats 7]

Prints milliseconds per clip (medians) of a batch of 8, from uint8 frames to logits, on all cores: for the dense model,
and with x3d_s at keep 0.3. The columns are 8, 4, 2 and 1 clips at a time, and what the pipeline does by itself. All
take turns in one process. Weights are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from video_papr import pipeline as whole
from video_papr.assembly.runtime import DTYPES
from video_papr.backbones.builders import build_backbone
from video_papr.benchmark.clips import synthetic_clips
from video_papr.benchmark.timing import alternate, spread
from video_papr.benchmark.variants import build_variants
from video_papr.evaluation.results import describe_device
from video_papr.pruning.scorers import x3d

BATCH, GROUPS = 8, (8, 4, 2, 1)
OWN = "by itself"


def grouped(flow: whole.Pipeline, clips: Tensor, group: int) -> Callable[[], None]:
    """A call that runs the clips so many at a time, whatever the pipeline would do."""

    def call() -> None:
        limits = whole.SIDE_BY_SIDE, x3d.SIDE_BY_SIDE
        whole.SIDE_BY_SIDE = x3d.SIDE_BY_SIDE = 1 << 60
        for part in clips.split(group):
            flow(part)
        whole.SIDE_BY_SIDE, x3d.SIDE_BY_SIDE = limits

    return call


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="videomae_s")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    net, device = build_backbone(options.backbone), torch.device("cpu")
    clips, calls = synthetic_clips(net, BATCH), {}
    for variant in build_variants(net, None, pruners=[("x3d_s", {})], keep_ratios=[0.3]):
        flow = variant.flow.to(DTYPES[options.dtype])
        assert isinstance(flow, whole.Pipeline)
        for group in GROUPS:
            calls[f"{variant.name}/{group}"] = grouped(flow, clips, group)
        calls[f"{variant.name}/{OWN}"] = lambda flow=flow: flow(clips)
    times = alternate(calls, device, repeats=options.repeats)
    print(f"{options.backbone}, {options.dtype}, a batch of {BATCH}, on {describe_device(device)}\n")
    print(f"| ms per clip | {' | '.join(f'{group} at a time' for group in GROUPS)} | {OWN} |")
    print("|---|" + "---:|" * (len(GROUPS) + 1))
    for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in calls):
        cells = [
            f"{spread(times[f'{name}/{group}'])['median'] / BATCH:.1f}" for group in (*map(str, GROUPS), OWN)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
