"""What limits pruners that keep a tenth of the tokens: the map, or the backbone?

    python benchmarks/limit_of_maps.py [--videos 600]

Keeps the same number of tokens of the same synthetic validation videos by X3D's map at two stages and by the actor
itself, which the generator knows (its tokens come first, the rest follows the map); each with and without a share of
ground, which lies evenly whatever the map says (`pruner.ground`). Prints how much top-1 each loses against all tokens,
in points with the paired standard error, and the share of the actor's tokens that it keeps. Bundled weights, fp32, on
the CPU. What the third column still loses, no better map would win back.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from video_papr.backbones.builders import build_backbone
from video_papr.core.types import TokenSelection
from video_papr.data.decoding import decode_clips
from video_papr.data.sampling import uniform_segments
from video_papr.data.transforms import resize_and_crop
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.channels_last import use_channels_last
from video_papr.pruning.scorers.fusion import standardize
from video_papr.pruning.select import select_tokens
from video_papr.synthetic.tracks import actor_tokens, in_view
from video_papr.synthetic.videos import SyntheticSplit, generate, read_actors

KEEP_RATIOS = (0.1, 0.15, 0.2, 0.3)
GROUND = 0.3  # as in conf/pruner/papr_plus.yaml
BATCH = 50
ABOVE_ANY_MAP = 100.0  # maps have mean 0 and deviation 1


def load(pipeline: Pipeline, num_videos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clips (V, T, S, S, 3) uint8, labels (V,), and the actor's tokens (V, T', H', W') bool."""
    backbone = pipeline.backbone
    root = generate(SyntheticSplit("val", num_videos=num_videos))
    actors = read_actors(root)
    choose = partial(uniform_segments, num_frames=backbone.num_frames, num_clips=1)
    clips, labels, tracks = [], [], []
    assert backbone.class_names is not None
    for name in tqdm(sorted(actors), desc="decoding", unit="video"):
        decoded = decode_clips(root / name, choose)
        frames = torch.from_numpy(decoded.frames)
        clips.append(resize_and_crop(frames, size=backbone.frame_size))
        labels.append(backbone.class_names.index(name.split("/")[0]))
        tracks.append(in_view(actors[name][decoded.frame_indices[0]], (frames.shape[2], frames.shape[3])))
    return torch.cat(clips), torch.tensor(labels), actor_tokens(torch.stack(tracks), backbone.grid)


@torch.inference_mode()
def stage_map(pipeline: Pipeline, clips: Tensor, stage: str) -> Tensor:
    """X3D-S's map at a stage, standardised, (V, T', H', W')."""
    pruner = use_channels_last(
        build_pruner(
            "x3d_s",
            weights="x3d_s_synthetic",
            stage=stage,
            frames=8,
            size=96,
            align_corners=False,
            cell_center=0.0,
        )
    )
    batches = tqdm(clips.split(BATCH), desc=f"scoring, {stage}", unit="batch")
    return standardize(torch.cat([pruner.scorer(batch, pipeline.backbone.grid) for batch in batches]))


@torch.inference_mode()
def right(pipeline: Pipeline, clips: Tensor, labels: Tensor, selection: TokenSelection | None) -> Tensor:
    """(V,) float: 1 where the answer is right."""
    answers = []
    for rows in torch.arange(len(clips)).split(BATCH):
        own = None if selection is None else selection.rows(rows)
        answers.append(pipeline.classify(clips[rows], own).argmax(1))
    return (torch.cat(answers) == labels).float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=600)
    num_videos = parser.parse_args().videos
    pipeline = Pipeline(build_backbone("videomae_tiny", weights="videomae_tiny_synthetic")).eval()
    clips, labels, actor = load(pipeline, num_videos)
    early, late = (stage_map(pipeline, clips, stage) for stage in ("res3", "res4"))
    known = early + ABOVE_ANY_MAP * actor
    variants = {
        "`res3`": (early, 0.0),
        "`res4`": (late, 0.0),
        "the actor, then `res3`": (known, 0.0),
        "`res3`, ground": (early, GROUND),
        "`res4`, ground": (late, GROUND),
        "the actor, ground, then `res3`": (known, GROUND),
    }
    whole = right(pipeline, clips, labels, None)
    print(f"\n{num_videos} videos, {100 * whole.mean():.2f} % right with all tokens,", end=" ")
    print(f"of which the actor has {100 * actor.float().mean():.1f} %\n")
    print(f"| keep | {' | '.join(variants)} |\n|---|{'---|' * len(variants)}")
    for ratio in KEEP_RATIOS:
        cells = []
        for scores, ground in variants.values():
            selection = select_tokens(scores, keep_ratio=ratio, uniform_share=ground)
            lost = 100 * (whole - right(pipeline, clips, labels, selection))
            share = 100 * selection.mask()[actor].float().mean()
            cells.append(f"{lost.mean():.2f} ± {lost.std() / num_videos**0.5:.2f} ({share:.0f} %)")
        print(f"| {ratio} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
