"""Blocks with two branches: the one that they were, and one that is linear and can be merged.

    output = (1 - mix) * baseline(x) + mix * pruned(x)

`mix` is the paper's lambda: 0 is the baseline bit for bit, 1 the pruned branch, and the other one is not run then. The
pruned branches (UPDP, Liu et al., AAAI 2024; X3D and video transformers are ours):

    dense       X3D: 1x1x1 -> depthwise 3x3x3 -> 1x1x1, without the activations and squeeze-and-excitation between
    pointwise   X3D: 1x1x1 -> 1x1x1, without the depthwise convolution too
    linear      transformer: the feed-forward part without its activation, and with a batch norm for its layer norm
    dense       ConvNeXt: the whole branch without its activation, and with a batch norm for its layer norm
    linear      ConvNeXt: the same, of which only what stands behind the depthwise convolution is merged
    pointwise   ConvNeXt: the same without the depthwise convolution
    removed     transformer, ConvNeXt: nothing; attention cannot be merged, so the whole block goes

Our choices, where the paper leaves it open: a pruned branch has weights of its own, which start as copies of the
baseline's (see `fit` for the last layer); the ReLU behind the sum of an X3D block stays, since it belongs to the
block's output and not to a branch; all padding of "dense" is the first convolution's from the start, because only then
can it be merged exactly; a layer scale starts as part of the last layer; ConvNeXt V2's global response norm goes with
the activation, as squeeze-and-excitation does.

Letters: B clips, K tokens, D channels of a transformer, C of X3D and ConvNeXt, T x h x w positions.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.depth_pruned import LINEAR, REMOVED, SeparableBlock, ShortBlock
from ..core.errors import MergeError
from ..pruning.scorers.x3d_depth_pruned import DENSE, POINTWISE, MergedBlock
from .merge import add_shortcut, compose, to_conv2d, to_conv3d, to_linear


class TwoBranch(nn.Module):
    """`(1 - mix) * baseline(x) + mix * pruned(x)`; `mix` in 0..1 is a plain attribute that training sets."""

    def __init__(self, baseline: nn.Module, pruned: nn.Module) -> None:
        super().__init__()
        self.baseline, self.pruned = baseline, pruned
        self.mix = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Same shapes as both branches."""
        if self.mix == 0:
            return self.baseline(x)
        if self.mix == 1:
            return self.pruned(x)
        return (1 - self.mix) * self.baseline(x) + self.mix * self.pruned(x)


