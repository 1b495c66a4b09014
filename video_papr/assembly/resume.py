"""What makes two starts of an evaluation the same run: the part of the configuration, the videos and the weights that
decide about the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..config import EvalConfig
from ..core.console import warn
from ..data.annotations import VideoList
from ..evaluation.journal import Finished

# Keys that say where and how, not what: they may change when a run is resumed. With another batch size, probabilities
# may differ in their last digits; it may change because "out of memory" asks for that.
FREE = (
    *("output_dir", "resume", "progress"),
    *(f"runtime.{key}" for key in ("workers", "batch_size", "debug", "profile")),
    *(
        f"dataset.{key}"
        for key in ("cache_dir", "clip_cache", "clip_cache_gb", "decode_timeout_s", "memory_mb")
    ),
    "dataset.allow_outside_root",
    # read by interpolation only; what usual_sampling leads to is in `sampling`
    *(
        "dataset.bundled",
        "dataset.scorer",
        "dataset.usual_sampling",
        "backbone.published",
        "pruner.published",
    ),
)


def identity(
    config: EvalConfig, videos: VideoList, model: nn.Module, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns plain values by dotted key.

    Args:
        videos: with the labels that the answers are compared with.
        model: what answers; its weights count, wherever they come from.
        settings: what is known only at run time, such as the precision.
    """
    listed = [[record.name, record.label] for record in videos.records]
    text = json.dumps([listed, videos.missing, sorted(videos.unreadable)])
    return {
        **flat_keys(asdict(config), FREE),
        **settings,
        "list of videos": f"{len(videos)} + {len(videos.missing)} missing, {_short(text.encode())}",
        "weights": weights_digest(model),
    }


def weights_digest(model: nn.Module) -> str:
    """Returns twelve hexadecimal digits that depend on every parameter and buffer."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:12]


def flat_keys(values: Mapping[str, Any], free: Collection[str], prefix: str = "") -> dict[str, Any]:
    """The keys of a configuration and of its sections, joined by dots, without those in `free`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in free:
            continue
        if isinstance(value, Mapping) and prefix == "":
            flat.update(flat_keys(value, free, f"{key}."))
        else:
            flat[key] = value
    return flat


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def report(finished: Finished, total: int) -> None:
    """Says in one line each what an earlier session left, and what is different now."""
    done = len(finished.evaluation.answers)
    if finished.damaged:
        warn(
            f"{finished.damaged} damaged records of the journal are left out; their videos are evaluated again"
        )
    if finished.changed:
        warn(
            f"{finished.changed} answered videos have changed since, or others of their batch; they are evaluated again"
        )
    if not done:
        return
    rest = "nothing is left to do; resume=false starts over" if done >= total else f"{total - done} are left"
    warn(f"resumed: {done} of {total} videos were finished before, {rest}")
    now = finished.sessions[-1]
    for key in ("device", "git_commit", "versions"):
        if any(session["videos"] and session.get(key) != now.get(key) for session in finished.sessions[:-1]):
            warn(f"{key} differs from that of an earlier session; results.json lists both under sessions")
