"""Fits the bundled pixel rule: logistic regression on the statistics of tubelets, actor or not, on training videos.

    python benchmarks/fit_pixel_rule.py --videos 480 --out video_papr/weights/pixel_rule_synthetic.safetensors

It reads the split train, seed 0, as the bundled backbone sees it, and prints how much of the actor the rule keeps at 30
per cent of the tokens, on the videos that it was fitted on and on the split val. It needs scikit-learn.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from video_papr.backbones.builders import clip_size, token_grid
from video_papr.checkpoints.files import write_weights
from video_papr.data.datasets import VideoDataset, build_video_list
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import uniform_segments
from video_papr.data.transforms import resize_and_crop
from video_papr.pruning.scorers.pixel_rule import tubelet_statistics
from video_papr.synthetic.scenes import VERSION
from video_papr.synthetic.tracks import actor_tokens, in_view
from video_papr.synthetic.videos import SyntheticSplit, generate, read_actors

BACKBONE = "videomae_tiny"


def read_split(split: str, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Statistics (n, N, 2 F) and whether the actor is there (n, N) of every tubelet of a split."""
    root = generate(SyntheticSplit(split, num_videos=videos))
    frames, size = clip_size(BACKBONE)
    dataset = VideoDataset(
        build_video_list(name="folder", root=root), partial(uniform_segments, num_frames=frames, num_clips=1)
    )
    tracks, grid, rows, marks = read_actors(root), token_grid(BACKBONE), [], []
    for batch in iter_samples(dataset, videos_per_batch=8, workers=1):
        for sample in batch:
            if sample.frames is None or sample.frame_indices is None:
                raise SystemExit(f"{sample.name}: {sample.error}")
            view = resize_and_crop(sample.frames, size=size)
            rows.append(tubelet_statistics(view, grid)[0].flatten(1).T.numpy())
            track = in_view(tracks[sample.name][sample.frame_indices[0]], tuple(sample.frames.shape[2:4]))
            marks.append(actor_tokens(track, grid).flatten().numpy())
    return np.stack(rows), np.stack(marks)


def kept_share(rows: np.ndarray, marks: np.ndarray, weight: np.ndarray, keep: float = 0.3) -> float:
    """The share of the actors' tokens among the best `keep` of every clip."""
    best = np.argsort(-(rows @ weight), axis=1)[:, : int(keep * rows.shape[1])]
    return float(np.take_along_axis(marks, best, 1).sum() / marks.sum())


def main() -> None:
    from sklearn.linear_model import LogisticRegression

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--videos", type=int, default=480, help="training videos; half as many for validation"
    )
    parser.add_argument("--out", type=Path, required=True, help="file for the weights")
    options = parser.parse_args()
    rows, marks = read_split("train", options.videos)
    std = rows.std((0, 1)) + 1e-8
    model = LogisticRegression(max_iter=1000).fit((rows / std).reshape(-1, len(std)), marks.ravel())
    weight = model.coef_[0] / std
    held_out = kept_share(*read_split("val", options.videos // 2), weight)
    print(
        f"actor's tokens kept at 0.3: {kept_share(rows, marks, weight):.3f} fitted, {held_out:.3f} held out"
    )
    described = {
        "model": "pixel_rule",
        "generator_version": VERSION,
        "videos": options.videos,
        "kept_at_0.3": round(held_out, 3),
    }
    state = {"weight": torch.from_numpy(weight).float()}
    write_weights(options.out, state, described, half=False)


if __name__ == "__main__":
    main()
