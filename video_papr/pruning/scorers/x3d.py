"""X3D (Feichtenhofer, CVPR 2020) as a scorer: its trunk, and the significance map read from one of its stages.

X3D-XS, S and M are one network; they differ in the clip that they see.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints.files import BUNDLED, find_weights, read_weights
from ...checkpoints.hub import url_file
from ...core.errors import ConfigError, check_known
from ...core.pixels import Colors, normalize_in_place, normalize_pixels, resample_clip, resample_frames
from ...core.types import TokenGrid
from ..map_pruner import built_from
from ..protocol import MAP_OPTIONS, PrunerSpec
from ..select import check_resizing, resize_map
from .x3d_depth_pruned import check_blocks, depth_prune_x3d
from .x3d_trunk import X3DTrunk

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
NORMALIZE = ("own", "backbone")
# Frames x size of PaPr's published recipe for S and M; XS is X3D's own test setting.
CLIPS = {"x3d_xs": (4, 160), "x3d_s": (8, 160), "x3d_m": (16, 224)}
STRIDE = 32  # of its last stages
# Pixels of the clips that run side by side on a processor: the activations of more are too large for its caches, and
# for memory that is used again without asking the system for it.
SIDE_BY_SIDE = 1 << 19
# Trained on Kinetics-400 by X3D's authors; pytorchvideo, which publishes them, gives no checksums.
ZOO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"
PUBLISHED = {f"{name}_k400": f"{ZOO}/{name.upper()}.pyth" for name in CLIPS}


def find_x3d(weights: str | Path, *, key: str) -> Path:
    """The file of X3D's weights: a path, a bundled name, or a name of `PUBLISHED`, which is downloaded once.

    Raises CheckpointError: there is no such file, or it cannot be downloaded.
    """
    name = str(weights)
    here = Path(weights).expanduser().is_file() or (BUNDLED / f"{name}.safetensors").is_file()
    if name in PUBLISHED and not here:
        return url_file(PUBLISHED[name], key=key, value=name)
    return find_weights(weights, key=key, others=f", nor published ({', '.join(PUBLISHED)})")


def clip_of(
    frames: Tensor,
    *,
    num_frames: int,
    size: tuple[int, int],
    align_corners: bool = False,
    mean: Colors = MEAN,
    std: Colors = STD,
) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> (B, 3, num_frames, *size) float32, resampled, and normalised for X3D."""
    if align_corners:  # in the published order
        pixels = normalize_pixels(frames, mean=mean, std=std)
        return resample_clip(pixels, num_frames=num_frames, size=size, align_corners=True)
    # Interpolation keeps sums of weights at 1, so normalising may come after it, where there is less to normalise.
    clip = resample_frames(frames, num_frames=num_frames, size=size)
    return normalize_in_place(clip, mean=mean, std=std)


