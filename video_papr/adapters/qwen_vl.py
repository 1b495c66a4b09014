"""The vision towers of Qwen-VL in transformers: patches are dropped before they are embedded. Experimental.

A tower reads the patches of several videos in one row, (N, C S P P), with their grids (videos, 3) in `grid_thw`. Its
merger joins M x M neighbours, whose patches lie side by side, into one feature: such a cell is kept or dropped as a
whole. All that a tower works out from `grid_thw` it also takes as arguments; here the full grid's are worked out, and
those of the dropped patches left out, so that the rest keep their positions, frames and windows.

Letters: N patches, M patches along each side of a cell, C channels, S frames and P x P pixels of a patch.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.pixels import Colors
from ..core.types import TokenGrid, TokenSelection
from .host import Family, Handle, Host, check_rgb
from .selector import Selector

CHOSEN = "video_papr_chosen"  # the keyword argument that gives a tower a choice which has been made already

# What the processors of the published weights do.
CLIP: tuple[Colors, Colors] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: tuple[Colors, Colors] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def open_model(model: Any, name: str) -> Host:
    """Describes a tower.

    Raises ConfigError: it does not read RGB, or this transformers works its positions out in another way.
    """
    config = model.config
    check_rgb(config.in_channels, name)
    if find_spec("transformers.vision_utils") is None:
        raise ConfigError(f"cannot prune this {name}: it takes transformers 5.20 or newer")
    depth, side = config.temporal_patch_size, config.patch_size * config.spatial_merge_size
    mean, std = HALF if name.startswith("Qwen3") else CLIP

    def attach(selector: Selector) -> list[Handle]:
        return [model.register_forward_pre_hook(partial(_drop, selector), with_kwargs=True)]

    return Host(
        name=name,
        home=model.patch_embed,
        grid=TokenGrid(2, 4, 4),
        clip=(2 * depth, 4 * side, 4 * side),
        mean=mean,
        std=std,
        attach=attach,
        unpack=partial(_unpack, depth, config.patch_size, config.spatial_merge_size),
    )


def _unpack(
    depth: int, size: int, merge: int, patches: Tensor, grid_thw: Tensor
) -> dict[int, tuple[Tensor, TokenGrid]]:
    """See `Host.unpack`. What has one frame of patches is an image, which stays whole."""
    counts = grid_thw.prod(1).tolist()
    if tuple(patches.shape) != (sum(counts), 3 * depth * size**2):
        raise ValueError(
            f"patches must be ({sum(counts)}, {3 * depth * size**2}) for grid_thw={grid_thw.tolist()}, got "
            f"{tuple(patches.shape)}"
        )
    found = {}
    for number, (rows, grid) in enumerate(zip(patches.split(counts), grid_thw.tolist(), strict=True)):
        frames, height, width = grid
        if frames > 1:
            cells = TokenGrid(frames, height // merge, width // merge)
            pixels = rearrange(
                rows,
                "(t h w i j) (c s p q) -> 1 (t s) c (h i p) (w j q)",
                **{"t": cells.frames, "h": cells.height, "i": merge, "j": merge},
                **{"c": 3, "s": depth, "p": size},
            )
            found[number] = pixels, cells
    return found


def _drop(
    selector: Selector, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before the pass of a tower: takes the patches of dropped cells out, and out of all that goes with them."""
    given = dict(zip(("hidden_states", "grid_thw"), args, strict=False)) | kwargs
    patches, grid_thw, unit = given["hidden_states"], given["grid_thw"], tower.spatial_merge_size**2
    chosen = given.pop(CHOSEN, None) or selector.of_videos(patches, grid_thw)
    rows = patches.split(grid_thw.prod(1).tolist())
    patches = torch.cat([chosen[n].blank(row) if n in chosen else row for n, row in enumerate(rows)])
    given["hidden_states"] = patches
    cells = kept_cells(chosen, grid_thw, unit)
    if not cells.all():
        cells = cells.to(patches.device)
        given.update(_around(tower, given, cells))
        given["hidden_states"] = patches[cells.repeat_interleave(unit)]
    return (), given


def kept_cells(chosen: dict[int, TokenSelection], grid_thw: Tensor, unit: int) -> Tensor:
    """(N / M^2,) bool, which cells of all videos are kept; images are kept whole."""
    counts = (grid_thw.prod(1) // unit).tolist()
    return torch.cat(
        [
            chosen[number].mask().flatten().cpu() if number in chosen else torch.ones(count, dtype=torch.bool)
            for number, count in enumerate(counts)
        ]
    )


def _around(tower: Any, given: dict[str, Any], cells: Tensor) -> dict[str, Tensor]:
    """What a tower works out from its grids, without the dropped cells; takes what is there already out of `given`."""
    from transformers import vision_utils as known

    grid_thw, merge = given["grid_thw"], tower.spatial_merge_size
    rows = cells.repeat_interleave(merge**2)
    found = {
        "position_ids": known.get_vision_position_ids(grid_thw, merge, kwargs=given)[rows],
        "cu_seqlens": _ends(known.get_vision_cu_seqlens(grid_thw, kwargs=given), rows),
    }
    if hasattr(tower, "window_size"):
        order, ends = known.get_vision_window_index(
            grid_thw,
            spatial_merge_size=merge,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
            kwargs=given,
        )
        order = order.to(cells.device)
        stays = cells[order]
        found["window_index"] = (cells.cumsum(0) - 1)[order[stays]]
        found["cu_window_seqlens"] = _ends(ends, stays.repeat_interleave(merge**2))
    if hasattr(tower, "pos_embed"):
        taps, weights = known.get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
            kwargs=given,
        )
        found |= {"interp_indices": taps[rows], "interp_weights": weights[rows]}
    return found


def _ends(ends: Tensor, kept: Tensor) -> Tensor:
    """Where the pieces of a row end, 0 first, without what is not kept of it: (N,) bool; empty pieces are left out."""
    counts = nn.functional.pad(kept.cumsum(0), (1, 0))
    return counts[ends.long()].unique_consecutive().to(ends.dtype)


FAMILY = Family(
    library="transformers",
    classes=(
        "Qwen2VisionTransformerPretrainedModel",
        "Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen3VLVisionModel",
    ),
    drops="groups of 2 x 2 patches, before the embedding (experimental; then `vp.shorten_prompt`)",
    checked="all patches computed, the dropped ones barred from attention",
    open=open_model,
)
