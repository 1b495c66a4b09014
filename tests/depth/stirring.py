"""Networks with non-trivial statistics, small enough for float64."""

import torch
from torch import nn


def stir(net, seed=0):
    """Gives every batch norm statistics, weights and an epsilon that are not the usual ones; eval mode, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64)

    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.eps = 0.01 + 0.1 * float(torch.rand((), generator=generator))
            module.running_mean.copy_(draw(module.running_mean, -1, 1))
            module.running_var.copy_(draw(module.running_var, 0.2, 3))
            with torch.no_grad():
                module.weight.copy_(draw(module.weight, -2, 2))
                module.bias.copy_(draw(module.bias, -1, 1))
        elif isinstance(module, nn.LayerNorm):
            with torch.no_grad():
                module.weight.copy_(draw(module.weight, 0.5, 2))
                module.bias.copy_(draw(module.bias, -1, 1))
    return net
