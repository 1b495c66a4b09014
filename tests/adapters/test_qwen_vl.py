"""`prune` on the towers of Qwen-VL, and shortened prompts, against the same models with dropped tokens barred."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

import video_papr as vp
from video_papr.core.errors import ConfigError

from .conftest import GRIDS, TOWERS, build_qwen, draw_patches

transformers = pytest.importorskip("transformers")


@pytest.fixture(params=TOWERS)
def model(request: pytest.FixtureRequest) -> Any:
    return build_qwen(request.param)


def kept_features(tower: Any, patches: Tensor, grids: Tensor) -> Tensor:
    """(features,) bool: those that stay, image and videos one behind the other."""
    chosen = vp.kept_tokens(tower, patches, grids)
    assert isinstance(chosen, dict) and 1 not in chosen  # the image
    kept = [
        chosen[i].mask().flatten() if i in chosen else torch.ones(n // 4) for i, n in enumerate(grids.prod(1))
    ]
    return torch.cat(kept).bool()


def masked_tower(tower: Any, patches: Tensor, kept: Tensor) -> Any:
    """Every patch goes through every block; those of dropped features are barred from attention as keys."""
    rows = kept.repeat_interleave(4)
    if hasattr(tower, "window_size"):  # its blocks see the patches window by window
        from transformers.vision_utils import get_vision_window_index

        order, _ = get_vision_window_index(GRIDS, 2, tower.window_size, 4)
        rows = rows.view(-1, 4)[order].flatten()

    def attend(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        cos, sin = (part.unsqueeze(1) for part in kwargs["position_embeddings"])
        query, key, value = rearrange(module.qkv(args[0]), "n (x h d) -> x n h d", x=3, h=module.num_heads)

        def turned(x: Tensor) -> Tensor:
            first, second = x.float().chunk(2, -1)  # its rotary positions are in fp32
            return (x.float() * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)

        piece = torch.bucketize(torch.arange(len(rows)), kwargs["cu_seqlens"].long(), right=True)
        weights = torch.einsum("nhd,mhd->hnm", turned(query), turned(key)) / query.shape[-1] ** 0.5
        weights = weights.masked_fill(~(piece[:, None].eq(piece) & rows), float("-inf")).softmax(-1)
        joined = torch.einsum("hnm,mhd->nhd", weights.nan_to_num(), value)  # NaN: nothing of a piece is kept
        return module.proj(joined.flatten(1))

    dense = copy.deepcopy(tower)
    for block in dense.blocks:
        block.attn.register_forward_hook(attend, with_kwargs=True)
    return dense(patches, grid_thw=GRIDS)


@pytest.mark.parametrize("pruner", ["motion", "random"])
@torch.no_grad()
def test_features_are_those_of_the_masked_tower(model: Any, pruner: str) -> None:
    tower, patches = model.model.visual.double(), draw_patches().double()
    reference, dense = copy.deepcopy(tower), tower(patches, grid_thw=GRIDS).pooler_output
    everything = masked_tower(reference, patches, torch.ones(len(dense), dtype=torch.bool)).pooler_output
    assert torch.allclose(everything, dense, atol=1e-9)  # the reference masks and changes nothing else
    vp.prune(tower, pruner, 0.3)
    kept = kept_features(tower, patches, GRIDS)
    assert [int(part.sum()) for part in kept.split((GRIDS.prod(1) // 4).tolist())] == [9, 4, 7]
    found, expected = tower(patches, grid_thw=GRIDS), masked_tower(reference, patches, kept)
    assert torch.allclose(found.pooler_output, expected.pooler_output[kept], atol=1e-9)
    for ours, theirs in zip(
        found.get("deepstack_features", ()), expected.get("deepstack_features", ()), strict=True
    ):
        assert torch.allclose(ours, theirs[kept], atol=1e-9)
    assert (found.pooler_output - dense[kept]).abs().max() > 1e-3
    alone = tower(
        patches[:128], GRIDS[:1]
    ).pooler_output  # by position, and without its neighbours in the row
    assert torch.allclose(alone, found.pooler_output[:9], atol=1e-9)


def test_brightest_cells_of_a_video_are_kept() -> None:
    """Through the processor's own way of cutting a video up, frames that are wider than high."""
    processor = transformers.Qwen2VLVideoProcessor(patch_size=4, do_resize=False, cap_pixels_per_frame=False)
    video = torch.full((4, 3, 16, 24), 40, dtype=torch.uint8)
    video[2:, :, 8:, 16:] = 200  # of the second pair of frames, the lower right corner but its left half
    cut = processor([video], return_tensors="pt")
    tower = build_qwen("Qwen2VL").model.visual
    vp.prune(tower, "brightness", 1 / 12, processor=processor)
    chosen = vp.kept_tokens(tower, cut["pixel_values_videos"], cut["video_grid_thw"])
    assert isinstance(chosen, dict)
    assert (chosen[0].grid.shape, chosen[0].keep_idx.tolist()) == (
        (2, 2, 3),
        [
            [
                11,
            ]
        ],
    )


