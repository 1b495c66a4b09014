"""Prompts for a Qwen-VL whose vision tower is pruned: the placeholders of dropped video tokens are taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .prune import kept_tokens
from .qwen_vl import CHOSEN, kept_cells

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")


def shorten_prompt(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a processor made for a Qwen-VL -> the same for the model with a pruned tower, for its call or `generate`.

    The tower runs here, and its features travel in `mm_encoder_outputs`. Text and kept video tokens keep the positions
    of the full prompt (M-RoPE), which travel in `position_ids`.

    Args:
        model: a `...ForConditionalGeneration` whose `model.model.visual` is pruned.
        inputs: `input_ids` and `attention_mask` (B, L), `pixel_values_videos`, `video_grid_thw` and the rest of what
            the processor gives; `labels` (B, L) if there are any. Without videos it is
            given back as it is.

    Raises:
        ConfigError: the tower is not pruned.
        ValueError: the prompts have other placeholders than the videos need, or would differ in length.
    """
    base, given = model.model, dict(inputs)
    if given.get("pixel_values_videos") is None:
        return given
    ids, grid_thw, videos = given["input_ids"], given["video_grid_thw"], given.pop("pixel_values_videos")
    videos, unit = videos.type(base.visual.dtype), base.visual.spatial_merge_size**2
    chosen: Any = kept_tokens(base.visual, videos, grid_thw)  # one for each video
    kept = kept_cells(chosen, grid_thw, unit)
    stays = ids != base.config.video_token_id
    if int((~stays).sum()) != len(kept):
        raise ValueError(
            f"input_ids have {int((~stays).sum())} video tokens, and the videos need {len(kept)}"
        )
    given.setdefault("mm_token_type_ids", 2 * ~stays + (ids == base.config.image_token_id).int())
    positions, _ = base.get_rope_index(**given)
    stays[~stays] = kept.to(stays.device)
    if len(set(stays.sum(1).tolist())) > 1:
        raise ValueError("prompts of a batch must lose equally many tokens; give one at a time")
    short = {name: given[name][stays].view(len(ids), -1) for name in PER_TOKEN if name in given}
    counts = [int(part.sum()) for part in kept.split((grid_thw.prod(1) // unit).tolist())]
    seen = base.visual(videos, grid_thw=grid_thw, return_dict=True, **{CHOSEN: chosen})
    seen.pooler_output = seen.pooler_output.split(counts)
    if "deepstack_features" in seen:
        seen.deepstack_features = [features.split(counts) for features in seen.deepstack_features]
    encoded = {"video": seen}
    if given.get("pixel_values") is not None:
        encoded["image"] = base.get_image_features(
            given["pixel_values"], given["image_grid_thw"], return_dict=True
        )
    return {**short, "position_ids": positions[:, stays].view(3, len(ids), -1), "mm_encoder_outputs": encoded}
