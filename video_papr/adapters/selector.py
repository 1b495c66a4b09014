"""How the tokens of a model of another library are chosen from its pixels.

Letters: B clips, T frames, H x W pixels, N tokens of the grid, K kept tokens.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.types import TokenGrid, TokenSelection
from ..pruning.map_pruner import MapPruner
from .host import Colors, Host

# How far from 0..1 a colour may lie, as resizing may overshoot, before its normalisation is doubted.
SLACK = 0.05


class Selector:
    """Chooses tokens from the pixels that a host model reads.

    It is no module, so that neither the host's `state_dict` nor its precision nor its training mode reach the scorer. A
    scorer on another device than the pixels is copied there at the first call.

    Args:
        mean, std: undo the normalisation of the pixels.
        stages: of a hierarchical host, those that drop places.
    """

    def __init__(
        self,
        host: Host,
        pruner: MapPruner,
        *,
        mean: Colors,
        std: Colors,
        reads_images: bool,
        stages: Sequence[int] = (),
    ) -> None:
        self.grid, self.clip, self.reads_images = host.grid, host.clip, reads_images
        self.first_stays, self.multiple = host.first_stays, max(host.reductions, default=None)
        self.frame_step, self.unpack = host.frame_step, host.unpack
        self.reductions = {stage: host.reductions[stage] for stage in stages}
        self.mean, self.std = mean, std
        pruner.fit(replace(host, mean=mean, std=std))
        self.pruners = {"": pruner}
        self.doubted = False

    def __call__(self, pixels: Tensor) -> TokenSelection:
        """pixels (B, T, 3, H, W), of an image model (B, 3, H, W), normalised -> the kept tokens of each clip.

        Raises ValueError: another shape.
        """
        self.check(pixels)
        grid = self.grid
        if self.frame_step is not None:
            grid = replace(grid, frames=pixels.shape[1] // self.frame_step)
        return self._choose(pixels, grid)

    def of_videos(self, patches: Tensor, grid_thw: Tensor | None) -> dict[int, TokenSelection]:
        """Patches of several videos, of a host that has `unpack` -> the kept tokens of each, by its number.

        Raises ValueError: there is no `grid_thw`, or it counts other patches.
        """
        assert self.unpack is not None
        if grid_thw is None:
            raise ValueError("patches say nothing about their videos; give grid_thw too")
        return {number: self._choose(*video) for number, video in self.unpack(patches, grid_thw).items()}

    def _choose(self, pixels: Tensor, grid: TokenGrid) -> TokenSelection:
        pruner = self._pruner(pixels.device)
        significance = pruner.scorer(self.frames(pixels), grid)
        if self.first_stays:
            significance = significance.clone()
            significance[:, 0, 0, 0] = torch.inf
        return pruner.choose(significance)

    def of_stages(self, pixels: Tensor) -> dict[int, TokenSelection]:
        """pixels (B, 3, H, W) of a hierarchical host, normalised -> the kept places of each of its chosen stages.

        Raises ValueError: another shape.
        """
        self.check(pixels)
        pruner, frames = self._pruner(pixels.device), self.frames(pixels)
        height, width = pixels.shape[2:]
        grids = [TokenGrid(1, height // step, width // step) for step in self.reductions.values()]
        maps = pruner.maps(frames, grids)
        return {stage: pruner.choose(found) for stage, found in zip(self.reductions, maps, strict=True)}

    @property
    def drops(self) -> bool:
        """Whether any token of a clip is dropped."""
        return self.pruners[""].choose(torch.zeros(1, *self.grid.shape)).drops

    def check(self, pixels: Tensor) -> None:
        """Raises ValueError unless the pixels have the shape that the host reads."""
        frames, height, width = self.clip
        if self.multiple is not None:
            if (
                pixels.ndim != 4
                or pixels.shape[1] != 3
                or any(side % self.multiple for side in pixels.shape[2:])
            ):
                raise ValueError(
                    f"pixels must be (B, 3, H, W), H and W multiples of {self.multiple}, got {tuple(pixels.shape)}"
                )
            return
        if self.frame_step is not None and pixels.ndim == 5 and pixels.shape[1] % self.frame_step == 0:
            frames = max(pixels.shape[1], self.frame_step)
        expected = (3, height, width) if self.reads_images else (frames, 3, height, width)
        if pixels.ndim != 1 + len(expected) or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must be (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}"
            )

    def frames(self, pixels: Tensor) -> Tensor:
        """Undoes the normalisation: pixels as in `__call__` -> frames (B, T, H, W, 3) uint8."""
        colors = pixels.detach().movedim(-3, -1).float()
        colors = colors * colors.new_tensor(self.std) + colors.new_tensor(self.mean)
        if self.reads_images:
            colors = colors[:, None]
        if not (self.doubted or torch.compiler.is_compiling()):
            self._doubt(colors)
        return (colors * 255).round().clamp(0, 255).byte()

    def _doubt(self, colors: Tensor) -> None:
        """Warns, once, when the first batch shows that the pixels were normalised in another way."""
        self.doubted = True
        low, high = (float(bound) for bound in colors.aminmax())
        if low < -SLACK or high > 1 + SLACK:
            warnings.warn(
                f"undoing mean={self.mean}, std={self.std} gives colours from {low:.2f} to {high:.2f} instead of 0 to "
                "1: the pixels were normalised in another way; give prune(..., processor=) or mean= and std=",
                stacklevel=2,
            )

    def _pruner(self, device: torch.device) -> MapPruner:
        """The pruner on a device; every device has its own, so that threads on several of them do not meet."""
        first = self.pruners[""]
        at = next((value.device for value in first.parameters()), device)
        if at == device:
            return first
        if str(device) not in self.pruners:
            self.pruners[str(device)] = copy.deepcopy(first).to(device)
        return self.pruners[str(device)]