class FeedForward(nn.Module):
    """The feed-forward part of a transformer block of timm, with its shortcut; takes its layers over."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> (B, K, D)."""
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm over the channels of tokens (B, K, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> (B, K, D)."""
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


class LinearFeedForward(nn.Module):
    """`x + W2(W1 BN(x))`: a feed-forward part that one D x D matrix can replace.

    Args:
        block: of timm; its weights are copied.

    Raises MergeError: the feed-forward part has a layer that is not linear, or a norm inside it.
    """

    def __init__(self, block: Any, name: str) -> None:
        super().__init__()
        _check_feed_forward(block.mlp, name)
        scale = getattr(block.ls2, "gamma", None)
        if scale is None and not isinstance(block.ls2, nn.Identity):
            raise MergeError(f"{name}.ls2: {type(block.ls2).__name__} has no place in a linear branch")
        old = block.norm2
        self.norm = TokenBatchNorm(len(old.weight)).to(old.weight)
        self.norm.load_state_dict(old.state_dict(), strict=False)
        self.fc1, self.fc2 = deepcopy(block.mlp.fc1), _scaled(deepcopy(block.mlp.fc2), scale)

    def features(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> what the last layer reads, (B, K, hidden)."""
        return self.fc1(self.norm(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> (B, K, D)."""
        return tokens + self.fc2(self.features(tokens))

    def merged(self, name: str) -> nn.Linear:
        """The same as one layer, the shortcut included; `name` is the block's, for errors."""
        row = compose([(f"{name}.{part}", getattr(self, part)) for part in ("norm", "fc1", "fc2")])
        return to_linear(add_shortcut(row, None, name), name)


class LinearResidual(nn.Module):
    """An X3D block whose branch is linear.

    Args:
        block: of an X3D; its weights are copied.
        depthwise: keep the depthwise convolution; without it, its stride moves to the first convolution.
    """

    def __init__(self, block: Any, *, depthwise: bool) -> None:
        super().__init__()
        old = block.branch2
        first, middle, last = old.conv_a, old.conv_b, old.conv_c
        self.conv_a, self.norm_a = deepcopy(first), deepcopy(old.norm_a)
        if depthwise:
            self.conv_a.padding = middle.padding
            self.conv_b, self.norm_b = deepcopy(middle), deepcopy(_batch_norm(old.norm_b))
            self.conv_b.padding = (0, 0, 0)
        else:
            self.conv_a.stride = middle.stride
        self.conv_c, self.norm_c = deepcopy(last), deepcopy(old.norm_c)
        self.branch1_conv = deepcopy(block.branch1_conv)
        self.branch1_norm = deepcopy(getattr(block, "branch1_norm", None))
        self.activation = deepcopy(block.activation)

    def row(self) -> list[tuple[str, nn.Module]]:
        """The layers of the branch in their order."""
        names = ("conv_a", "norm_a", "conv_b", "norm_b", "conv_c", "norm_c")
        return [(name, getattr(self, name)) for name in names if hasattr(self, name)]

    def shortcut(self) -> list[tuple[str, nn.Module]]:
        """The layers of the projection shortcut; none where the block's input is added as it is."""
        pair = (("branch1_conv", self.branch1_conv), ("branch1_norm", self.branch1_norm))
        return [(name, layer) for name, layer in pair if layer is not None]

    def features(self, features: Tensor) -> Tensor:
        """features (B, C, T, h, w) -> what the last convolution reads, (B, hidden, T, h', w')."""
        for _, layer in self.row()[:-2]:
            features = layer(features)
        return features

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, T, h, w) -> (B, C', T, h', w')."""
        out, short = self.norm_c(self.conv_c(self.features(features))), features
        for _, layer in self.shortcut():
            short = layer(short)
        return self.activation(short + out)

    def merged(self, name: str) -> MergedBlock:
        """The same as one convolution and its activation; `name` is the block's, for errors."""
        if not isinstance(self.activation, nn.ReLU):
            raise MergeError(f"{name}.activation: {type(self.activation).__name__}, expected ReLU")
        kernel = compose((f"{name}.{part}", layer) for part, layer in self.row())
        projection = [(f"{name}.{part}", layer) for part, layer in self.shortcut()]
        kernel = add_shortcut(kernel, compose(projection) if projection else None, name)
        return MergedBlock(to_conv3d(kernel)).eval()


class LinearConvNeXt(nn.Module):
    """A ConvNeXt block of timm, V1 or V2, whose branch is linear.

    Args:
        block: its weights are copied.
        kind: "dense", "linear" or "pointwise", see the top of this module.

    Raises MergeError: the block changes the number of channels or places, or its feed-forward part has a norm inside.
    """

    def __init__(self, block: Any, kind: str, name: str) -> None:
        super().__init__()
        if not isinstance(block.shortcut, nn.Identity):
            raise MergeError(
                f"{name}.shortcut: {type(block.shortcut).__name__} has no place in a linear branch"
            )
        _check_feed_forward(block.mlp, name)
        self.kind, old = kind, block.norm
        self.conv_dw = nn.Identity() if kind == POINTWISE else deepcopy(block.conv_dw)
        self.norm = nn.BatchNorm2d(block.conv_dw.out_channels).to(block.conv_dw.weight)
        self.norm.load_state_dict(old.state_dict(), strict=False)
        self.fc1 = _as_convolution(block.mlp.fc1)
        self.fc2 = _scaled(_as_convolution(block.mlp.fc2), block.gamma)

    def features(self, features: Tensor) -> Tensor:
        """features (B, C, h, w) -> what the last layer reads, (B, hidden, h, w)."""
        return self.fc1(self.norm(self.conv_dw(features)))

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, h, w) -> (B, C, h, w)."""
        return features + self.fc2(self.features(features))

    def merged(self, name: str) -> nn.Module:
        """The same as one convolution, or two where the depthwise one stays; `name` is the block's, for errors."""
        place_wise = [(f"{name}.{part}", getattr(self, part)) for part in ("norm", "fc1", "fc2")]
        if self.kind == LINEAR:
            return SeparableBlock(self.conv_dw, to_conv2d(compose(place_wise))).eval()
        row = compose([(f"{name}.conv_dw", self.conv_dw), *place_wise])
        return to_conv2d(add_shortcut(row, None, name))


def open_block(block: nn.Module, kind: str, name: str) -> nn.Module:
    """A block with two branches, the first of which is `block` itself.

    Args:
        kind: what the block may become, see the top of this module.

    Raises MergeError: the block has a layer that a linear branch has no place for.
    """
    if kind != REMOVED and hasattr(block, "conv_dw"):
        return TwoBranch(block, LinearConvNeXt(block, kind, name)).train(block.training)
    if kind == LINEAR:
        pruned: nn.Module = LinearFeedForward(block, name)
        return ShortBlock(block, TwoBranch(FeedForward(block), pruned)).train(block.training)
    if kind == REMOVED:
        return TwoBranch(block, nn.Identity()).train(block.training)
    return TwoBranch(block, LinearResidual(block, depthwise=kind == DENSE)).train(block.training)


def switch_of(block: nn.Module) -> TwoBranch:
    """The two branches of what `open_block` made."""
    found = block.joint if isinstance(block, ShortBlock) else block
    assert isinstance(found, TwoBranch)
    return found


@torch.no_grad()
def close_block(block: nn.Module, name: str) -> nn.Module | None:
    """What `open_block` made, with its pruned branch merged and the other one gone; None: nothing is left of it.

    Raises MergeError: a layer cannot be merged; the text names it. Or `mix` is not 1 yet.
    """
    switch = switch_of(block)
    if switch.mix != 1:
        raise MergeError(f"{name}: mix={switch.mix}, but only a block at 1 can be merged without a change")
    if isinstance(switch.pruned, nn.Identity):
        return None
    merged: Any = switch.pruned
    closed = merged.merged(name)
    return ShortBlock(block, closed).eval() if isinstance(block, ShortBlock) else closed


def _check_feed_forward(mlp: Any, name: str) -> None:
    """Raises MergeError where there is more than two layers, an activation and a global response norm."""
    inner = getattr(mlp, "norm", None)
    if not isinstance(inner, nn.Identity | None):
        raise MergeError(f"{name}.mlp.norm: {type(inner).__name__} has no place in a linear branch")
    layers = [getattr(mlp, part, None) for part in ("fc1", "fc2")]
    widths = [layer.weight.shape[:2] for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    if len(widths) < 2 or widths[0][0] != widths[1][1]:
        raise MergeError(f"{name}.mlp: {type(mlp).__name__} has no place in a linear branch")


def _as_convolution(layer: Any) -> nn.Conv2d:
    """A linear layer, or a 1 x 1 convolution, as a new 1 x 1 convolution."""
    weight, bias = layer.weight.flatten(1)[..., None, None], layer.bias
    conv = nn.Conv2d(weight.shape[1], len(weight), 1, bias=bias is not None).to(weight)
    conv.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return conv


@torch.no_grad()
def _scaled(layer: Any, scale: Tensor | None) -> Any:
    """A layer with a layer scale (D,) behind it, None: without, as one, in place."""
    if scale is not None:
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.mul_(scale)
    return layer


def _batch_norm(norm: nn.Module) -> nn.Module:
    """The batch norm of a pair with squeeze-and-excitation."""
    return norm[0] if isinstance(norm, nn.Sequential) else norm
