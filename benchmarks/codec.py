"""What `pruner=codec` keeps of the actor, and what accuracy it leaves, beside rules that cost as little.

    python benchmarks/codec.py [--videos 200] [--seed 10] [--keep 0.3]     # -> benchmarks/results/codec/synthetic.json

Synthetic videos of the validation split (a development seed: no published figure uses it), as written and encoded
again with other settings; the bundled backbone. Decoding differs from one encoding to the next, so every rule is run on
each of them, with the dense model.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import torch

import video_papr as vp
from video_papr.core.console import make_console
from video_papr.core.tables import Table
from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.evaluation.metrics import compare_paired
from video_papr.evaluation.observers import ExtraMetric, WithoutVectors
from video_papr.evaluation.results import command_line, describe_device, git_commit, to_json, versions
from video_papr.synthetic.oracle import actor_share
from video_papr.synthetic.scenes import ACTIONS
from video_papr.synthetic.videos import SyntheticSplit, generate, read_actors

OUT = Path(__file__).parent / "results" / "codec" / "synthetic.json"
ENCODINGS: dict[str, tuple[str, dict[str, str]] | None] = {
    "as written": None,
    "H.264, crf 18, gop 250": ("libx264", {"crf": "18", "g": "250"}),
    "H.264, crf 23, gop 12": ("libx264", {"crf": "23", "g": "12"}),
    "H.264, crf 23, gop 250": ("libx264", {"crf": "23", "g": "250"}),
    "H.264, crf 35, gop 12": ("libx264", {"crf": "35", "g": "12"}),
    "H.264, crf 35, gop 250": ("libx264", {"crf": "35", "g": "250"}),
    "MPEG-4, 500 kbit/s, gop 12": ("mpeg4", {"b": "500000", "g": "12"}),
    "HEVC, crf 28, gop 250": ("libx265", {"crf": "28", "g": "250", "x265-params": "log-level=none:pools=1"}),
}
PRUNERS = ("codec", "motion", "uniform", "random")


def encode(source: Path, target: Path, codec: str, options: dict[str, str]) -> None:
    """Decodes a video and encodes it anew."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video = old.streams.video[0]
        stream = new.add_stream(codec, rate=video.average_rate, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in old.decode(video):
            new.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24"))
            )
        new.mux(stream.encode())


def evaluate(videos: VideoList, tracks: dict[str, Any], pruner: str, keep: float) -> dict[str, Any]:
    """One pruner on one set of files."""
    backbone = vp.build_backbone("videomae_tiny", weights="videomae_tiny_synthetic")
    pipeline = vp.Pipeline(backbone, vp.build_pruner(pruner, keep_ratio=keep)).eval()
    metrics = [ExtraMetric("actor", partial(actor_share, tracks))]
    if pipeline.reads_motion:
        metrics.append(WithoutVectors())
    found = vp.evaluate(pipeline, videos, baseline=True, observers=metrics)
    labels = [answer.label for answer in found.answers]
    paired = compare_paired([a.baseline_top5 for a in found.answers], [a.top5 for a in found.answers], labels)
    known = {
        metric.name: [value for a in found.answers if (value := a.extra.get(metric.name)) is not None]
        for metric in metrics
    }
    return {
        "actor_tokens_kept": 100 * fmean(known["actor"]),
        "top1": found.top1,
        "dense_top1": found.accuracy(1, baseline=True),
        "loss_points": paired.loss_points,
        "loss_standard_error": paired.loss_standard_error,
        "failed": len(found.failed),
        "frames_without_vectors": fmean(known["frames_without_vectors"]) if pipeline.reads_motion else None,
    }


def main() -> None:
    asked = argparse.ArgumentParser(description="What pruner=codec keeps of the actor, by encoding.")
    asked.add_argument("--videos", type=int, default=200)
    asked.add_argument("--seed", type=int, default=10)
    asked.add_argument("--keep", type=float, default=0.3)
    given = asked.parse_args()
    root = generate(SyntheticSplit(split="val", seed=given.seed, num_videos=given.videos), workers=1)
    tracks, rows = read_actors(root), []
    with tempfile.TemporaryDirectory() as scratch:
        for encoding, how in ENCODINGS.items():
            records = []
            for path in sorted(root.glob("*/*.mp4")):
                name, copy = path.relative_to(root).as_posix(), path
                if how is not None:
                    copy = Path(scratch) / encoding / name
                    encode(path, copy, *how)
                records.append(VideoRecord(copy, ACTIONS.index(path.parent.name), name))
            videos = VideoList(tuple(records), tuple(ACTIONS))
            for pruner in PRUNERS:
                rows.append(
                    {"encoding": encoding, "pruner": pruner, **evaluate(videos, tracks, pruner, given.keep)}
                )
                print(rows[-1], flush=True)
    console = make_console()
    for figure in ("actor_tokens_kept", "loss_points"):
        cells = {(row["encoding"], row["pruner"]): f"{row[figure]:.1f}" for row in rows}
        body = [[name, *(cells[name, pruner] for pruner in PRUNERS)] for name in ENCODINGS]
        Table([figure, *PRUNERS], body).print(console)
    made = {"command": command_line(), "git_commit": git_commit(), "versions": versions()}
    settings = {"videos": given.videos, "split": "val", "seed": given.seed, "keep_ratio": given.keep}
    device = describe_device(torch.device("cpu"))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(to_json({**settings, "rows": rows, "device": device, **made}))


if __name__ == "__main__":
    main()
