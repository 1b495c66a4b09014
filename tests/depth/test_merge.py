"""Rows of layers and the one layer that replaces them agree to 1e-10 in float64; what cannot be merged is named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from video_papr.core.errors import MergeError
from video_papr.depth.merge import (
    add_shortcut,
    as_kernel,
    compose,
    to_conv3d,
    to_linear,
)


def norm(channels, seed, kind=nn.BatchNorm3d):
    """A batch norm with statistics, weights and an epsilon of its own, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    made = kind(channels, eps=0.05)
    for name, low in (("running_mean", -1.0), ("running_var", 0.3), ("weight", -1.5), ("bias", -1.0)):
        getattr(made, name).data.copy_(low + 2 * torch.rand(channels, generator=generator))
    return made.double().eval()


def named(*layers):
    return [(f"layer{number}", layer) for number, layer in enumerate(layers)]


def run(layers, x):
    for _, layer in layers:
        x = layer(x)
    return x


def agree(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


sizes = st.integers(1, 5)
strides = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, max_examples=40)
@given(
    into=sizes,
    middle=sizes,
    out=sizes,
    stride=strides,
    extent=st.tuples(*[st.sampled_from((1, 3))] * 3),
    clip=st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7)),
    bias=st.booleans(),
    shortcut=st.sampled_from(("none", "projection", "itself")),
    seed=st.integers(0, 999),
)
def test_bottleneck_is_one_convolution(into, middle, out, stride, extent, clip, bias, shortcut, seed):
    """Pointwise, depthwise, pointwise, each with its norm; every shape of shortcut. The padding is the first one's."""
    torch.manual_seed(seed)
    if shortcut == "itself":
        out, stride = into, (1, 1, 1)
    padding = tuple(k // 2 for k in extent)
    row = named(
        nn.Conv3d(into, middle, 1, padding=padding, bias=bias).double(),
        norm(middle, seed),
        nn.Identity(),
        nn.Conv3d(middle, middle, extent, stride=stride, groups=middle, bias=bias).double(),
        norm(middle, seed + 1),
        nn.Conv3d(middle, out, 1, bias=bias).double(),
        norm(out, seed + 2),
    )
    x = torch.randn(2, into, *clip, dtype=torch.float64)
    expected, kernel = run(row, x), compose(row)
    if shortcut == "projection":
        side = named(nn.Conv3d(into, out, 1, stride=stride, bias=bias).double(), norm(out, seed + 3))
        expected, kernel = expected + run(side, x), add_shortcut(kernel, compose(side), "block")
    elif shortcut == "itself":
        expected, kernel = expected + x, add_shortcut(kernel, None, "block")
    merged = to_conv3d(kernel)
    agree(merged(x), expected)
    assert merged.groups == 1 and merged.kernel_size == extent


@settings(deadline=None, max_examples=30)
@given(
    first=st.tuples(*[st.integers(1, 3)] * 3),
    second=st.tuples(*[st.integers(1, 3)] * 3),
    groups=st.sampled_from(((1, 1), (2, 1), (1, 2), (2, 4))),
    stride=strides,
    seed=st.integers(0, 999),
)
def test_any_two_kernels_with_any_groups(first, second, groups, stride, seed):
    torch.manual_seed(seed)
    row = named(
        nn.Conv3d(4, 8, first, padding=1, groups=groups[0]).double(),
        nn.Conv3d(8, 4, second, stride=stride, groups=groups[1]).double(),
    )
    x = torch.randn(1, 4, 5, 6, 7, dtype=torch.float64)
    merged = to_conv3d(compose(row))
    agree(merged(x), run(row, x))
    assert merged.kernel_size == tuple(a + b - 1 for a, b in zip(first, second, strict=True))


@settings(deadline=None, max_examples=30)
@given(dim=sizes, hidden=st.integers(1, 9), bias=st.booleans(), seed=st.integers(0, 999))
def test_linear_behind_linear_behind_norm_with_its_shortcut(dim, hidden, bias, seed):
    torch.manual_seed(seed)
    row = named(
        norm(dim, seed, nn.BatchNorm1d),
        nn.Linear(dim, hidden, bias=bias).double(),
        nn.Linear(hidden, dim, bias=bias).double(),
    )
    x = torch.randn(7, dim, dtype=torch.float64)
    merged = to_linear(add_shortcut(compose(row), None, "mlp"), "mlp")
    assert merged.weight.shape == (dim, dim)
    agree(merged(x), x + run(row, x))


def test_norm_without_weights_merges():
    plain = nn.BatchNorm3d(3, affine=False).double().eval()
    plain.running_mean.fill_(0.7)
    x = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64)
    agree(to_conv3d(compose(named(plain)))(x), plain(x))


CANNOT = {
    "layer1: GELU cannot be merged, because it is not linear": named(nn.Conv3d(2, 2, 1), nn.GELU()),
    "layer0: LayerNorm cannot": named(nn.LayerNorm(2), nn.Linear(2, 2)),
    "layer1: padding=(1, 1, 1) cannot be merged; all padding": named(
        nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 3, padding=1)
    ),
    "layer1: a kernel of (3, 3, 3) behind a stride": named(nn.Conv3d(2, 2, 1, stride=2), nn.Conv3d(2, 2, 3)),
    "layer0: dilation=(2, 2, 2) cannot be merged": named(nn.Conv3d(2, 2, 3, dilation=2)),
    "layer0: padding='same'": named(nn.Conv3d(2, 2, 3, padding="same")),
    "layer0: padding=(1, 1, 1) (circular)": named(nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular")),
    "layer1: reads 3 channels, the layer before it gives 2": named(nn.Conv3d(2, 2, 1), nn.Conv3d(3, 2, 1)),
    "layer0: a batch norm in training mode": named(nn.BatchNorm3d(2)),
    "layer0: a batch norm without running": named(nn.BatchNorm3d(2, track_running_stats=False).eval()),
    "there is no layer to merge": named(nn.Identity()),
}


@pytest.mark.parametrize("text", CANNOT)
def test_what_cannot_be_merged_is_named(text):
    with pytest.raises(MergeError) as caught:
        compose(CANNOT[text])
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_shortcuts_that_do_not_fit_are_named():
    wide = as_kernel(nn.Conv3d(2, 3, 3, padding=1), "conv")
    with pytest.raises(MergeError, match=r"^block: the shortcut gives 2 channels with stride \(1, 1, 1\)"):
        add_shortcut(wide, None, "block")
    bare = as_kernel(nn.Conv3d(2, 2, 3), "conv")
    with pytest.raises(MergeError, match=r"^block: a kernel of \(3, 3, 3\) with padding \(0, 0, 0\) changes"):
        add_shortcut(bare, None, "block")
    with pytest.raises(MergeError, match=r"^block: a shortcut of extent \(3, 3, 3\)"):
        add_shortcut(wide, wide, "block")
    with pytest.raises(MergeError, match=r"^mlp: a kernel of \(3, 3, 3\) is no linear layer"):
        to_linear(wide, "mlp")
