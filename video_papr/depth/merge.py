"""Linear layers in a row as one: re-parameterisation (RepVGG, Ding et al., CVPR 2021; UPDP, Liu et al., AAAI 2024).

A convolution, a linear layer and a batch norm in eval mode are all the same thing: a kernel and a bias. Two of them in
a row are one, with

    kernel = first * second (the full convolution over time, height and width, summed over the channels between)
    bias   = second's bias + second's kernel, summed over its extent, times first's bias

This is exact only if the padding is the first one's: the second would pad with 0 where the first gives its bias.
A layer of pictures is one of clips with an extent of 1 along time.

Letters: O channels out, I channels in, k extent of a kernel along time, height or width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import MergeError

Triple = tuple[int, int, int]
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Layers = Iterable[tuple[str, nn.Module]]
"""(name, layer) in the order in which they run; the names are for errors."""


@dataclass(frozen=True)
class Kernel:
    """A convolution without groups, as data. A linear layer has extent 1.

    Attributes:
        stride, padding: along time, height, width.
    """

    weight: Tensor  # (O, I, k, k, k)
    bias: Tensor  # (O,)
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)

    @property
    def extent(self) -> Triple:
        return tuple(self.weight.shape[2:])  # type: ignore[return-value]


def compose(layers: Layers) -> Kernel:
    """Merges convolutions, linear layers, batch norms and identities that run one after the other.

    Raises MergeError: a layer is not linear, or its place in the row leaves no exact merge; the text names it.
    """
    found: Kernel | None = None
    for name, layer in layers:
        if isinstance(layer, nn.Identity):
            continue
        kernel = as_kernel(layer, name)
        found = kernel if found is None else chain(found, kernel, name)
    if found is None:
        raise MergeError("there is no layer to merge")
    return found


@torch.no_grad()
def as_kernel(layer: nn.Module, name: str) -> Kernel:
    """One layer as a kernel. Raises MergeError: it is not linear, or follows its batch."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        return _convolution(layer, name)
    if isinstance(layer, nn.Linear):
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        return Kernel(layer.weight[:, :, None, None, None].clone(), bias.clone())
    if isinstance(layer, NORMS):
        return _norm(layer, name)
    raise MergeError(f"{name}: {type(layer).__name__} cannot be merged, because it is not linear")


@torch.no_grad()
def chain(first: Kernel, second: Kernel, name: str) -> Kernel:
    """`second` behind `first` as one kernel; `name` is the second's.

    Raises MergeError: channels differ, `second` pads, or `first` has a stride that `second` looks across.
    """
    if first.weight.shape[0] != second.weight.shape[1]:
        raise MergeError(
            f"{name}: reads {second.weight.shape[1]} channels, the layer before it gives {first.weight.shape[0]}"
        )
    if any(second.padding):
        raise MergeError(
            f"{name}: padding={second.padding} cannot be merged; all padding must be that of the first layer"
        )
    if any(stride > 1 and k > 1 for stride, k in zip(first.stride, second.extent, strict=True)):
        raise MergeError(
            f"{name}: a kernel of {second.extent} behind a stride of {first.stride} cannot be merged"
        )
    # F.conv3d correlates; with the second kernel turned over that is the full convolution of the two.
    reach = [k - 1 for k in second.extent]
    weight = F.conv3d(first.weight.transpose(0, 1), second.weight.flip(2, 3, 4), padding=reach)
    bias = second.bias + second.weight.sum((2, 3, 4)) @ first.bias
    stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
    return Kernel(weight.transpose(0, 1), bias, stride, first.padding)  # type: ignore[arg-type]


