"""Why pruning costs accuracy on real pictures: how much is the map's part, and how much that of fewer tokens.

    python benchmarks/imagenette_study.py PROBE LITE0 --held-out DEV --unlabelled TRAIN --output FOLDER

PROBE is the file of a dense linear probe (`tools/train.py experiment=probe`), LITE0 the weights of EfficientNet-lite0,
DEV and TRAIN folders of training pictures, one folder a class, that share none. Every map keeps the same number of
tokens, and its features are read in three ways: as they are; moved by the difference between the means of dense and
pruned features of TRAIN, which needs no labels; and by a probe fitted on its own features of TRAIN, with labels.
With --ways it compares other ways to drop by one map: the first blocks read all tokens, or what is dropped joins what
is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from video_papr.assembly.compose import from_config
from video_papr.core.files import atomic_write
from video_papr.core.tables import Table
from video_papr.core.types import TokenGrid, TokenSelection
from video_papr.evaluation.metrics import compare_paired
from video_papr.evaluation.results import command_line, describe_device, git_commit, versions
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.compensation import num_regions
from video_papr.pruning.protocol import Pruner
from video_papr.pruning.scorers.fusion import standardize
from video_papr.pruning.scorers.image_convnet import build_image_scorer
from video_papr.pruning.select import gather_tokens
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


class AfterBlocks(Pruner):
    """What another pruner keeps, dropped behind the first blocks of the backbone instead of before them."""

    def __init__(self, chooses: Pruner, block: int) -> None:
        super().__init__(chooses.spec, chooses.budget)
        self.chooses, self.after_blocks = chooses, (block,)

    def select(self, frames: Tensor, backbone: Any, **options: Any) -> TokenSelection:
        selection = self.chooses.select(frames, backbone, **options)
        tokens = backbone.encode(backbone.embed(backbone.normalize(frames)), stop=self.after_blocks[0])
        kept = gather_tokens(tokens, selection.keep_idx, num_prefix=backbone.num_prefix)
        return replace(selection, tokens=kept, block=self.after_blocks[0])


class JoinNearest(nn.Module):
    """A pipeline in which every dropped token joins the kept one that is most like it, as ToMe joins tokens.

    A kept token becomes the mean of its own, and counts in attention as often as there are tokens in it. Similarity is
    the cosine of what the first blocks have made of the tokens; without any, of embeddings without positions.
    """

    def __init__(self, pipeline: Pipeline, block: int) -> None:
        super().__init__()
        self.pipeline, self.block = pipeline, block

    def forward(self, frames: Tensor) -> Tensor:
        backbone: Any = self.pipeline.backbone
        selection = self.pipeline.select(frames)
        assert selection is not None
        keep_idx, pixels = selection.keep_idx, backbone.normalize(frames)
        tokens, prefix = backbone.encode(backbone.embed(pixels), stop=self.block), backbone.num_prefix
        compared = tokens[:, prefix:] if self.block else backbone.patch_embed(pixels)
        features = nn.functional.normalize(compared, dim=-1)
        kept = features.gather(1, keep_idx[..., None].expand(-1, -1, features.shape[-1]))
        nearest = (features @ kept.mT).argmax(2)
        places = torch.arange(keep_idx.shape[1]).expand_as(keep_idx)
        nearest = nearest.scatter(1, keep_idx, places)  # a kept one is its own, also beside its equal
        shares = nn.functional.one_hot(nearest, keep_idx.shape[1]).mT.float()
        sizes = shares.sum(2)
        joined = (shares / sizes[..., None]) @ tokens[:, prefix:]
        tokens = torch.cat([tokens[:, :prefix], joined], 1)
        found: Tensor = backbone(None, tokens=tokens, block=self.block, sizes=sizes)
        return found


def maps(dense: Pipeline, lite0: Path, keep_ratio: float) -> Iterator[tuple[str, nn.Module]]:
    """Name -> frames to what `dense` makes of them, of tokens that are dropped before the first block; dense first."""
    network = {"model": "tf_efficientnet_lite0", "weights": lite0}
    usual: dict[str, Any] = {"keep_ratio": keep_ratio}

    def pruned(name: str, **options: Any) -> nn.Module:
        return Pipeline(dense.backbone, build_pruner(name, **usual, **options)).eval()

    def convnet(**options: Any) -> nn.Module:
        return pruned("image_convnet", **network, **options)

    def own(name: str, scorer: Any) -> nn.Module:
        return pruned(name, scorer=lambda: scorer)

    stages = [build_image_scorer(**network, stage=stage) for stage in ("blocks.4", None)]
    yield "dense", dense
    yield "random", pruned("random")
    yield "center", pruned("center")
    yield "lite0", convnet()
    yield "lite0, a quarter evenly spaced", convnet(uniform_share=0.25)
    yield "lite0, cam", convnet(recalibration="cam")
    yield "lite0, cam, a quarter evenly spaced", convnet(recalibration="cam", uniform_share=0.25)
    yield "lite0, stages blocks.4 and last", own("two_stages", fused(stages).__call__)
    yield "last attention of the dense model", own("attention", LastAttention(dense))


def other_ways(dense: Pipeline, lite0: Path, keep_ratio: float) -> Iterator[tuple[str, nn.Module]]:
    """Likewise, of what does more than that with the map "lite0, cam", and of some other maps; dense first."""
    network: dict[str, Any] = {"model": "tf_efficientnet_lite0", "weights": lite0}

    def cam(share: float = keep_ratio, **options: Any) -> Pruner:
        found = build_pruner("image_convnet", **network, recalibration="cam", keep_ratio=share, **options)
        assert found is not None
        return found

    def pruned(pruner: Pruner | None) -> nn.Module:
        return Pipeline(dense.backbone, pruner).eval()

    yield "dense", dense
    yield "lite0, cam", pruned(cam())
    for block in (1, 2, 4):
        yield f"behind block {block}", pruned(AfterBlocks(cam(), block))
    depth = len(dense.backbone.blocks)
    share = (keep_ratio * depth - 2) / (depth - 2)  # as many tokens in all blocks together
    yield f"behind block 2, keep {share:.2f}", pruned(AfterBlocks(cam(share), 2))
    grid, cell = dense.backbone.grid, (1, 5, 5)
    room = int(keep_ratio * grid.num_tokens) - num_regions(grid, cell)
    merging = cam(room / grid.num_tokens, compensation="merge", compensation_cell=cell)
    yield f"{room} tokens, and the mean of what is dropped in each 5 x 5", pruned(merging)
    for block in (0, 2):
        name = "dropped ones join the most similar" + f", behind block {block}" * bool(block)
        yield name, JoinNearest(Pipeline(dense.backbone, cam()), block).eval()
    yield "half evenly spaced", pruned(cam(uniform_share=0.5))
    yield "similarity", pruned(build_pruner("similarity", keep_ratio=keep_ratio))
    earlier = build_pruner("image_convnet", **network, stage="blocks.4", keep_ratio=keep_ratio)
    yield "lite0, stage blocks.4", pruned(earlier)


def read(folder: Path) -> tuple[Tensor, np.ndarray]:
    """Pictures (n, 1, H, W, 3) uint8 of a folder, and their labels (n,)."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(classes) for path in sorted(name.iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    return torch.from_numpy(pixels)[:, None], np.array([label for _, label in files])


