"""VideoMAE against independent references: a masked dense forward pass, Conv3d, numpy tables, and transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from video_papr.backbones.builders import build_backbone
from video_papr.backbones.layers import TubeletEmbed, flat_positions, space_time_positions
from video_papr.backbones.videomae import VideoMAE
from video_papr.core.errors import ConfigError
from video_papr.core.pixels import normalize_pixels
from video_papr.core.types import TokenGrid

HEADS = 3


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter anew, large enough that attention is far from uniform and biases matter; float64, eval."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval().requires_grad_(False)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.25
        value.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model


def small(positions: str = "flat") -> VideoMAE:
    """Grid 2 x 4 x 4, three blocks, float64."""
    model = VideoMAE(
        num_classes=5,
        num_frames=4,
        input_size=32,
        tubelet=(2, 8, 8),
        dim=24,
        depth=3,
        num_heads=HEADS,
        positions=positions,
    )
    return shaken(model)  # type: ignore[return-value]


def clip(model: VideoMAE, batch: int = 2, seed: int = 0) -> Tensor:
    shape = (batch, 3, model.num_frames, model.input_size, model.input_size)
    dtype = next(model.parameters()).dtype
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def subset(batch: int, num_tokens: int, count: int, seed: int = 0) -> Tensor:
    order = torch.rand(batch, num_tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order[:, :count].sort(1).values


def masked_dense(model: VideoMAE, pixels: Tensor, keep_idx: Tensor) -> Tensor:
    """All tokens go through every block; dropped ones are barred from attention as keys and left out of the mean."""
    kernel = model.patch_embed.proj.weight.view(-1, 3, *model.patch_embed.tubelet)
    tokens = F.conv3d(pixels, kernel, model.patch_embed.proj.bias, stride=model.patch_embed.tubelet)
    tokens = tokens.flatten(2).transpose(1, 2) + model.positions
    batch, count, dim = tokens.shape
    kept = torch.zeros(batch, count, dtype=torch.bool).scatter_(1, keep_idx, True)
    bar = torch.zeros(batch, 1, 1, count, dtype=pixels.dtype).masked_fill_(
        ~kept[:, None, None], float("-inf")
    )
    for block in model.blocks:
        attn = block.attn
        qkv = attn.qkv(block.norm1(tokens)).view(batch, count, 3, HEADS, dim // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weight = (query @ key.transpose(-1, -2) / math.sqrt(dim // HEADS) + bar).softmax(-1)
        tokens = tokens + attn.proj((weight @ value).transpose(1, 2).reshape(batch, count, dim))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))
    mean = (tokens * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
    return model.head(model.fc_norm(mean))


@pytest.mark.parametrize("positions", ["flat", "space_time"])
@pytest.mark.parametrize("count", [1, 7, 31, 32])
def test_pruned_logits_equal_the_dense_model_with_dropped_tokens_masked_out(
    count: int, positions: str
) -> None:
    model = small(positions)
    pixels, keep_idx = clip(model, 3), subset(3, 32, count)
    expected = masked_dense(model, pixels, keep_idx)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(pixels, keep_idx), expected, rtol=0, atol=1e-9)


def test_keeping_all_tokens_gives_the_dense_logits() -> None:
    model = build_backbone("videomae_tiny")
    pixels = clip(model)
    everything = torch.arange(model.grid.num_tokens).expand(2, -1)
    torch.testing.assert_close(model(pixels, everything), model(pixels), rtol=0, atol=1e-6)


def test_what_is_dropped_does_not_matter_and_what_is_kept_does() -> None:
    model = small()
    pixels, keep_idx = clip(model, 1), torch.tensor([[0, 5, 31]])
    changed = pixels.clone()
    changed[:, :, 2:, :8, 8:16] += 100  # token 1 * 16 + 0 * 4 + 1 = 17
    assert torch.equal(model(changed, keep_idx), model(pixels, keep_idx))
    kept = torch.tensor([[0, 17, 31]])
    assert not torch.allclose(model(changed, kept), model(pixels, kept))


def test_logits_do_not_depend_on_batch_neighbours() -> None:
    model = build_backbone("videomae_tiny")
    pixels, keep_idx = clip(model, 4), subset(4, model.grid.num_tokens, 77)
    for chosen in (None, keep_idx):
        alone = [model(pixels[i : i + 1], None if chosen is None else chosen[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(model(pixels, chosen), torch.cat(alone), rtol=0, atol=1e-5)


def test_any_memory_layout_of_the_pixels_will_do() -> None:
    model = small()
    pixels, keep_idx = clip(model), subset(2, 32, 9)
    frames_first = pixels.transpose(1, 2).contiguous().transpose(1, 2)
    channels_last = pixels.contiguous(memory_format=torch.channels_last_3d)
    for layout in (frames_first, channels_last):
        assert not layout.is_contiguous()
        torch.testing.assert_close(model(layout, keep_idx), model(pixels, keep_idx), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_give_the_logits_of_normalised_pixels(dtype: torch.dtype) -> None:
    """To the last bit: with all tokens, with some, and with some of several clips in one row."""
    model = build_backbone("videomae_tiny").to(dtype)
    frames = torch.randint(0, 256, (2, model.num_frames, *model.frame_size, 3), dtype=torch.uint8)
    pixels = normalize_pixels(frames, mean=model.mean, std=model.std, dtype=dtype)
    planes, keep_idx = frames.movedim(-1, 1), subset(2, model.grid.num_tokens, 31)
    valid = torch.arange(31).expand(2, -1) < torch.tensor([[20], [31]])
    for kept in (None, keep_idx):
        assert torch.equal(model(planes, kept), model(pixels, kept))
    packed = model.forward_packed(planes, keep_idx, valid)
    assert torch.equal(packed, model.forward_packed(pixels, keep_idx, valid))


# ---- the tubelet embedding ----


@settings(max_examples=40, deadline=None)
@given(
    tubelet=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 3),
    data=st.data(),
)
def test_tubelet_embedding_equals_conv3d(
    tubelet: tuple[int, int, int], grid: tuple[int, int, int], channels: int, data: st.DataObject
) -> None:
    embed = TubeletEmbed(tubelet, 5, in_channels=channels).double()
    convolution = nn.Conv3d(channels, 5, tubelet, tubelet).double()
    with torch.no_grad():
        convolution.weight.copy_(embed.proj.weight.view_as(convolution.weight))
        convolution.bias.copy_(embed.proj.bias)  # type: ignore[union-attr]
    sides = [n * p for n, p in zip(grid, tubelet, strict=True)]
    pixels = torch.randn(2, channels, *sides, dtype=torch.float64)
    expected = convolution(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(pixels), expected, rtol=0, atol=1e-12)
    num_tokens = math.prod(grid)
    count = data.draw(st.integers(1, num_tokens))
    keep_idx = subset(2, num_tokens, count, seed=count)
    kept = expected.gather(1, keep_idx[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(embed(pixels, keep_idx), kept, rtol=0, atol=1e-12)


# ---- positions ----


@pytest.mark.parametrize(("shape", "dim"), [((2, 4, 4), 24), ((8, 14, 14), 64), ((3, 1, 5), 7)])
def test_flat_positions_follow_the_formula(shape: tuple[int, int, int], dim: int) -> None:
    table = flat_positions(TokenGrid(*shape), dim)
    assert table.shape == (1, math.prod(shape), dim)
    assert table.dtype == torch.float32
    expected = np.empty((math.prod(shape), dim))
    for token in range(len(expected)):
        for channel in range(dim):
            angle = token / 10000 ** (2 * (channel // 2) / dim)
            expected[token, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    np.testing.assert_allclose(table[0].numpy(), expected, rtol=0, atol=1e-7)


def test_space_time_positions_tell_every_token_apart_axis_by_axis() -> None:
    table = space_time_positions(TokenGrid(4, 8, 8), 192).view(4, 8, 8, 192)
    assert len(table.flatten(0, 2).unique(dim=0)) == 256
    for axis, part in enumerate(table.split(64, dim=-1)):  # each third knows its own axis and no other
        rest = [other for other in range(3) if other != axis]
        torch.testing.assert_close(part, part.mean(rest, keepdim=True).expand_as(part), rtol=0, atol=1e-6)
        line = part.movedim(axis, 0)[:, 0, 0]
        assert (torch.cdist(line, line) + torch.eye(len(line)) > 0.3).all()
    with pytest.raises(ValueError, match="divisible by 6, got 16"):
        space_time_positions(TokenGrid(1, 1, 1), 16)


def test_larger_clips_divide_the_same_space_and_time() -> None:
    """The middle of every three tokens lies where one token of a clip a third as large lies."""
    fine = space_time_positions(TokenGrid(12, 24, 24), 192).view(12, 24, 24, 192)
    coarse = space_time_positions(TokenGrid(4, 8, 8), 192).view(4, 8, 8, 192)
    torch.testing.assert_close(fine[1::3, 1::3, 1::3], coarse, rtol=0, atol=1e-6)


# ---- transformers' implementation ----


def test_position_table_equals_that_of_transformers() -> None:
    reference = pytest.importorskip("transformers.models.videomae.modeling_videomae")
    expected = reference.get_sinusoid_encoding_table(1568, 96)
    torch.testing.assert_close(flat_positions(TokenGrid(8, 14, 14), 96), expected, rtol=0, atol=1e-7)


def test_logits_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=96,
        num_labels=5,
        # VideoMAE was trained with 1e-6. The library's defaults are 1e-12 in the blocks, and torch's 1e-5 in fc_norm,
        # which no key reaches; all three give the same classes, but not the same ninth decimal.
        layer_norm_eps=1e-6,
    )
    reference = shaken(transformers.VideoMAEForVideoClassification(config))
    reference.fc_norm.eps = 1e-6
    own = small()
    state = reference.state_dict()
    mapped = {
        "patch_embed.proj.weight": state["videomae.embeddings.patch_embeddings.projection.weight"].flatten(1),
        "patch_embed.proj.bias": state["videomae.embeddings.patch_embeddings.projection.bias"],
        "fc_norm.weight": state["fc_norm.weight"],
        "fc_norm.bias": state["fc_norm.bias"],
        "head.weight": state["classifier.weight"],
        "head.bias": state["classifier.bias"],
    }
    for number in range(3):
        theirs, ours = f"videomae.encoder.layer.{number}.", f"blocks.{number}."
        attention = theirs + "attention.attention."
        parts = [state[f"{attention}{part}.weight"] for part in ("query", "key", "value")]
        mapped[ours + "attn.qkv.weight"] = torch.cat(parts)
        biases = [state[f"{attention}query.bias"], torch.zeros(24), state[f"{attention}value.bias"]]
        mapped[ours + "attn.qkv.bias"] = torch.cat([bias.double() for bias in biases])
        for their_name, our_name in {
            "attention.output.dense": "attn.proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
        }.items():
            for kind in ("weight", "bias"):
                mapped[f"{ours}{our_name}.{kind}"] = state[f"{theirs}{their_name}.{kind}"]
    own.load_state_dict(mapped)
    pixels = clip(own)
    expected = reference(pixel_values=pixels.transpose(1, 2)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(own(pixels), expected, rtol=0, atol=1e-9)


# ---- sizes, and building by name ----


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_every_clip_that_the_tubelets_divide(frames: int, cells: int) -> None:
    model = build_backbone("videomae_tiny", num_frames=4 * frames, input_size=8 * cells)
    assert model.grid.shape == (frames, cells, cells)
    assert model(clip(model, 1), torch.tensor([[model.grid.num_tokens - 1]])).shape == (1, 12)
    assert model(clip(model, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_frames": 18}, "backbone.num_frames=18 must be a positive multiple of the tubelet's 4"),
        ({"num_frames": 0}, "backbone.num_frames=0 must be a positive multiple of the tubelet's 4"),
        ({"input_size": 60}, "backbone.input_size=60 must be a positive multiple of the tubelet's 8"),
        ({"input_size": -8}, "backbone.input_size=-8 must be a positive multiple of the tubelet's 8"),
    ],
)
def test_clip_that_the_tubelets_do_not_divide(options: dict[str, int], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone("videomae_tiny", **options)  # type: ignore[arg-type]
    assert str(caught.value) == line


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 40), (2, 1, 4, 32, 32), (3, 4, 32, 32), (2, 4, 3, 32, 32)])
def test_pixels_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pixels must be \(B, 3, 4, 32, 32\), got \(") as caught:
        small()(torch.zeros(shape, dtype=torch.float64))
    assert str(shape) in str(caught.value)


def test_published_sizes() -> None:
    with torch.device("meta"):  # shapes without memory
        counts = {
            name: sum(p.numel() for p in build_backbone(name).parameters()) / 1e6
            for name in ("videomae_s", "videomae_b", "videomae_l", "videomae_h")
        }
    # VideoMAE, table 9 and appendix: 22 M, 87 M, 305 M, 633 M with a head of 400 classes.
    assert counts == pytest.approx(
        {"videomae_s": 22, "videomae_b": 87, "videomae_l": 305, "videomae_h": 633}, rel=0.01
    )


def test_seed_decides_random_weights_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build_backbone("videomae_tiny", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())


def test_unknown_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^backbone='videomae_bb' is unknown; .*Did you mean 'videomae_b'\?$"
    ):
        build_backbone("videomae_bb")