@torch.no_grad()
def add_shortcut(kernel: Kernel, shortcut: Kernel | None, name: str) -> Kernel:
    """`kernel(x) + shortcut(x)` as one kernel. `shortcut`: of extent 1; None is x itself, a Dirac kernel.

    Raises MergeError: the two give outputs of other shapes.
    """
    channels = kernel.weight.shape[0]
    if shortcut is None:
        shortcut = identity_kernel(kernel.weight.shape[1], like=kernel.weight)
    if shortcut.extent != (1, 1, 1) or any(shortcut.padding):
        raise MergeError(f"{name}: a shortcut of extent {shortcut.extent} cannot be merged; it must be 1")
    if shortcut.stride != kernel.stride or shortcut.weight.shape[:2] != kernel.weight.shape[:2]:
        raise MergeError(
            f"{name}: the shortcut gives {len(shortcut.weight)} channels with stride {shortcut.stride}, the branch "
            f"{channels} with stride {kernel.stride}"
        )
    if any(k != 2 * p + 1 for k, p in zip(kernel.extent, kernel.padding, strict=True)):
        raise MergeError(
            f"{name}: a kernel of {kernel.extent} with padding {kernel.padding} changes the size of its input, so "
            "no shortcut can be merged into it"
        )
    t, h, w = kernel.padding  # the place in the kernel that looks at the output's own position
    weight = kernel.weight.clone()
    weight[:, :, t, h, w] += shortcut.weight[:, :, 0, 0, 0]
    return replace(kernel, weight=weight, bias=kernel.bias + shortcut.bias)


def identity_kernel(channels: int, *, like: Tensor) -> Kernel:
    """The kernel that changes nothing; of the dtype and device of `like`."""
    eye = torch.eye(channels, dtype=like.dtype, device=like.device)
    return Kernel(eye[:, :, None, None, None], like.new_zeros(channels))


def to_conv3d(kernel: Kernel) -> nn.Conv3d:
    """The kernel as a layer."""
    out, into = kernel.weight.shape[:2]
    conv = nn.Conv3d(into, out, kernel.extent, stride=kernel.stride, padding=kernel.padding)
    return _filled(conv, kernel.weight, kernel.bias)


def to_conv2d(kernel: Kernel) -> nn.Conv2d:
    """A kernel of extent 1 along time as a layer of pictures (B, C, h, w)."""
    assert (kernel.extent[0], kernel.stride[0], kernel.padding[0]) == (1, 1, 0)
    out, into = kernel.weight.shape[:2]
    conv = nn.Conv2d(into, out, kernel.extent[1:], stride=kernel.stride[1:], padding=kernel.padding[1:])
    return _filled(conv, kernel.weight[:, :, 0], kernel.bias)


def to_linear(kernel: Kernel, name: str) -> nn.Linear:
    """A kernel of extent 1 as a linear layer. Raises MergeError: it looks at neighbours."""
    if kernel.extent != (1, 1, 1) or kernel.stride != (1, 1, 1) or any(kernel.padding):
        raise MergeError(f"{name}: a kernel of {kernel.extent} is no linear layer")
    out, into = kernel.weight.shape[:2]
    return _filled(nn.Linear(into, out), kernel.weight.flatten(1), kernel.bias)


def _filled(layer: nn.Conv2d | nn.Conv3d | nn.Linear, weight: Tensor, bias: Tensor):  # type: ignore[no-untyped-def]
    layer = layer.to(dtype=weight.dtype, device=weight.device)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer.eval()


def _convolution(conv: nn.Conv2d | nn.Conv3d, name: str) -> Kernel:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise MergeError(
            f"{name}: padding={conv.padding!r} ({conv.padding_mode}) cannot be merged, only zeros in numbers"
        )
    if any(step != 1 for step in conv.dilation):
        raise MergeError(f"{name}: dilation={tuple(conv.dilation)} cannot be merged, only 1")
    weight, stride, padding = conv.weight, tuple(conv.stride), tuple(conv.padding)
    if isinstance(conv, nn.Conv2d):
        weight, stride, padding = weight[:, :, None], (1, *stride), (0, *padding)
    if conv.groups > 1:  # the same kernel without groups has zeros between channels of different ones
        inside = weight.shape[1]
        full = weight.new_zeros(conv.out_channels, conv.in_channels, *weight.shape[2:])
        per_group = conv.out_channels // conv.groups
        for group in range(conv.groups):
            rows, columns = slice(group * per_group, None), slice(group * inside, (group + 1) * inside)
            full[rows, columns][:per_group] = weight[rows][:per_group]
        weight = full
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias
    return Kernel(weight.clone(), bias.clone(), stride, padding)  # type: ignore[arg-type]


def _norm(norm: Norm, name: str) -> Kernel:
    if norm.training:
        raise MergeError(f"{name}: a batch norm in training mode follows its batch; call eval() first")
    if norm.running_mean is None or norm.running_var is None:
        raise MergeError(f"{name}: a batch norm without running statistics follows its batch")
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    return Kernel(torch.diag(scale)[:, :, None, None, None], bias)