@torch.inference_mode()
def features(model: nn.Module, frames: Tensor, name: str) -> Tensor:
    """frames (n, 1, H, W, 3) uint8 -> what a model without a head gives, (n, F) float32."""
    return torch.cat([model(batch).float() for batch in tqdm(frames.split(BATCH), desc=name)])


def study(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Name of a map -> its loss against dense in points, with its standard error, by the way its features are read.

    Given anew after each map: a study takes an hour or two.
    """
    dense, _ = from_config(
        backbone={"name": "probe", "weights": str(args.probe)}, pruner="none", runtime={"engine": "torch"}
    )
    frames, labels = read(args.held_out)
    others, other_labels = read(args.unlabelled)
    folds = draw_folds(other_labels, None, 5, seed=0)
    found: dict[str, Any] = {}
    base: list[int] = []
    means: Tensor | None = None
    head, headless = dense.backbone.head, dense.headless()
    settings = other_ways if args.ways else maps
    for name, model in settings(headless, args.lite0, args.keep_ratio):
        held_out, known = (features(model, pictures, name) for pictures in (frames, others))
        means = known.mean(0) if means is None else means
        fitted = fit_probe(known.double().numpy(), other_labels, folds, progress=False)
        read_by = {
            "as it is": head(held_out),
            "mean moved": head(held_out + means - known.mean(0)),
            "probe fitted too": held_out @ fitted.weight.T + fitted.bias,
        }
        answers = {way: logits.argmax(1).tolist() for way, logits in read_by.items()}
        base = base or answers["as it is"]
        found[name] = {}
        for way, classes in answers.items():
            compared = compare_paired([[x] for x in base], [[x] for x in classes], labels.tolist())
            found[name][way] = {"loss": compared.loss_points, "standard_error": compared.loss_standard_error}
        yield {"pictures": len(labels), "unlabelled": len(other_labels), "maps": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("probe", type=Path)
    parser.add_argument("lite0", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, required=True)
    parser.add_argument("--keep-ratio", type=float, default=0.3)
    parser.add_argument("--ways", action="store_true", help="one map, and other ways to drop by it")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    told = {"keep_ratio": args.keep_ratio, "command": command_line(), "git_commit": git_commit()}
    told |= {"device": describe_device(torch.device("cpu")), "versions": versions()}
    for results in study(args):
        rows = [
            [name, *(f"{ways[way]['loss']:.1f} ± {ways[way]['standard_error']:.1f}" for way in HEADER[1:])]
            for name, ways in results["maps"].items()
        ]
        atomic_write(args.output / "study.json", json.dumps(results | told, indent=1))
        atomic_write(args.output / "study.md", Table(HEADER, rows).markdown() + "\n")


if __name__ == "__main__":
    main()