def prompts(model: Any) -> dict[str, Tensor]:
    """Two prompts with a video and an image each; the first is padded on the left."""
    video = [92] + [91] * 24 + [93]
    if "Qwen3" in type(model).__name__:  # which says when each frame is
        video = ([7, 92] + [91] * 8 + [93]) * 3
    row = [5, *video, 6, 92, *[90] * 4, 93, 8]
    ids = torch.tensor([[1, 1, *row], [3, 4, *row]])
    grids, images = torch.tensor([[3, 4, 8]] * 2), torch.tensor([[1, 4, 4]] * 2)
    patches = torch.rand(192 + 32, 96, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    return {
        **{"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": ids},
        **{"mm_token_type_ids": (ids == 90) + 2 * (ids == 91).int()},
        **{"pixel_values_videos": patches[:192], "video_grid_thw": grids},
        **{"pixel_values": patches[192:], "image_grid_thw": images},
    }


@torch.no_grad()
def test_shortened_prompt_of_everything_is_the_prompt(model: Any) -> None:
    inputs = prompts(model.double())
    dense = model(**inputs)
    vp.prune(model.model.visual, "motion", 1.0)
    again = model(**vp.shorten_prompt(model, inputs))
    assert torch.equal(again.logits, dense.logits) and torch.equal(again.loss, dense.loss)


@torch.no_grad()
def test_logits_are_those_of_the_full_prompt_with_dropped_tokens_barred(model: Any) -> None:
    inputs = prompts(model.double())
    visual = vp.prune(model.model.visual, "motion", 0.3)
    short = vp.shorten_prompt(model, {k: v for k, v in inputs.items() if k != "mm_token_type_ids"})
    logits = model(**short).logits
    patches, grids = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    chosen: Any = vp.kept_tokens(visual, patches, grids)
    kept = torch.cat([chosen[number].mask().flatten() for number in (0, 1)])
    encoded = copy.deepcopy(short["mm_encoder_outputs"])
    video = encoded["video"]

    def spread(features: tuple[Tensor, ...]) -> list[Tensor]:
        table = torch.full((48, 24), 9.0, dtype=torch.float64)  # nothing reads these
        table[kept] = torch.cat(features)
        return [table]

    video.pooler_output = spread(video.pooler_output)
    if "deepstack_features" in video:
        video.deepstack_features = [spread(level) for level in video.deepstack_features]
    stays = inputs["input_ids"] != 91
    stays[~stays] = kept
    full = {k: v for k, v in inputs.items() if "pixel" not in k}
    positions, _ = model.model.get_rope_index(**full)
    full |= {"attention_mask": inputs["attention_mask"] * stays, "position_ids": positions}
    expected = model(**full, mm_encoder_outputs=encoded).logits[stays].view_as(logits)
    real = short["attention_mask"].bool()
    assert logits.shape[1] == inputs["input_ids"].shape[1] - 24 + 7
    assert torch.allclose(logits[real], expected[real], atol=1e-9)
    with pytest.raises(ValueError, match=r"^input_ids have 4[46] video tokens, and the videos need 48$"):
        vp.shorten_prompt(model, {**inputs, "input_ids": inputs["input_ids"][:, 6:]})


@torch.no_grad()
def test_generated_text_goes_on_from_the_shortened_prompt(model: Any) -> None:
    inputs = prompts(model)
    inputs = {k: v[:1] if v.dtype == torch.int64 else v.float()[: len(v) // 2] for k, v in inputs.items()}
    vp.prune(model.model.visual, "motion", 0.3)
    del inputs["labels"]
    short = vp.shorten_prompt(model, inputs)
    step, expected = dict(short), []
    for _ in range(4):  # without a cache; positions go on behind the last one
        token = model(**step).logits[:, -1:].argmax(-1)
        expected.append(token)
        further = {
            "input_ids": token,
            "attention_mask": torch.ones_like(token),
            "position_ids": step["position_ids"][..., -1:] + 1,
        }
        step |= {name: torch.cat([step[name], value], -1) for name, value in further.items()}
    found = model.generate(**short, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(found[:, short["input_ids"].shape[1] :], torch.cat(expected, 1))


def test_bad_input(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"wrapper; of a language model its vision tower\.$"):
        vp.prune(model, "motion")
    tower, patches = model.model.visual, draw_patches()
    with pytest.raises(ConfigError, match=r"^this .* is not pruned"):
        vp.shorten_prompt(model, prompts(model))
    vp.prune(tower, "motion", 0.3)
    with pytest.raises(ValueError, match=r"^patches must be \(128, 96\) for grid_thw=\[\[2, 8, 8\]\], got"):
        tower(patches, grid_thw=GRIDS[:1])
    with pytest.raises(ValueError, match=r"^patches say nothing about their videos; give grid_thw too$"):
        vp.kept_tokens(tower, patches)
    text = {"input_ids": torch.tensor([[5, 6]])}
    assert vp.shorten_prompt(model, text) == text
