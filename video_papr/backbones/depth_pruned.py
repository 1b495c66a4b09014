"""Transformers and ConvNeXts whose depth was pruned, with blocks removed or merged: rebuilt from a description.

The description is a list with one word for each block of the architecture. It stands in a checkpoint's metadata under
`blocks`; `depth/` makes such checkpoints.

    whole      as it was
    linear     transformer: attention as it was; the feed-forward part, with its shortcut, is one linear layer
               ConvNeXt: the depthwise convolution as it was; the feed-forward part is one 1 x 1 convolution
    dense      ConvNeXt: one convolution over all channels, of the depthwise one's extent, the shortcut in it
    pointwise  ConvNeXt: one 1 x 1 convolution, the shortcut in it
    removed    gone; the blocks behind it move up, also in the names of the weights

Letters: B clips or images, K tokens, D channels, C channels of a ConvNeXt on h x w places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.files import check_fit, load_exactly, read_weights
from ..core.errors import CheckpointError, ConfigError
from ..core.reading import ReadConfig

WHOLE, LINEAR, REMOVED = BLOCK_KINDS = ("whole", "linear", "removed")
CONV_KINDS = (*BLOCK_KINDS, "dense", "pointwise")  # of a ConvNeXt
TIMM_MODEL = "timm"  # the key of a description that names the model of timm
POSITIONS = "positions"  # of a ViT of timm, which are no part of its state dict


class ShortBlock(nn.Module):
    """A transformer block whose feed-forward part, with its shortcut, is one module.

    Args:
        block: of timm; its norm, attention and layer scale are taken over, not copied.
        joint: (B, K, D) -> (B, K, D).
    """

    def __init__(self, block: Any, joint: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.joint = joint

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> (B, K, D)."""
        return self.joint(tokens + self.ls1(self.attn(self.norm1(tokens))))


class SeparableBlock(nn.Module):
    """A ConvNeXt block whose feed-forward part is one 1 x 1 convolution."""

    def __init__(self, conv_dw: nn.Module, joint: nn.Module) -> None:
        super().__init__()
        self.conv_dw, self.joint = conv_dw, joint

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, h, w) -> (B, C, h, w)."""
        return features + self.joint(self.conv_dw(features))


class BlockPlace(NamedTuple):
    """A block: its name for people, and the list that holds it."""

    name: str
    holder: nn.ModuleList | nn.Sequential
    at: int

    @property
    def block(self) -> nn.Module:
        return self.holder[self.at]


def block_places(net: Any) -> Iterator[BlockPlace]:
    """The blocks of a transformer or of timm's ConvNeXt, which may be within a backbone, first to last.

    Raises ConfigError: it is a hierarchical network of another kind.
    """
    body = getattr(net, "body", net)
    if hasattr(body, "blocks"):
        yield from (BlockPlace(f"blocks.{at}", body.blocks, at) for at in range(len(body.blocks)))
        return
    if not hasattr(body, "stem"):
        raise ConfigError(
            f"{type(body).__name__}: depth pruning knows plain transformers, timm's ConvNeXt and X3D"
        )
    for number, stage in enumerate(body.stages):
        for at in range(len(stage.blocks)):
            yield BlockPlace(f"stages.{number}.{at}", stage.blocks, at)


def drop_removed(places: Sequence[BlockPlace], kinds: Sequence[str]) -> None:
    """Takes the blocks of kind "removed" out of the lists that hold them; the others move up."""
    for place, kind in reversed(list(zip(places, kinds, strict=True))):
        if kind == REMOVED:
            del place.holder[place.at]


def check_blocks(
    blocks: Any, depth: int, *, source: str, known: Sequence[str] = BLOCK_KINDS
) -> tuple[str, ...]:
    """A description, checked. `known`: the words that the architecture has.

    Raises CheckpointError: it is no list of one known word for each block, or leaves none.
    """
    right = isinstance(blocks, (list, tuple)) and all(kind in known for kind in blocks)
    if not right or len(blocks) != depth or all(kind == REMOVED for kind in blocks):
        raise CheckpointError(
            f"{source} describes its blocks as {blocks}; expected {depth} of {', '.join(known)}, not all removed"
        )
    return tuple(blocks)


def depth_prune_backbone(net: nn.Module, kinds: Sequence[str]) -> None:
    """Gives a network of the whole architecture the blocks of a description, in place, for weights to be loaded."""
    places = list(block_places(net))
    for place, kind in zip(places, kinds, strict=True):
        if kind not in (WHOLE, REMOVED):
            place.holder[place.at] = _merged_form(place.block, kind)
    drop_removed(places, kinds)


def _merged_form(block: Any, kind: str) -> nn.Module:
    if hasattr(block, "attn"):
        width = block.norm1.weight.shape[0]
        return ShortBlock(block, nn.Linear(width, width))
    width, extent = block.conv_dw.out_channels, block.conv_dw.kernel_size
    if kind == LINEAR:
        return SeparableBlock(block.conv_dw, nn.Conv2d(width, width, 1))
    if kind == "pointwise":
        return nn.Conv2d(width, width, 1)
    return nn.Conv2d(width, width, extent, padding=block.conv_dw.padding)


class PrunedTimm(NamedTuple):
    """A file with a depth-pruned network of timm."""

    source: str  # the option and its value, for errors
    state: Mapping[str, Tensor]
    blocks: Any  # as the file describes them
    names: tuple[str, ...]  # of the classes
    read: ReadConfig

    def rebuild(self, net: nn.Module, known: Sequence[str]) -> None:
        """Gives a network of the whole architecture its blocks, of the words `known`, in place."""
        depth = len(list(block_places(net)))
        depth_prune_backbone(net, check_blocks(self.blocks, depth, source=self.source, known=known))

    def load(self, backbone: Any, net: nn.Module) -> None:
        """Loads the weights into `net`, the whole of a rebuilt backbone or its body, and says how it reads images."""
        state = dict(self.state)
        if hasattr(backbone, POSITIONS):
            placed = state.pop(POSITIONS, torch.empty(0))
            check_fit(
                {POSITIONS: placed}, {POSITIONS: backbone.positions}, name=POSITIONS, source=self.source
            )
            backbone.positions.copy_(placed)
        load_exactly(net, state, source=self.source)
        backbone.class_names, backbone.read, backbone.depth_pruned = self.names, self.read, True


def read_pruned_timm(weights: str | Path | None, asked: Mapping[str, Any]) -> PrunedTimm | None:
    """Reads a file that `tools/depth_prune.py` wrote for a network of timm; None: it is something else.

    Args:
        asked: the arguments `model`, `num_classes`, `input_size` and `replace_head` of `build_backbone`.

    Raises CheckpointError: it is of another model, of other classes or another size than asked for, or damaged.
    """
    path = None if weights is None else Path(weights).expanduser()
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        return None
    state, described = read_weights(path, key="backbone.weights")
    source = f"backbone.weights={weights}"
    if not {TIMM_MODEL, "blocks"} <= described.keys():
        return None
    names, read = described.get("class_names"), ReadConfig.from_metadata(described.get("read"), source=source)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{source}: its class_names are {names!r:.80}, not a list of texts")
    own = {"model": described[TIMM_MODEL], "num_classes": len(names), "input_size": read.input_size}
    for key, value in own.items():
        if asked[key] not in (None, value):
            raise CheckpointError(f"{source}: its depth was pruned with {key}={value}, not {asked[key]}")
    if asked["replace_head"]:
        raise CheckpointError(f"{source}: weights whose depth was pruned keep their classifier")
    return PrunedTimm(source, state, described["blocks"], tuple(names), read)
