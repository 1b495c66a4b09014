"""Triton's kernel on a processor, by Triton's interpreter, against torch. `test_depthwise_triton.py` runs this file.

A process of its own, because Triton decides between compiler and interpreter when it is imported.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from video_papr.pruning.kernels.depthwise_triton import TOLERANCES, depthwise, fault


def reference(x: Tensor, weight: Tensor, bias: Tensor, stride: int, swish: bool) -> Tensor:
    channels, strides = x.shape[1], (1, stride, stride)
    out = F.conv3d(x.double(), weight.double(), bias.double(), strides, 1, groups=channels)
    return F.silu(out) if swish else out


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2),
    st.sampled_from([1, 2, 5, 54, 70]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 16, 17]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from(list(TOLERANCES)),
    st.booleans(),
)
def convolution_is_that_of_torch(
    batch: int,
    channels: int,
    frames: int,
    height: int,
    width: int,
    stride: int,
    swish: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    x = torch.randn(batch, channels, frames, height, width).to(dtype)
    weight, bias = torch.randn(channels, 1, 3, 3, 3), torch.randn(channels)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    found = depthwise(x, weight, bias, stride, swish)  # weights in float32, as autocast leaves them
    expected = reference(x, weight, bias, stride, swish)
    assert found.dtype == dtype and found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    if found.numel():
        apart = (found.double() - expected).abs().max() / expected.abs().max()
        assert apart <= TOLERANCES[dtype], apart


def operator_is_fit_for_the_compiler() -> None:
    x = torch.randn(2, 5, 2, 4, 3).contiguous(memory_format=torch.channels_last_3d)
    given = (x, torch.randn(5, 1, 3, 3, 3), torch.randn(5), 2, True)
    torch.library.opcheck(depthwise, given, test_utils=("test_schema", "test_faketensor"))
    whole = torch.compile(lambda: depthwise(*given) + 1, backend="eager", fullgraph=True)
    assert torch.equal(whole(), depthwise(*given) + 1)
    with FlopCounterMode(display=False) as counter:
        depthwise(*given)
    ours = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        F.conv3d(*given[:3], stride=(1, 2, 2), padding=1, groups=5)
    assert ours == counter.get_total_flops() > 0


def self_check_passes_and_notices() -> None:
    assert fault(torch.device("cpu")) is None
    fault.cache_clear()
    TOLERANCES[torch.float32] = 0.0
    found = fault(torch.device("cpu"))
    assert found is not None and "differs from torch" in found and "float32" in found, found


if __name__ == "__main__":
    convolution_is_that_of_torch()
    operator_is_fit_for_the_compiler()
    self_check_passes_and_notices()
    print("all agree")
