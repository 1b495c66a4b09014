"""Synthetic action videos on disk: real H.264 files, made once and cached, with the place of the actor beside them.

A split lives in `CACHE/synthetic/<key>/`, one directory per action, where the key names everything that decides its
content. It is written to a temporary directory and renamed when complete, so a killed generator leaves no half split.

The same split, seed and index always give the same scene; the splits never share a random stream.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import ConfigError
from ..core.paths import default_cache_dir
from ..data.sampling import uniform_segments
from ..data.transforms import resize_and_crop
from . import drawing, scenes
from .tracks import TRACK

SPLIT_STREAMS = {"train": 1, "val": 2, "test": 3}
ACTORS_FILE = "actors.npz"
# x264's macroblock tree (mbtree) together with B-frames gives other bytes, and pixels up to 65 grey levels apart, from
# one run to the next on the same frames and machine; without it the bytes are reproducible. One thread, too.
ENCODER = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}


@dataclass(frozen=True)
class SyntheticSplit:
    """What decides the content of a split."""

    split: str = "test"  # "train", "val" or "test"; each has its own random stream for every seed
    seed: int = 0  # another seed is another, equally distributed split
    num_videos: int = 600  # classes are balanced to within one video
    clutter: float = 1.0  # 0 (quiet) to 1 (the full task); see `scenes.sample_scene`
    camera: str = "mixed"  # "mixed" (the default), "calm" or "shaky": the same scenes under another camera

    def __post_init__(self) -> None:
        if self.split not in SPLIT_STREAMS:
            raise ConfigError(
                f"dataset.split={self.split!r} is unknown; use one of {', '.join(SPLIT_STREAMS)}"
            )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"dataset.seed={self.seed!r} must be an integer >= 0")
        if not isinstance(self.num_videos, int) or self.num_videos < 1:
            raise ConfigError(f"dataset.num_videos={self.num_videos!r} must be an integer >= 1")
        if not 0 <= self.clutter <= 1:
            raise ConfigError(f"dataset.clutter={self.clutter!r} must lie between 0 and 1")
        if self.camera not in scenes.CAMERAS:
            raise ConfigError(
                f"dataset.camera={self.camera!r} is unknown; use one of {', '.join(scenes.CAMERAS)}"
            )

    @property
    def key(self) -> str:
        """A directory name that changes whenever the content would."""
        sources = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (scenes, drawing)]
        drawn = "".join(map(statements, sources)) + repr((ENCODER, TRACK))
        digest = hashlib.sha256(drawn.encode()).hexdigest()[:8]
        return (
            f"{self.split}-seed{self.seed}-n{self.num_videos}-clutter{self.clutter:g}-{self.camera}-{digest}"
        )


def statements(source: str) -> str:
    """What a module does: its text without comments, docstrings and layout, so that only a change of these counts."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return ast.unparse(tree)


def render_clips(
    count: int, *, num_frames: int, size: int | tuple[int, int], rng: np.random.Generator
) -> Tensor:
    """Draws `count` clips without a file, one action after the other: (count, num_frames, *size, 3) uint8."""
    clips = []
    for number in range(count):
        action = scenes.ACTIONS[number % len(scenes.ACTIONS)]
        frames, _ = drawing.render(scenes.sample_scene(rng, action), rng)
        chosen = uniform_segments(len(frames), num_frames=num_frames, num_clips=1)
        clips.append(resize_and_crop(torch.from_numpy(frames[chosen]), size=size))
    return torch.cat(clips)


def generate(
    split: SyntheticSplit, *, cache_dir: Path | None = None, workers: int | None = None, progress: bool = True
) -> Path:
    """Returns the root of a split (a class-per-directory dataset), writing it first if it is not cached.

    Args:
        split: what to generate.
        cache_dir: where splits are kept; `default_cache_dir()` when None.
        workers: processes; the number of processors when None. The files do not depend on it.
        progress: show a bar while writing.

    Raises:
        ConfigError: the cache directory cannot be written.
    """
    root = (cache_dir or default_cache_dir()) / "synthetic" / split.key
    if (root / ACTORS_FILE).is_file():
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        partial_root = Path(tempfile.mkdtemp(prefix=f".{split.key}-", dir=root.parent))
    except OSError as error:
        raise ConfigError(
            f"dataset.cache_dir={cache_dir or default_cache_dir()} cannot be written: {error}"
        ) from None
    try:
        _write_split(split, partial_root, workers or os.cpu_count() or 1, progress)
        _publish(partial_root, root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _publish(partial_root: Path, root: Path) -> None:
    """Renames a finished split into place; when another process was faster, its copy (the same) stays."""
    partial_root.chmod(0o755)
    try:
        partial_root.rename(root)
    except OSError:
        if not (root / ACTORS_FILE).is_file():
            raise


def _write_split(split: SyntheticSplit, root: Path, workers: int, progress: bool) -> None:
    for action in scenes.ACTIONS:
        (root / action).mkdir()
    jobs: Iterable[tuple[str, np.ndarray]]
    write = partial(_write_video, split, root)
    bar = partial(
        tqdm,
        total=split.num_videos,
        desc=f"synthetic {split.split} videos",
        unit="video",
        disable=not progress,
    )
    if workers == 1:
        actors = dict(bar(map(write, range(split.num_videos))))
    else:
        with ProcessPoolExecutor(workers) as pool:
            jobs = pool.map(write, range(split.num_videos), chunksize=8)
            actors = dict(bar(jobs))
    (root / "split.json").write_text(json.dumps(asdict(split), indent=2) + "\n")
    np.savez(root / ACTORS_FILE, **actors)


def _write_video(split: SyntheticSplit, root: Path, index: int) -> tuple[str, np.ndarray]:
    """Writes video `index`; returns its name relative to the root and the track of its actor (T, 5) in pixels."""
    rng = np.random.default_rng([SPLIT_STREAMS[split.split], split.seed, index])
    action = scenes.ACTIONS[index % len(scenes.ACTIONS)]
    scene = scenes.sample_scene(rng, action, clutter=split.clutter, camera=split.camera)
    frames, circles = drawing.render(scene, rng)
    name = f"{action}/{index:05d}.mp4"
    write_h264(root / name, frames, fps=scene.fps)
    path = scene.shapes[-1].path
    return name, np.column_stack([circles, path.angle, path.visible]).astype(np.float32)


def write_h264(path: Path, frames: np.ndarray, *, fps: int) -> None:
    """Writes frames (T, H, W, 3) uint8 with even H and W as an H.264 mp4; the bytes are reproducible, see `ENCODER`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(ENCODER))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_actors(root: Path) -> dict[str, np.ndarray]:
    """The actors of a split: video name relative to the root -> track (frames, 5) float32 in pixels, see `tracks`."""
    with np.load(root / ACTORS_FILE, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
