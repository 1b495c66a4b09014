"""ViViT against a masked dense forward pass; its class token is always there. Parity: test_checkpoints.py."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from video_papr.backbones.builders import build_backbone, token_grid
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import ConfigError
from video_papr.pruning.tome import build_merger

SETTINGS = {
    "num_classes": 5,
    "num_frames": 4,
    "input_size": 32,
    "tubelet": (2, 8, 8),
    "dim": 24,
    "depth": 3,
    "num_heads": 3,
}
TOKENS = 32  # grid 2 x 4 x 4


@pytest.fixture(scope="module")
def model(hf: SimpleNamespace) -> ViViT:
    return hf.shake(ViViT(**SETTINGS)).double()  # type: ignore[arg-type]


def subset(batch: int, count: int, seed: int = 0) -> Tensor:
    order = torch.rand(batch, TOKENS, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order[:, :count].sort(1).values


def masked_dense(model: ViViT, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """All tokens go through every block; dropped ones are barred from attention as keys. The class token never is."""
    kernel = model.patch_embed.proj.weight.view(-1, 3, *model.patch_embed.tubelet)
    cells = F.conv3d(pixels, kernel, model.patch_embed.proj.bias, stride=model.patch_embed.tubelet)
    batch = len(pixels)
    tokens = torch.cat([model.cls_token.expand(batch, -1, -1), cells.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + model.positions
    kept = torch.zeros(batch, TOKENS, dtype=torch.bool).scatter_(1, keep_idx, True)
    kept = torch.cat([torch.ones(batch, 1, dtype=torch.bool), kept], 1)
    bar = torch.zeros(batch, 1, 1, 1 + TOKENS, dtype=pixels.dtype)
    bar = bar.masked_fill(~kept[:, None, None], float("-inf"))
    for block in model.blocks:
        attn = block.attn
        qkv = attn.qkv(block.norm1(tokens)).view(batch, 1 + TOKENS, 3, 3, 8)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weight = (query @ key.transpose(-1, -2) / math.sqrt(8) + bar).softmax(-1)
        tokens = tokens + attn.proj((weight @ value).transpose(1, 2).reshape(batch, 1 + TOKENS, 24))
        hidden = block.mlp.fc1(block.norm2(tokens))
        hidden = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        tokens = tokens + block.mlp.fc2(hidden)
    return model.head(model.norm(tokens)[:, 0])


@pytest.mark.parametrize("count", [1, 7, 31, 32])
def test_pruned_logits_equal_the_dense_model_with_dropped_tokens_masked_out(
    model: ViViT, hf: SimpleNamespace, count: int
) -> None:
    pixels, keep_idx = hf.clip(SETTINGS, 3).double(), subset(3, count)
    expected = masked_dense(model, pixels, keep_idx)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(pixels, keep_idx), expected, rtol=0, atol=1e-9)


def test_keeping_all_tokens_gives_the_dense_logits(model: ViViT, hf: SimpleNamespace) -> None:
    pixels = hf.clip(SETTINGS).double()
    torch.testing.assert_close(model(pixels, subset(2, TOKENS)), model(pixels), rtol=0, atol=1e-12)


def test_the_class_token_comes_first_and_is_not_counted(model: ViViT, hf: SimpleNamespace) -> None:
    pixels, keep_idx = hf.clip(SETTINGS).double(), subset(2, 5)
    assert model.grid.num_tokens == TOKENS
    dense, pruned = model.embed(pixels), model.embed(pixels, keep_idx)
    assert (dense.shape[1], pruned.shape[1]) == (1 + TOKENS, 1 + 5)
    assert torch.equal(pruned[:, 0], (model.cls_token + model.positions[:, :1])[:, 0].expand(2, -1))
    kept = dense[:, 1:].gather(1, keep_idx[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(pruned[:, 1:], kept, rtol=0, atol=1e-12)


def test_padded_clips_give_the_logits_of_each_clip_alone(model: ViViT, hf: SimpleNamespace) -> None:
    pixels, keep_idx = hf.clip(SETTINGS, 3).double(), subset(3, 9)
    counts = torch.tensor([9, 1, 4])
    valid = torch.arange(9) < counts[:, None]
    together = model(pixels, keep_idx, valid=valid)
    for clip, count in enumerate(counts.tolist()):
        alone = model(pixels[clip : clip + 1], keep_idx[clip : clip + 1, :count])
        torch.testing.assert_close(together[clip : clip + 1], alone, rtol=0, atol=1e-9)


def test_going_on_from_a_block_and_merging_leave_the_class_token_in_its_place(
    model: ViViT, hf: SimpleNamespace
) -> None:
    pixels, keep_idx = hf.clip(SETTINGS).double(), subset(2, 12)
    tokens = model.encode(model.embed(pixels, keep_idx), stop=2)
    torch.testing.assert_close(
        model(None, tokens=tokens, block=2), model(pixels, keep_idx), rtol=0, atol=1e-12
    )
    merged = model(pixels, keep_idx, merger=build_merger("tome", r=2))
    assert merged.shape == (2, 5)
    assert (
        torch.equal(model(pixels, keep_idx, merger=build_merger("tome", r=0)), model(pixels, keep_idx))
        or (model(pixels, keep_idx, merger=build_merger("tome", r=0)) - model(pixels, keep_idx)).abs().max()
        < 1e-9
    )


def test_published_size() -> None:
    with torch.device("meta"):
        model = build_backbone("vivit_b")
    assert model.grid.shape == token_grid("vivit_b").shape == (16, 14, 14)
    assert model.embed(torch.zeros(1, 3, 32, 224, 224, device="meta")).shape == (1, 3137, 768)
    # 85.1 M in the blocks, 3.6 M for tubelets and positions, 0.3 M for 400 classes
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(88.95, abs=0.1)


def test_clips_and_pixels_that_do_not_fit(model: ViViT) -> None:
    with pytest.raises(
        ConfigError, match=r"^backbone\.num_frames=31 must be a positive multiple of the tubelet's 2$"
    ):
        build_backbone("vivit_b", num_frames=31)
    with pytest.raises(ValueError, match=r"pixels must be \(B, 3, 4, 32, 32\), got \(2, 3, 8, 32, 32\)"):
        model(torch.zeros(2, 3, 8, 32, 32, dtype=torch.float64))
