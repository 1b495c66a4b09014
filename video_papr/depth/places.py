"""The blocks of a network that can be pruned: where they are, opened into two branches, and merged.

A mask is a tuple of ascending places in the list that `find_places` gives, e.g. (0, 3): these blocks are pruned.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..backbones.depth_pruned import WHOLE, block_places, drop_removed
from ..backbones.depth_pruned import BlockPlace as Place
from ..backbones.encoder import Encoder
from ..pruning.scorers.x3d_depth_pruned import residual_blocks
from .blocks import TwoBranch, close_block, open_block, switch_of
from .search import Mask


def find_places(net: nn.Module, *, last_stage: str | None = None) -> list[Place]:
    """The blocks of a backbone, or of an X3D up to a stage ("res2" ... "res5", "head" or None: all).

    Raises ConfigError: a backbone of which nothing can be pruned.
    """
    if isinstance(net, Encoder):
        return list(block_places(net))
    found = [Place(*entry) for entry in residual_blocks(net)]
    if last_stage in (None, "head"):
        return found
    assert last_stage is not None
    return [place for place in found if place.name.split(".")[0] <= last_stage]


def open_places(places: Sequence[Place], kinds: Sequence[str], mask: Mask | None = None) -> None:
    """Gives the blocks of a mask, or all, two branches, in place; `kinds` has one kind for every place."""
    for number, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        if mask is None or number in mask:
            place.holder[place.at] = open_block(place.block, kind, place.name)


def switches(net: nn.Module) -> list[TwoBranch]:
    """The two-branch modules of a network, in the order of its blocks."""
    return [module for module in net.modules() if isinstance(module, TwoBranch)]


def set_mask(found: Sequence[TwoBranch], mask: Mask) -> None:
    """Prunes the blocks of a mask and no others."""
    for number, switch in enumerate(found):
        switch.mix = 1.0 if number in mask else 0.0


def merge_places(net: nn.Module, places: Sequence[Place], kinds: Sequence[str], mask: Mask) -> list[str]:
    """Merges the opened blocks of a mask, in place.

    Args:
        net: in eval mode; `places` and `kinds` are those of all its blocks that could be pruned.

    Returns:
        one word for each block of the network, prunable or not: what checkpoints say under `blocks`.

    Raises MergeError: a layer cannot be merged; the text names it.
    """
    whole = find_places(net)
    described = [WHOLE] * len(whole)
    for number in mask:
        place = places[number]
        closed = close_block(place.block, place.name)
        described[number] = kinds[number]
        place.holder[place.at] = nn.Identity() if closed is None else closed
    drop_removed(whole, described)
    return described


def copy_pruned_branches(source: Sequence[Place], target: Sequence[Place], mask: Mask) -> None:
    """The weights of the pruned branches of a mask, from one opened network to another of the same architecture."""
    for number in mask:
        state = switch_of(source[number].block).pruned.state_dict()
        switch_of(target[number].block).pruned.load_state_dict(state)
