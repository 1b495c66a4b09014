"""X3D's depthwise 3 x 3 x 3 convolution as a Triton kernel, with the folded norm's bias and, where nothing lies between
them, the swish behind it.

The convolution does 27 multiply-accumulates for each value that it writes, and a GPU could do hundreds in the time that
the value takes to and from memory: bytes decide. The least that has to move is

    B * T * (H * W + h * w) * C values    the input once, the output once (and 27 * C weights)

An unfused swish reads and writes the output once more. Each program makes one row of outputs for a block of channels
and walks along time: what it reads of a frame serves the frame before, this one and the next, so that an output takes 9
reads, not 27, and most of these are in a cache, because the neighbours ask for the same values.

How near it comes is for a GPU to say: `tools/bench.py runtime=gpu` with `runtime.kernels=true` and without. Off unless
asked for. Needs triton, which comes with torch's builds for CUDA; import this module only where it is wanted.

Letters: B clips, C channels, T frames, H x W pixels of the input, h x w of the output.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest value


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x,  # (B, T, H, W, C)
    weight,  # (27, C): time, row, column
    bias,  # (C,)
    out,  # (B, T, h, w, C)
    frames,
    height,
    width,
    out_height,
    out_width,
    groups,  # of TOGETHER channels; that their number is a multiple of it lets the compiler join their reads
    TOGETHER: tl.constexpr,
    STRIDE: tl.constexpr,
    SWISH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels = groups * TOGETHER
    clip = (tl.program_id(0) // out_height).to(tl.int64)  # 32 bits cannot count the values of a large batch
    row = tl.program_id(0) % out_height
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    added = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    source = x + clip * (frames * height * width * channels)
    target = out + clip * (frames * out_height * out_width * channels)
    # Sums of the frame before this one, of this one, and of the next.
    before = tl.full((COLUMNS, CHANNELS), 0.0, tl.float32)
    here = tl.full((COLUMNS, CHANNELS), 0.0, tl.float32)
    for frame in range(frames + 1):  # the last round only writes
        now = frame + 0 * column  # a block: Triton's interpreter does not join masks with numbers
        behind = tl.full((COLUMNS, CHANNELS), 0.0, tl.float32)
        for i in tl.static_range(3):
            for j in tl.static_range(3):
                y = row * STRIDE + i - 1 + 0 * column
                z = column * STRIDE + j - 1
                inside = (now < frames) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
                place = ((now * height + y) * width + z)[:, None] * channels + channel[None, :]
                seen = tl.load(source + place, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
                taps = weight + (3 * i + j) * channels + channel
                behind += seen * tl.load(taps, mask=real, other=0.0).to(tl.float32)[None, :]
                here += seen * tl.load(taps + 9 * channels, mask=real, other=0.0).to(tl.float32)[None, :]
                before += seen * tl.load(taps + 18 * channels, mask=real, other=0.0).to(tl.float32)[None, :]
        value = before + added[None, :]
        if SWISH:
            value = value / (1.0 + tl.exp(-value))
        place = (((now - 1) * out_height + row) * out_width + column)[:, None] * channels + channel[None, :]
        written = ((now > 0) & (column < out_width))[:, None] & real[None, :]
        tl.store(target + place, value.to(out.dtype.element_ty), mask=written)
        before = here
        here = behind


def _empty_like_output(x: Tensor, stride: int) -> Tensor:
    batch, channels, frames, height, width = x.shape
    size = (batch, channels, frames, (height - 1) // stride + 1, (width - 1) // stride + 1)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


# A custom operator, so that torch.compile takes it as it is; its schema is spelled out for older versions of torch.
@torch.library.custom_op(
    "video_papr::depthwise",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, int stride, bool swish) -> Tensor",
)
def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, swish: bool) -> Tensor:
    """A depthwise 3 x 3 x 3 convolution with padding 1, and swish if asked for. Sums are kept in float32.

    Args:
        x: (B, C, T, H, W) in float32, bfloat16 or float16; other layouts than channels-last are copied first.
        weight: (C, 1, 3, 3, 3), of any of these types, as bias.
        bias: (C,)
        stride: over rows and columns; over time it is 1.

    Returns:
        (B, C, T, h, w), channels last, of x's type.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    out = _empty_like_output(x, stride)
    if not out.numel():
        return out
    _, channels, frames, height, width = x.shape
    batch, _, _, out_height, out_width = out.shape
    columns = min(16, triton.next_power_of_2(out_width))
    block = min(64, triton.next_power_of_2(channels))
    grid = (batch * out_height, triton.cdiv(out_width, columns), triton.cdiv(channels, block))
    taps = weight.flatten(1).t().contiguous()  # so that neighbouring channels lie side by side
    together = math.gcd(channels, 8)
    sizes = (frames, height, width, out_height, out_width, channels // together)
    options = {"STRIDE": stride, "SWISH": swish, "COLUMNS": columns, "CHANNELS": block, "TOGETHER": together}
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _kernel[grid](x, taps, bias, out, *sizes, **options)
    return out


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, stride: int, swish: bool) -> Tensor:
    return _empty_like_output(x, stride)


@register_flop_formula(torch.ops.video_papr.depthwise)
def _flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * 27 * math.prod(out_shape)


@cache
def fault(device: torch.device) -> str | None:
    """Why the kernel is not to be used on a device, in a few words; None: it gives what torch gives.

    Compared once, on the processor in float64, with both strides and every type of numbers.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((1, 70, 2, 2, 18), (70, 1, 3, 3, 3)))
    bias = torch.randn(70, generator=generator)
    for dtype, tolerance in TOLERANCES.items():
        given = [value.to(dtype) for value in (x, weight, bias)]
        for stride, swish in ((1, True), (2, False)):
            wide = [value.double() for value in given]
            expected = F.conv3d(wide[0], wide[1], wide[2], (1, stride, stride), 1, groups=70)
            expected = F.silu(expected) if swish else expected
            try:
                found = depthwise(*(value.to(device) for value in given), stride, swish).cpu().double()
            except Exception as error:  # whatever a compiler, a driver or a GPU of another make may say
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            apart = ((found - expected).abs().max() / expected.abs().max()).item()
            if not apart <= tolerance:
                return f"differs from torch by {apart:.1g} in {dtype}, stride {stride}"
    return None
