"""X3D-XS, S and M, which are one network (Feichtenhofer, CVPR 2020), with the names of the weights that are published.

Letters: B clips, C channels, T frames, H x W pixels.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

DEPTHS = {"res2": 3, "res3": 5, "res4": 11, "res5": 7}  # residual blocks of each stage
WIDTHS = {"res2": 24, "res3": 48, "res4": 96, "res5": 192}
# Channels of the depthwise convolution, 2.25 times as many.
INNER = {"res2": 54, "res3": 108, "res4": 216, "res5": 432}
SQUEEZED = {"res2": 8, "res3": 8, "res4": 16, "res5": 32}  # a sixteenth of those, in multiples of 8
HEAD = 2048


def convolution(
    inside: int, outside: int, size: tuple[int, int, int], *, stride: int = 1, groups: int = 1
) -> nn.Conv3d:
    """A convolution without bias that keeps T, and H and W but for its stride."""
    padding = (size[0] // 2, size[1] // 2, size[2] // 2)
    return nn.Conv3d(inside, outside, size, (1, stride, stride), padding, groups=groups, bias=False)


def pointwise(inside: int, outside: int, *, stride: int = 1) -> nn.Conv3d:
    """1 x 1 x 1."""
    return convolution(inside, outside, (1, 1, 1), stride=stride)


class X3D(nn.Module):
    """pixels (B, 3, T, H, W) -> logits (B, classes); `blocks` are stem, four stages and head.

    Weights start as in the paper: He et al.'s for convolutions, and 0 for the last norm of every residual block.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stages, width = [], WIDTHS["res2"]
        for name in DEPTHS:
            stages.append(Stage(name, width))
            width = WIDTHS[name]
        self.blocks = nn.ModuleList([Stem(WIDTHS["res2"]), *stages, Head(width, INNER["res5"], num_classes)])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm_c.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, T, H, W) -> logits (B, classes)."""
        for block in self.blocks:
            pixels = block(pixels)
        return pixels


class Stem(nn.Module):
    """A convolution over space, then one over time for each channel; their published names are the wrong way round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        space = convolution(3, width, (1, 3, 3), stride=2)
        time = convolution(width, width, (5, 1, 1), groups=width)
        self.conv = nn.Sequential(OrderedDict(conv_t=space, conv_xy=time))
        self.norm, self.activation = nn.BatchNorm3d(width), nn.ReLU()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, C, T, H / 2, W / 2)."""
        return self.activation(self.norm(self.conv(pixels)))


class Stage(nn.Module):
    """Residual blocks, of which the first halves H and W, and every other one looks at the whole clip."""

    def __init__(self, name: str, inside: int) -> None:
        super().__init__()
        outside = WIDTHS[name]
        self.res_blocks = nn.ModuleList(
            ResidualBlock(
                outside if place else inside,
                outside,
                INNER[name],
                stride=1 if place else 2,
                squeezed=0 if place % 2 else SQUEEZED[name],
            )
            for place in range(DEPTHS[name])
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H / 2, W / 2)."""
        for block in self.res_blocks:
            features = block(features)
        return features


class ResidualBlock(nn.Module):
    """A bottleneck and its shortcut; there is a norm in the shortcut where the number of channels changes."""

    def __init__(self, inside: int, outside: int, inner: int, *, stride: int, squeezed: int) -> None:
        super().__init__()
        changes = inside != outside
        self.branch1_conv = pointwise(inside, outside, stride=stride) if changes or stride > 1 else None
        self.branch1_norm = nn.BatchNorm3d(outside) if changes else None
        self.branch2 = Bottleneck(inside, outside, inner, stride=stride, squeezed=squeezed)
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, h, w)."""
        shortcut = features if self.branch1_conv is None else self.branch1_conv(features)
        shortcut = shortcut if self.branch1_norm is None else self.branch1_norm(shortcut)
        return self.activation(shortcut + self.branch2(features))


class Bottleneck(nn.Module):
    """To more channels, a depthwise 3 x 3 x 3 convolution, with squeeze-and-excitation where `squeezed`, and back."""

    def __init__(self, inside: int, outside: int, inner: int, *, stride: int, squeezed: int) -> None:
        super().__init__()
        self.conv_a, self.norm_a, self.act_a = pointwise(inside, inner), nn.BatchNorm3d(inner), nn.ReLU()
        self.conv_b = convolution(inner, inner, (3, 3, 3), stride=stride, groups=inner)
        gate = SqueezeExcitation(inner, squeezed) if squeezed else nn.Identity()
        self.norm_b, self.act_b = nn.Sequential(nn.BatchNorm3d(inner), gate), nn.SiLU()
        self.conv_c, self.norm_c = pointwise(inner, outside), nn.BatchNorm3d(outside)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, h, w)."""
        features = self.act_a(self.norm_a(self.conv_a(features)))
        features = self.act_b(self.norm_b(self.conv_b(features)))
        return self.norm_c(self.conv_c(features))


class SqueezeExcitation(nn.Module):
    """Each channel is weighed by what the means of all channels say (Hu et al., CVPR 2018)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        reduce, expand = nn.Conv3d(width, squeezed, 1), nn.Conv3d(squeezed, width, 1)
        self.block = nn.Sequential(reduce, nn.ReLU(), expand, nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same."""
        return features * self.block(features.mean((2, 3, 4), keepdim=True))


class ProjectedPool(nn.Module):
    """The mean over a clip of any size, between two layers that widen it."""

    def __init__(self, inside: int, inner: int, outside: int) -> None:
        super().__init__()
        self.pre_conv, self.pre_norm = pointwise(inside, inner), nn.BatchNorm3d(inner)
        self.pre_act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.post_conv, self.post_act = pointwise(inner, outside), nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', 1, 1, 1)."""
        found = self.pool(self.pre_act(self.pre_norm(self.pre_conv(features))))
        return self.post_act(self.post_conv(found))


class Head(nn.Module):
    """The classifier."""

    def __init__(self, inside: int, inner: int, num_classes: int) -> None:
        super().__init__()
        self.pool = ProjectedPool(inside, inner, HEAD)
        self.dropout, self.proj = nn.Dropout(0.5), nn.Linear(HEAD, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) -> logits (B, classes)."""
        return self.proj(self.dropout(self.pool(features).flatten(1)))
