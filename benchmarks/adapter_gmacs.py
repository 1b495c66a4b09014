"""What `video_papr.prune` saves on transformers' VideoMAE-B, counted by torch's FLOP counter.

    python benchmarks/adapter_gmacs.py

Prints GMACs per clip: the model as it is, the same model pruned to 30 % of its tokens, and X3D-S, which chooses them.
Weights are random; they change no count. Needs transformers.
"""

from __future__ import annotations

import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import video_papr as vp
from video_papr.benchmark.flops import count_gmacs
from video_papr.core.types import TokenGrid
from video_papr.pruning.scorers.x3d import X3DScorer


def main() -> None:
    model = VideoMAEForVideoClassification(
        VideoMAEConfig(use_mean_pooling=True, attn_implementation="sdpa")
    ).eval()
    pixels = torch.zeros(1, 16, 3, 224, 224)
    scorer = X3DScorer(frames=8, size=160).eval()
    frames = torch.zeros(1, 16, 224, 224, 3, dtype=torch.uint8)
    with torch.inference_mode():
        print(f"dense   {count_gmacs(lambda: model(pixels)):6.1f}")
        vp.prune(model, pruner="center", keep_ratio=0.3)  # a rule costs nothing, so this is the model alone
        print(f"pruned  {count_gmacs(lambda: model(pixels)):6.1f}")
        print(f"X3D-S   {count_gmacs(lambda: scorer(frames, TokenGrid(8, 14, 14))):6.1f}")


if __name__ == "__main__":
    main()
