"""What the tests of X3D's faster forms share: networks of which every weight matters, clips, and a comparison."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from video_papr.pruning.scorers.x3d_trunk import X3DTrunk
from video_papr.pruning.select import select_tokens


@pytest.fixture
def shaken() -> Callable[[X3DTrunk], X3DTrunk]:
    """Draws norms and their statistics anew, so that every one of them matters. Eval mode."""

    def shake(trunk: X3DTrunk) -> X3DTrunk:
        torch.manual_seed(0)
        for module in trunk.modules():
            if isinstance(module, nn.BatchNorm3d):
                for value in (module.weight, module.running_var):
                    nn.init.uniform_(value, 0.5, 1.5)  # type: ignore[arg-type]
                for value in (module.bias, module.running_mean):
                    nn.init.normal_(value, std=0.2)  # type: ignore[arg-type]
        return trunk.eval().requires_grad_(False)

    return shake


@pytest.fixture
def clips() -> Callable[[int], Tensor]:
    """Noise that varies over the picture, so that the map has a shape: (count, 16, 112, 112, 3) uint8."""

    def draw(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        coarse = torch.randint(0, 256, (count, 3, 4, 7, 7), generator=generator).float()
        smooth = torch.nn.functional.interpolate(coarse, (16, 112, 112), mode="trilinear")
        fine = torch.randint(-40, 40, smooth.shape, generator=generator)
        return (smooth + fine).clamp(0, 255).byte().movedim(1, -1).contiguous()

    return draw


@pytest.fixture
def overlap() -> Callable[[Tensor, Tensor, float], float]:
    """The share of the tokens kept by one map that the other keeps too."""

    def share(one: Tensor, two: Tensor, keep_ratio: float) -> float:
        kept = [select_tokens(significance, keep_ratio=keep_ratio).mask() for significance in (one, two)]
        return ((kept[0] & kept[1]).sum() / kept[0].sum()).item()

    return share
