"""What dataset.decode_size=short_side saves, and what it changes.

    python benchmarks/decode_size.py FOLDER [--videos 40]

Takes so many videos from anywhere below FOLDER, drawn with a fixed seed, one clip of 16 frames from each, and prints by
height of the video: milliseconds of processor time on one thread to decode and to resize to 224 (the least of three,
the ways taking turns), MiB that a worker sends, and how far the views differ in grey levels. Then, for the videos that
were reduced, the tokens kept by x3d_s at 0.3 (bundled weights) that both ways keep, and how often videomae_tiny
(bundled weights), which reads 64 pixels, gives the same answer. The bundled networks know synthetic actions only: their
answers say nothing about these videos, but they differ where pixels make a difference.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any

import torch
from torch import Tensor

from video_papr.backbones.builders import build_backbone
from video_papr.core.errors import VideoDecodeError
from video_papr.core.types import TokenGrid
from video_papr.data.annotations.files import videos_below
from video_papr.data.decoding import decode_clips
from video_papr.data.sampling import dense_clips
from video_papr.data.transforms import reduced_size, resize_and_crop
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.map_pruner import MapPruner

SIZE, ANSWER_SIZE, REPEATS = 224, 64, 3
GRID = TokenGrid(8, 14, 14)
SCORER: dict[str, Any] = {"weights": "x3d_s_synthetic", "size": 96, "stage": "res4", "align_corners": False}


def decode(path: Path, size: int, small: bool) -> Tensor:
    """(1, T, H, W, 3) uint8."""
    sampler = partial(dense_clips, num_frames=16, frame_stride=4, num_clips=1)
    reduce = partial(reduced_size, size=size) if small else None
    return torch.from_numpy(decode_clips(path, sampler, reduce=reduce).frames)


def take_turns(calls: list[Callable[[], Any]]) -> tuple[list[float], list[Any]]:
    """The least milliseconds of each call, and what it returned."""
    least, made = [float("inf")] * len(calls), [None] * len(calls)
    for _ in range(REPEATS):
        for place, call in enumerate(calls):
            start = process_time()
            made[place] = call()
            least[place] = min(least[place], 1000 * (process_time() - start))
    return least, made


def measure(path: Path) -> dict[str, Any]:
    """Figures of one video, each as (full, short_side)."""
    ms, frames = take_turns([partial(decode, path, SIZE, small) for small in (False, True)])
    resize, views = take_turns([partial(resize_and_crop, each, size=SIZE) for each in frames])
    gap = (views[0].int() - views[1].int()).abs().float()
    return {
        "height": frames[0].shape[2],
        "reduced": frames[0].shape != frames[1].shape,
        "ms": [one + two for one, two in zip(ms, resize, strict=True)],
        "mib": [each.numel() / 2**20 for each in frames],
        "gap": [gap.mean().item(), gap.max().item()],
        "views": views,
    }


@torch.inference_mode()
def compare(pruner: MapPruner, flow: Pipeline, path: Path, views: list[Tensor]) -> tuple[float, bool]:
    """Share of kept tokens that agree, and whether the answers do."""
    kept = [pruner.choose(pruner.scorer(each, GRID)).mask() for each in views]
    small = [resize_and_crop(decode(path, ANSWER_SIZE, way), size=ANSWER_SIZE) for way in (False, True)]
    answers = [flow(each).argmax().item() for each in small]
    return (kept[0] & kept[1]).sum().item() / kept[0].sum().item(), answers[0] == answers[1]


def main() -> None:
    asked = argparse.ArgumentParser(description="What dataset.decode_size=short_side saves and changes.")
    asked.add_argument("folder", type=Path)
    asked.add_argument("--videos", type=int, default=40)
    given = asked.parse_args()
    torch.set_num_threads(1)
    paths = sorted(videos_below(given.folder))
    random.Random(0).shuffle(paths)
    pruner = build_pruner("x3d_s", keep_ratio=0.3, **SCORER)
    assert isinstance(pruner, MapPruner)
    flow = Pipeline(build_backbone("videomae_tiny", weights="videomae_tiny_synthetic"), pruner)
    rows, overlaps, same = [], [], []
    for path in paths[: given.videos]:
        try:
            rows.append(measure(path))
        except VideoDecodeError as error:
            print(f"left out: {error}")
            continue
        views = rows[-1].pop("views")
        if rows[-1]["reduced"]:
            overlap, answer = compare(pruner, flow, path, views)
            overlaps.append(overlap)
            same.append(answer)
    print("height  videos  reduced  ms full  ms short_side  MiB full  MiB short_side  mean gap  largest gap")
    for height in sorted({row["height"] for row in rows}):
        own = [row for row in rows if row["height"] == height]
        mean = {
            key: [fmean(pair) for pair in zip(*(row[key] for row in own), strict=True)]
            for key in ("ms", "mib", "gap")
        }
        cells = [
            f"{height:6}  {len(own):6}  {sum(row['reduced'] for row in own):7}",
            f"{mean['ms'][0]:7.1f}  {mean['ms'][1]:13.1f}  {mean['mib'][0]:8.1f}  {mean['mib'][1]:14.1f}",
            f"{mean['gap'][0]:8.2f}  {max(row['gap'][1] for row in own):11.0f}",
        ]
        print("  ".join(cells))
    if same:
        print(
            f"{len(same)} reduced: both ways keep {100 * fmean(overlaps):.2f} % of the same tokens (least: "
            f"{100 * min(overlaps):.1f} %); the same answer to {100 * fmean(same):.1f} %"
        )


if __name__ == "__main__":
    main()