class X3DScorer(nn.Module):
    """The significance map of PaPr: the channel mean of X3D's features, on the token grid.

    Args:
        frames, size: the clip that X3D sees, resampled from the backbone's view.
        stage: where the map is read, see `X3DTrunk`.
        align_clip: resample the clip with corners aligned.
        normalize: one of `NORMALIZE`: whose mean and deviation X3D's pixels have, its own or the backbone's.
        resizing: options of `select.resize_map`.
    """

    def __init__(
        self,
        *,
        frames: int,
        size: int,
        stage: str = "head",
        align_clip: bool = False,
        normalize: str = "own",
        **resizing: Any,
    ) -> None:
        super().__init__()
        if frames < 1 or size < 32:
            raise ConfigError(
                f"pruner.frames={frames} must be >= 1 and pruner.size={size} >= 32 (X3D's stride)"
            )
        self.frames, self.size = frames, size
        self.align_clip, self.resizing = align_clip, check_resizing(**resizing)
        # None until a backbone tells its own.
        self.colors: tuple[Colors, Colors] | None = (MEAN, STD) if normalize == "own" else None
        self.normalize = check_known("pruner.normalize", normalize, NORMALIZE)
        self.trunk = X3DTrunk(stage).to(memory_format=torch.channels_last_3d)

    def pixels(self, frames: Tensor) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> what the trunk reads, (B, 3, t, S, S); see `_sides` where H is not W."""
        assert self.colors is not None, "normalize='backbone' needs `fit`"
        clip = clip_of(
            frames,
            num_frames=self.frames,
            size=self._sides(*frames.shape[2:4]),
            align_corners=self.align_clip,
            mean=self.colors[0],
            std=self.colors[1],
        )
        return clip.to(next(self.trunk.parameters()).dtype, memory_format=torch.channels_last_3d)

    def fit(self, mean: Colors, std: Colors) -> None:
        """Takes over a backbone's normalisation, where `normalize` asks for it.

        Raises ConfigError: another backbone, which normalises in another way, came first.
        """
        if self.normalize == "backbone":
            if self.colors not in (None, (mean, std)):
                raise ConfigError(
                    f"pruner.normalize=backbone: the pruner serves a backbone with mean and std {self.colors}, and "
                    f"this one has {(mean, std)}; build a pruner for each"
                )
            self.colors = mean, std

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the trunk sees of a frame: `size` squared, or with `size` as the shorter one.

        The longer one is the multiple of 32 that keeps the shape best, so that the cells of every stage divide it.
        """
        if height == width:
            return self.size, self.size
        steps = round(self.size * max(height, width) / min(height, width) / STRIDE)
        longer = STRIDE * max(-(-self.size // STRIDE), steps)
        return (self.size, longer) if height < width else (longer, self.size)

    def cells(self, frames: Tensor) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> the map as X3D gives it, (B, t, h, w) float32."""
        # Averaging before resizing keeps the same tokens as averaging after it, and resizes one channel, not 432.
        return self.trunk(self.pixels(frames)).mean(1, dtype=torch.float32)

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        # Graphs are for any number of clips, and on a GPU a large batch is as good as several.
        if frames.device.type != "cpu" or torch.compiler.is_compiling():
            return self.score(frames, grid)
        together = max(1, SIDE_BY_SIDE // (self.frames * self.size**2))
        return torch.cat([self.score(part, grid) for part in frames.split(together)])

    def score(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """`forward` for clips that run side by side."""
        return resize_map(self.cells(frames), grid, **self.resizing)


OPTIONS = ("frames", "size", "align_corners", "cell_center", "align_clip", "normalize", "seed")
OWN = (*OPTIONS, "stage")
# PaPr to the letter, beside the defaults of `X3DScorer`.
PAPR: dict[str, Any] = {"align_clip": True, "normalize": "backbone"}


def build_x3d_scorer(
    kind: type[X3DScorer],
    clip: tuple[int, int],
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    frames: int | None = None,
    size: int | None = None,
    **options: Any,
) -> X3DScorer:
    """A scorer with the weights that `find_x3d` finds; None: random ones from `seed`.

    Args:
        kind: `X3DScorer` or a subclass, which takes the other options.
        clip: frames and size that it sees where `frames` and `size` are None.

    Raises:
        ConfigError: an option is out of range.
        CheckpointError: the weights are missing, damaged or of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own: dict[str, Any] = {
            "frames": clip[0] if frames is None else frames,
            "size": clip[1] if size is None else size,
        }
        scorer = kind(**own, **options)
    if weights is not None:
        state, described = read_weights(find_x3d(weights, key="pruner.weights"))
        source = f"pruner.weights={weights}"
        if "blocks" in described:
            depth_prune_x3d(scorer.trunk, check_blocks(described["blocks"], source=source))
        scorer.trunk.load_classifier(state, source=source)
    return scorer


SPECS = tuple(
    PrunerSpec(
        name,
        f"{what}: a light 3-D ConvNet looks first and says where it matters.",
        built_from(partial(build_x3d_scorer, X3DScorer, CLIPS[name]), papr=PAPR),
        ("recipe", *OWN, *MAP_OPTIONS),
        shares_crops=True,
        trained=True,
        published=f"{name}_k400",
    )
    for name, what in {
        "x3d_xs": "PaPr with the cheapest X3D",
        "x3d_s": "PaPr",
        "x3d_m": "PaPr with a finer, dearer map",
    }.items()
)
