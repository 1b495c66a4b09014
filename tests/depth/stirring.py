"""Networks with non-trivial statistics, small enough for float64."""

from __future__ import annotations

import torch
from torch import nn


def stir(net: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every batch norm statistics, weights and an epsilon that are not the usual ones; eval mode, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64)

    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
            module.eps = 0.01 + 0.1 * float(torch.rand((), generator=generator))
            module.running_mean.copy_(draw(module.running_mean, -1, 1))  # type: ignore[union-attr, operator, arg-type]
            module.running_var.copy_(draw(module.running_var, 0.2, 3))  # type: ignore[union-attr, operator, arg-type]
            with torch.no_grad():
                module.weight.copy_(draw(module.weight, -2, 2))
                module.bias.copy_(draw(module.bias, -1, 1))
        elif isinstance(module, nn.LayerNorm):
            with torch.no_grad():
                module.weight.copy_(draw(module.weight, 0.5, 2))
                module.bias.copy_(draw(module.bias, -1, 1))
    return net
