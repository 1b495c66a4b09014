"""Token merging against an implementation in plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from video_papr.backbones.blocks import run_blocks
from video_papr.core.errors import ConfigError
from video_papr.pruning.tome import ToMe, build_merger, match_tokens, merge_schedule, merge_tokens


def naive(
    tokens: list[Tensor], keys: list[Tensor], sizes: list[float], r: int, num_prefix: int
) -> tuple[list[Tensor], list[float]]:
    """One clip, one token after the other."""
    a = list(range(num_prefix, len(tokens), 2))
    b = list(range(num_prefix + 1, len(tokens), 2))
    edges = []
    for i in a:
        if b:
            near = [float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())) for j in b]
            best = max(range(len(b)), key=lambda n: near[n])
            edges.append((near[best], i, b[best]))
    edges.sort(key=lambda edge: -edge[0])
    groups = {i: [i] for i in range(len(tokens))}
    for _, i, j in edges[: min(r, (len(tokens) - num_prefix) // 2)]:
        groups[j].append(i)
        del groups[i]
    merged = []
    for group in groups.values():
        total = sum(sizes[i] for i in group)
        merged.append((sum((tokens[i] * sizes[i] for i in group), torch.zeros(())) / total, total))
    return [token for token, _ in merged], [total for _, total in merged]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=3),
    r=st.integers(0, 9),
    num_prefix=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_merging_equals_plain_loops_clip_by_clip(
    lengths: list[int], r: int, num_prefix: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, count = len(lengths), max(lengths) + num_prefix
    tokens = torch.randn(batch, count, 4, generator=generator, dtype=torch.float64)
    keys = torch.randn(batch, count, 3, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 5, (batch, count), generator=generator).double()
    sizes *= torch.arange(count) < torch.tensor(lengths)[:, None] + num_prefix
    target, length = match_tokens(keys, sizes, r, num_prefix=num_prefix)
    merged, totals = merge_tokens(tokens, sizes, target, length)
    assert merged.shape == (batch, length, 4)
    torch.testing.assert_close(totals.sum(1), sizes.sum(1))  # they go on standing for all tubelets
    for row, own in enumerate(lengths):
        n = own + num_prefix
        expected, sums = naive(
            list(tokens[row, :n]), list(keys[row, :n]), sizes[row, :n].tolist(), r, num_prefix
        )
        left = len(expected)
        assert left == n - min(r, own // 2)
        torch.testing.assert_close(merged[row, :left], torch.stack(expected), rtol=0, atol=1e-9)
        assert totals[row, :left].tolist() == sums
        assert (totals[row, left:] == 0).all()
        torch.testing.assert_close(merged[row, :num_prefix], tokens[row, :num_prefix])
        assert merged[row].isfinite().all()


def published(
    tokens: list[Tensor], keys: list[Tensor], sizes: list[float], r: int, num_prefix: int
) -> tuple[list[Tensor], list[float]]:
    """One clip as the authors' code has it: A and B are every other token from the first on, and A goes before B."""
    n, free = len(tokens), range(num_prefix, len(tokens))
    edges = []
    for i in (i for i in free if i % 2 == 0):
        near = {j: float(F.cosine_similarity(keys[i], keys[j], 0)) for j in free if j % 2}
        if near:
            best = max(near, key=lambda j: (near[j], -j))
            edges.append((near[best], i, best))
    edges.sort(key=lambda edge: -edge[0])
    r = min(r, (n - num_prefix) // 2)
    groups = {i: [i] for i in range(n)}
    for _, i, j in edges[:r]:
        groups[j].append(i)
        del groups[i]
    left = [i for _, i, _ in edges[r:]] or [i for i in free if i % 2 == 0 and i in groups]
    order = [*range(num_prefix), *(sorted(left) if num_prefix else left), *(j for j in free if j % 2)]
    totals = [sum(sizes[i] for i in groups[place]) for place in order]
    sums = [sum((tokens[i] * sizes[i] for i in groups[place]), torch.zeros(())) for place in order]
    return [one / total for one, total in zip(sums, totals, strict=True)], totals


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
@pytest.mark.parametrize("prop_attn", [True, False])
@torch.no_grad()
def test_the_published_order_through_several_blocks(num_prefix: int, prop_attn: bool) -> None:
    """Where tokens stand decides about the pairs of the next block: all outputs of four blocks are compared."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(16, 2, qkv_bias=True) for _ in range(4)).double().eval()
    for clip in torch.randn(20, num_prefix + 33, 16, dtype=torch.float64):
        x, sizes = clip, torch.ones(len(clip), dtype=torch.float64)
        for block in blocks:
            norm = block.norm1(x)
            q, k, v = block.attn.qkv(norm).view(len(x), 3, 2, 8).permute(1, 2, 0, 3)
            weights = (q @ k.transpose(1, 2) / 8**0.5).exp() * (sizes if prop_attn else 1)
            mixed = (weights / weights.sum(2, keepdim=True)) @ v
            x = x + block.attn.proj(mixed.transpose(0, 1).flatten(1))
            left, totals = published(list(x), list(k.mean(0)), sizes.tolist(), 5, num_prefix)
            x, sizes = torch.stack(left), torch.tensor(totals, dtype=torch.float64)
            x = x + block.mlp(block.norm2(x))
        merger = ToMe(5, prop_attn=prop_attn, order="published")
        found, counts = run_blocks(blocks, clip[None], merger=merger, num_prefix=num_prefix)
        torch.testing.assert_close(found[0], x, rtol=0, atol=1e-6)  # sizes are float32
        assert counts is not None and counts[0].tolist() == sizes.tolist()
    together = torch.stack([clip, clip.flip(0)])
    padded = torch.ones(2, len(clip))
    padded[1, -7:] = 0
    found, counts = run_blocks(blocks, together, sizes=padded, merger=merger, num_prefix=num_prefix)
    alone, own = run_blocks(blocks, together[1:, :-7], merger=merger, num_prefix=num_prefix)
    assert counts is not None and own is not None
    torch.testing.assert_close(found[1:, : alone.shape[1]], alone, rtol=0, atol=1e-6)
    assert counts[1].tolist() == [*own[0].tolist(), *[0] * (found.shape[1] - alone.shape[1])]


def test_tokens_with_equal_keys_and_with_none() -> None:
    tokens = torch.arange(8.0).view(1, 8, 1)
    for keys in (torch.zeros(1, 8, 3), torch.ones(1, 8, 3)):
        target, length = match_tokens(keys, torch.ones(1, 8), 2)
        merged, totals = merge_tokens(tokens, torch.ones(1, 8), target, length)
        assert merged.isfinite().all()
        assert totals.sum() == 8
        torch.testing.assert_close((merged[..., 0] * totals).sum(), tokens.sum())


@settings(deadline=None)
@given(r=st.integers(0, 200), depth=st.integers(2, 40))
def test_schedules_merge_about_as_many(r: int, depth: int) -> None:
    assert merge_schedule(r, depth) == (r,) * depth
    falling = merge_schedule(r, depth, "decreasing")
    assert list(falling) == sorted(falling, reverse=True)
    assert (falling[0], falling[-1]) == (2 * r, 0)
    assert r * depth - depth < sum(falling) <= r * depth
    assert merge_schedule(r, 1, "decreasing") == (r,)


def test_nothing_to_merge_gives_the_same_tensors_back() -> None:
    tokens, keys, sizes = torch.rand(1, 6, 4), torch.rand(1, 2, 6, 2), torch.ones(1, 6)
    found = ToMe(0)(tokens, keys, sizes, block=0, depth=2)
    assert found[0] is tokens and found[1] is sizes
    one = ToMe(3)(tokens[:, :2], keys[:, :, :2], sizes[:, :2], block=0, depth=2, num_prefix=1)
    assert torch.equal(one[0], tokens[:, :2])  # the class token and a single other one
    assert ToMe(3)(tokens, keys, sizes, block=0, depth=2)[0].shape == (1, 3, 4)
    assert ToMe(math.comb(9, 3))(tokens, keys, sizes, block=0, depth=2)[0].shape == (1, 3, 4)


WRONG = [
    (("tme", {}), "merger='tme' is unknown; use one of none, tome. Did you mean 'tome'?"),
    (("tome", {"r": -1}), "merger.r=-1 must be a whole number of at least 0 (tokens merged per block)"),
    (("tome", {"r": 1.5}), "merger.r=1.5 must be a whole number of at least 0 (tokens merged per block)"),
    (("tome", {"schedule": "up"}), "merger.schedule='up' is unknown; use one of constant, decreasing"),
    (("tome", {"order": "up"}), "merger.order='up' is unknown; use one of grid, published"),
]


@pytest.mark.parametrize(("call", "line"), WRONG, ids=lambda value: str(value))
def test_values_out_of_range(call: tuple[str, dict], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_merger(call[0], **call[1])
    assert str(caught.value) == line


def test_names() -> None:
    assert build_merger("none") is None
    assert build_merger("tome", r=3) == ToMe(3, "constant")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equally_similar_pairs_the_first_merge(dtype: torch.dtype) -> None:
    """Tokens that are all alike: the first r of A join the first of B."""
    keys, sizes = torch.ones(2, 9, 4, dtype=dtype), torch.ones(2, 9)
    target, length = match_tokens(keys, sizes, 2, num_prefix=1)
    assert length == 7
    # P A B A B A B A B: the As at 1 and 3 join the B at 2, which stands at place 1 then
    assert target.tolist() == [[0, 1, 1, 1, 2, 3, 4, 5, 6]] * 2


def test_a_merger_without_options_is_the_one_of_its_configuration() -> None:
    said: Any = OmegaConf.to_container(
        OmegaConf.load(Path(__file__).parents[2] / "conf" / "merger" / "tome.yaml")
    )
    assert build_merger("tome") == build_merger(**said)
