"""X3D's trunk for inference on processors, and what makes a built pruner use it.

The plain trunk loses most of its time to the form of its operators, not to their arithmetic. PyTorch has no fast
kernel for a 1 x 1 x 1 Conv3d on a processor: it copies the activations to another layout, multiplies, and copies them
back. Here the channels always lie last in memory, (B, T, H, W, C), and every operator reads that layout as it is:

    1 x 1 x 1 convolutions       one matrix product over the channels
    1 x 3 x 3 of the stem        a 2-D convolution over the frames
    5 x 1 x 1 of the stem        a 2-D depthwise convolution over time and (flattened) space
    3 x 3 x 3, depthwise         oneDNN's own kernel, which is fast in this layout
    norms, swish, sums           folded away, one pass, in place

The weights stay where they are, under the same names. `tools/bench.py` shows the effect; docs/performance.md says how
near to the limits it comes. On a GPU, and in OpenVINO, the layers run as they are.

Letters: B clips, T frames, H x W pixels of a stage, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..protocol import Pruner
from .x3d import X3DScorer
from .x3d_depth_pruned import MergedBlock
from .x3d_trunk import STAGES, X3DTrunk, fold_norms

Chosen = TypeVar("Chosen", bound="Pruner | None")


def use_channels_last(pruner: Chosen) -> Chosen:
    """Gives an X3D folded batch norms and `ChannelsLastTrunk`, in place; other pruners stay as they are.

    The map is the same up to rounding. Load the weights first: the state dict has other keys afterwards.
    """
    scorer = getattr(pruner, "scorer", None)
    if isinstance(scorer, X3DScorer) and not isinstance(scorer.trunk, ChannelsLastTrunk):
        fold_norms(scorer.trunk)
        scorer.trunk = ChannelsLastTrunk(scorer.trunk)
    return pruner


class ChannelsLastTrunk(X3DTrunk):
    """The layers of a trunk whose norms are folded, run with the channels last; elsewhere than on a processor as is.

    For inference only: activations are changed in place.

    Args:
        trunk: after `fold_norms`; its layers are shared.

    Attributes:
        channels_last: False: as is on a processor too.
    """

    channels_last = True

    def __init__(self, trunk: X3DTrunk) -> None:
        nn.Module.__init__(self)
        self.stage, self.blocks = trunk.stage, trunk.blocks
        if self.stage == "head":
            self.pre_conv, self.pre_norm, self.pre_act = trunk.pre_conv, trunk.pre_norm, trunk.pre_act
        self.train(trunk.training)

    def stages(self, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and features (B, C, T, h, w) of every stage on the way, one after the other."""
        if pixels.device.type != "cpu" or not self.channels_last:
            yield from super().stages(pixels)
            return
        for name, x in channels_last_stages(list(self.blocks), pixels):
            yield name, _channels_first(x)
        if self.stage == "head":
            yield "head", _channels_first(_pointwise(x, self.pre_conv).relu_())


def channels_last_stages(layers: list[Any], pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and features (B, T, H, W, C) of the stem and the stages of an X3D with folded norms, on a processor.

    Args:
        pixels: (B, 3, T, S, S) normalised.
    """
    x = _stem(pixels.movedim(1, -1).contiguous(), layers[0])
    yield "stem", x
    for name, stage in zip(STAGES, layers[1:], strict=False):
        for block in stage.res_blocks:
            x = run_block(x, block)
        yield name, x


def _channels_first(x: Tensor) -> Tensor:
    """(B, T, H, W, C) -> (B, C, T, H, W), the same memory."""
    return x.movedim(-1, 1)


def _stem(x: Tensor, stem: Any) -> Tensor:
    """(B, T, H, W, 3) -> (B, T, H / 2, W / 2, C)."""
    batch, frames = x.shape[:2]
    space, time = stem.conv.conv_t, stem.conv.conv_xy  # the published names are the wrong way round
    images = x.flatten(0, 1).movedim(-1, 1)
    images = F.conv2d(images, space.weight[:, :, 0], space.bias, space.stride[1:], space.padding[1:])
    _, channels, height, width = images.shape
    rows = images.movedim(1, -1).reshape(batch, frames, height * width, channels).movedim(-1, 1)
    rows = F.conv2d(rows, time.weight[..., 0], time.bias, padding=(time.padding[0], 0), groups=channels)
    return rows.movedim(1, -1).reshape(batch, frames, height, width, channels).relu_()


def run_block(x: Tensor, block: Any) -> Tensor:
    """One residual block, (B, T, H, W, C) -> (B, T, h, w, D); depth pruning may have merged it to one convolution."""
    if isinstance(block, MergedBlock):
        convolve = _pointwise if block.conv.kernel_size == (1, 1, 1) else _convolution
        return convolve(x, block.conv).relu_()
    branch = block.branch2
    inner = _convolution(_pointwise(x, branch.conv_a).relu_(), branch.conv_b)
    gate = branch.norm_b[1]
    if not isinstance(gate, nn.Identity):
        reduce, _, expand, _ = gate.block
        share = _pointwise(_pointwise(inner.mean((1, 2, 3), keepdim=True), reduce).relu_(), expand)
        inner.mul_(share.sigmoid_())
    out = _pointwise(F.silu(inner, inplace=True), branch.conv_c)
    return out.add_(x if block.branch1_conv is None else _pointwise(x, block.branch1_conv)).relu_()


def _convolution(x: Tensor, conv: Any) -> Tensor:
    """A 3 x 3 x 3 convolution, (B, T, H, W, C) -> (B, T, h, w, D)."""
    out = F.conv3d(_channels_first(x), conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
    return out.movedim(1, -1)


def _pointwise(x: Tensor, conv: Any) -> Tensor:
    """A 1 x 1 x 1 convolution with any stride as a matrix product, (B, T, H, W, C) -> (B, T, h, w, D)."""
    _, rows, columns = conv.stride
    if max(conv.stride) > 1:
        x = x[:, :, ::rows, ::columns].contiguous()
    return F.linear(x, conv.weight.flatten(1), conv.bias)
