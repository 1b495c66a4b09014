"""How time grows beside the operations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_papr.benchmark.growth import exponent, growth, growth_text
from video_papr.benchmark.plots import growth_plot, speedup_plot


def setting(
    frames: int = 16, size: int = 224, batch: int = 1, backbone: str = "videomae_s"
) -> dict[str, Any]:
    """A made-up machine: dense takes its GMACs in ms, x3d_s a fixed 5 ms more than a third of them."""
    gmacs = frames * size**2 / 1e4
    variants = [("dense", gmacs, gmacs * batch), ("x3d_s 0.3", gmacs / 3, gmacs * batch / 3 + 5)]
    return {
        "backbone": backbone,
        "dtype": "fp32",
        "num_frames": frames,
        "input_size": size,
        "batch_size": batch,
        "variants": [
            {
                "name": name,
                "kind": "dense",
                "gmacs": count,
                "latency_ms": {"median": ms},
                "peak_memory_mb": 10.0 * batch,
            }
            for name, count, ms in variants
        ],
    }


STAR = [
    setting(),
    setting(frames=32),
    setting(frames=8),
    setting(size=112),
    setting(batch=4),
    setting(batch=2),
]


@given(
    st.lists(st.floats(0.1, 1e4), min_size=2, max_size=6, unique_by=lambda value: round(value, 1)),
    st.floats(0.1, 3),
    st.floats(0.01, 100),
)
def test_power_is_found(counts: list[float], power: float, scale: float) -> None:
    assert exponent(counts, [scale * count**power for count in counts]) == pytest.approx(power, abs=1e-6)


def test_nothing_grows() -> None:
    with pytest.raises(ValueError, match="nothing grows"):
        exponent([2.0, 2.0], [1.0, 3.0])


def test_each_line_varies_one_thing() -> None:
    found = {(one["axis"], one["variant"]): one for one in growth(STAR)}
    assert set(found) == {
        (axis, name) for axis in ("num_frames", "input_size", "batch_size") for name in ("dense", "x3d_s 0.3")
    }
    dense = found["num_frames", "dense"]
    assert dense["values"] == [8, 16, 32] and dense["gmacs"] == dense["ms"] == sorted(dense["gmacs"])
    assert all(found[axis, "dense"]["exponent"] == pytest.approx(1) for axis, _ in found)
    assert all(found[axis, "x3d_s 0.3"]["exponent"] < 1 for axis, _ in found)  # the scorer is a fixed price
    assert found["batch_size", "dense"]["peak_memory_mb"] == [10, 20, 40]


def test_backbones_have_lines_of_their_own_and_single_values_none() -> None:
    found = growth([setting(), setting(batch=2), setting(backbone="vivit_b")])
    assert {(one["backbone"], one["axis"]) for one in found} == {("videomae_s", "batch_size")}
    assert growth([setting()]) == [] and growth_plot([]) is None


def test_table_and_picture() -> None:
    text = growth_text(growth(STAR))
    assert (
        "| videomae_s fp32, clips in a batch: 1, 2, 4 | dense | 80.3, 160.6, 321.1 | 80.3, 160.6, 321.1 | 1.00 |"
        in text
    )
    picture = growth_plot(growth(STAR))
    assert picture is not None and picture.startswith(b"\x89PNG")
    assert speedup_plot([{"growth": growth(STAR), "settings": STAR}]) is None
