"""Why pruning costs accuracy on real pictures: how much is the map's part, and how much that of fewer tokens.

    python benchmarks/imagenette_study.py PROBE LITE0 --held-out DEV --unlabelled TRAIN --output FOLDER

PROBE is the file of a dense linear probe (`tools/train.py experiment=probe`), LITE0 the weights of EfficientNet-lite0,
DEV and TRAIN folders of training pictures, one folder a class, that share none. Every map keeps the same number of
tokens, and its features are read in three ways: as they are; moved by the difference between the means of dense and
pruned features of TRAIN, which needs no labels; and by a probe fitted on its own features of TRAIN, with labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from video_papr import Pipeline
from video_papr.assembly.compose import from_config
from video_papr.core.files import atomic_write
from video_papr.core.tables import Table
from video_papr.core.types import TokenGrid
from video_papr.evaluation.metrics import compare_paired
from video_papr.evaluation.results import command_line, describe_device, git_commit, versions
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.protocol import Pruner
from video_papr.pruning.scorers.fusion import standardize
from video_papr.pruning.scorers.image_convnet import build_image_scorer
from video_papr.training.probe import draw_folds, fit_probe

HEADER = ["map", "as it is", "mean moved", "probe fitted too"]
BATCH = 32


class LastAttention(nn.Module):
    """What the class token of the dense backbone attends to in its last block: the mean over the heads.

    Reads everything before it says what to drop, so it saves nothing: it is a bound for maps, not a pruner.
    """

    def __init__(self, dense: Pipeline) -> None:
        super().__init__()
        self.dense, self.attention = dense, dense.backbone.blocks[-1].attn
        self.seen: list[Tensor] = []  # the backbone takes a batch in groups
        self.attention.qkv.register_forward_hook(lambda _, __, out: self.seen.append(out))

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, 1, H, W, 3) uint8 -> (B, 1, H', W')."""
        self.seen.clear()
        self.dense(frames)
        heads = torch.cat(self.seen).float().unflatten(2, (3, self.attention.num_heads, -1))
        query, key = heads[:, :1, 0], heads[:, :, 1]
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * self.attention.scale
        prefix = self.dense.backbone.num_prefix
        return scores.float().softmax(-1).mean(1)[:, 0, prefix:].unflatten(1, grid.shape)


def fused(scorers: list[nn.Module]) -> Callable[[Tensor, TokenGrid], Tensor]:
    """The mean of several maps, each with mean 0 and deviation 1."""
    return lambda frames, grid: sum(standardize(scorer(frames, grid)) for scorer in scorers) / len(scorers)  # type: ignore[return-value]


def settings(dense: Pipeline, lite0: Path, keep_ratio: float) -> Iterator[tuple[str, Pruner | None]]:
    """Name -> pruner of everything that is compared; dense first."""
    network = {"model": "tf_efficientnet_lite0", "weights": lite0}
    usual: dict[str, Any] = {"keep_ratio": keep_ratio}

    def own(name: str, scorer: Any, **options: Any) -> Pruner | None:
        return build_pruner(name, scorer=lambda: scorer, **usual, **options)

    yield "dense", None
    yield "random", build_pruner("random", **usual)
    yield "center", build_pruner("center", **usual)
    yield "lite0", build_pruner("image_convnet", **network, **usual)
    yield (
        "lite0, a quarter evenly spaced",
        build_pruner("image_convnet", **network, uniform_share=0.25, **usual),
    )
    yield "lite0, cam", build_pruner("image_convnet", **network, recalibration="cam", **usual)
    cam = build_pruner("image_convnet", **network, recalibration="cam", uniform_share=0.25, **usual)
    yield "lite0, cam, a quarter evenly spaced", cam
    stages = [build_image_scorer(**network, stage=stage) for stage in ("blocks.4", None)]
    yield "lite0, stages blocks.4 and last", own("two_stages", fused(stages).__call__)
    yield "last attention of the dense model", own("attention", LastAttention(dense))


def read(folder: Path) -> tuple[Tensor, np.ndarray]:
    """Pictures (n, 1, H, W, 3) uint8 of a folder, and their labels (n,)."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted(name.iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    return torch.from_numpy(pixels)[:, None], np.array([label for _, label in files])


@torch.inference_mode()
def features(pipeline: Pipeline, frames: Tensor, name: str) -> Tensor:
    """frames (n, 1, H, W, 3) uint8 -> what the head reads, (n, F) float32."""
    headless = pipeline.with_backbone(head=nn.Identity())
    batches = tqdm(frames.split(BATCH), desc=name)
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([headless(batch).float() for batch in batches])


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Name of a map -> its loss against dense in points, with its standard error, by the way its features are read."""
    dense, _ = from_config(
        backbone={"name": "probe", "weights": str(args.probe)}, pruner="none", runtime={"engine": "torch"}
    )
    frames, labels = read(args.held_out)
    others, other_labels = read(args.unlabelled)
    folds = draw_folds(other_labels, None, 5, seed=0)
    found: dict[str, Any] = {}
    base: list[int] = []
    means: Tensor | None = None
    for name, pruner in settings(dense, args.lite0, args.keep_ratio):
        pipeline = Pipeline(dense.backbone, pruner).eval()
        held_out, known = features(pipeline, frames, name), features(pipeline, others, f"{name}, unlabelled")
        means = known.mean(0) if means is None else means
        fitted = fit_probe(known.double().numpy(), other_labels, folds, progress=False)
        read_by = {
            "as it is": dense.backbone.head(held_out),
            "mean moved": dense.backbone.head(held_out + means - known.mean(0)),
            "probe fitted too": held_out @ fitted.weight.T + fitted.bias,
        }
        answers = {way: logits.argmax(1).tolist() for way, logits in read_by.items()}
        base = base or answers["as it is"]
        found[name] = {}
        for way, classes in answers.items():
            compared = compare_paired([[x] for x in base], [[x] for x in classes], labels.tolist())
            found[name][way] = {"loss": compared.loss_points, "standard_error": compared.loss_standard_error}
        print(name, found[name], flush=True)
    return {"pictures": len(labels), "unlabelled": len(other_labels), "maps": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("probe", type=Path)
    parser.add_argument("lite0", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, required=True)
    parser.add_argument("--keep-ratio", type=float, default=0.3)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    results = study(args)
    rows = [
        [name, *(f"{ways[way]['loss']:.1f} ± {ways[way]['standard_error']:.1f}" for way in HEADER[1:])]
        for name, ways in results["maps"].items()
    ]
    results |= {"keep_ratio": args.keep_ratio, "command": command_line(), "git_commit": git_commit()}
    results |= {"device": describe_device(torch.device("cpu")), "versions": versions()}
    args.output.mkdir(parents=True, exist_ok=True)
    atomic_write(args.output / "study.json", json.dumps(results, indent=1))
    atomic_write(args.output / "study.md", Table(HEADER, rows).markdown() + "\n")


if __name__ == "__main__":
    main()
