"""X3D's trunk: the network up to the stage whose features are read, and batch norms folded into it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...checkpoints.files import load_exactly
from ...checkpoints.x3d_formats import from_any_x3d
from ...core.errors import CheckpointError, check_known
from .x3d_network import DEPTHS, X3D

X3D_L_DEPTHS = (5, 10, 25, 15)
RES2_SHORTCUT = "blocks.1.res_blocks.0"  # the block whose shortcut has a batch norm in some formats
STAGES = ("res2", "res3", "res4", "res5", "head")


class X3DTrunk(nn.Module):
    """X3D up to the map that PaPr reads, without the classifier behind it.

    Args:
        stage: the last one that is computed. "head" is the 432-channel map after `pre_conv`, BN and ReLU (the paper's);
            "res2" ... "res5" are earlier outputs with 24, 48, 96 and 192 channels and 1/4, 1/8, 1/16 and 1/32 of the
            input's size.
    """

    def __init__(self, stage: str = "head") -> None:
        super().__init__()
        self.stage = check_known("pruner.stage", stage, STAGES)
        stages = X3D(num_classes=1).blocks
        self.blocks = nn.ModuleList(stages[: 5 if stage == "head" else STAGES.index(stage) + 2])
        if stage == "head":
            pool: Any = stages[5].pool
            self.pre_conv, self.pre_norm, self.pre_act = pool.pre_conv, pool.pre_norm, pool.pre_act

    def forward(self, pixels: Tensor, names: tuple[str, ...] = ()) -> Tensor | tuple[Tensor, ...]:
        """pixels (B, 3, T, S, S) normalised with `MEAN` and `STD` -> features (B, C, T, h, w) of the last stage.

        Args:
            names: of several stages, in their order; a tuple of the features of each then.
        """
        wanted = names or (self.stage,)
        found = {name: features for name, features in self.stages(pixels) if name in wanted}
        return tuple(found[name] for name in names) if names else found[self.stage]

    def stages(self, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and features (B, C, T, h, w) of every stage on the way, one after the other."""
        for name, block in zip(("stem", *STAGES), self.blocks, strict=False):
            pixels = block(pixels)
            yield name, pixels
        if self.stage == "head":
            yield "head", self.pre_act(self.pre_norm(self.pre_conv(pixels)))

    def load_classifier(self, state: Mapping[str, Tensor], *, source: str) -> None:
        """Loads the trunk's part of a whole X3D in any of the formats of `checkpoints.x3d_formats`.

        PySlowFast's and mmaction2's have a batch norm in the shortcut of res2, which the trunk gets too.

        Raises CheckpointError: it is another network, or keys are missing, left over or of other shapes.
        """
        state, title = from_any_x3d(state, source=source)
        source = source if title == "pytorchvideo" else f"{source} ({title}'s names)"
        _check_depths(state, source)
        if any(key.startswith(f"{RES2_SHORTCUT}.branch1_norm.") for key in state):
            block: Any = self.get_submodule(RES2_SHORTCUT)
            norm = nn.BatchNorm3d(block.branch1_conv.out_channels).requires_grad_(False)
            block.branch1_norm = norm.train(self.training)
        behind = tuple(f"blocks.{number}." for number in range(len(self.blocks), 5))
        if self.stage != "head":
            behind += ("blocks.5.pool.pre_",)
        unused = (*behind, "blocks.5.pool.post_conv.", "blocks.5.proj.")
        own = {
            key.replace("blocks.5.pool.pre_", "pre_"): value
            for key, value in state.items()
            if not key.startswith(unused)
        }
        load_exactly(self, own, source=source)


def _check_depths(state: Mapping[str, Tensor], source: str) -> None:
    """Refuses an X3D of another size, by the number of its residual blocks."""
    places = {
        tuple(key.split(".")[1:4:2]) for key in state if re.match(r"blocks\.\d+\.res_blocks\.\d+\.", key)
    }
    depths = tuple(sum(stage == str(number) for stage, _ in places) for number in range(1, 5))
    fits = tuple(DEPTHS.values())
    if any(depths) and depths != fits:
        named = "an X3D-L" if depths == X3D_L_DEPTHS else "an X3D of another size"
        raise CheckpointError(
            f"{source} holds {named}, with {_listed(depths)} residual blocks in its stages; X3D-XS, S and M have "
            f"{_listed(fits)}"
        )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# convolution -> the norm behind it, by their published names, and the trunk's own.
NORMS = {
    "conv": "norm",
    "conv_a": "norm_a",
    "conv_b": "norm_b",
    "conv_c": "norm_c",
    "branch1_conv": "branch1_norm",
    "pre_conv": "pre_norm",
}


def fold_norms(trunk: nn.Module) -> None:
    """Folds every batch norm of an X3D into the convolution before it, in place; for inference only.

    The features stay the same up to rounding; a pass over every activation is saved. The state dict has other keys
    afterwards, so load the weights first.

    Raises ValueError: the network is in training mode, where a norm follows its batch.
    """
    if trunk.training:
        raise ValueError("batch norms can be folded in eval mode only")
    for module in list(trunk.modules()):
        for conv_name, norm_name in NORMS.items():
            conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
            # The stem's convolution is a pair; `conv_xy` is the one that comes last. Some norms lead a pair with
            # squeeze-and-excitation.
            holder, key = (conv, "conv_xy") if hasattr(conv, "conv_xy") else (module, conv_name)
            place, name = (norm, "0") if isinstance(norm, nn.Sequential) else (module, norm_name)
            found = getattr(place, name, None)
            if isinstance(found, nn.BatchNorm3d):
                setattr(holder, key, fuse_conv_bn_eval(getattr(holder, key), found))
                setattr(place, name, nn.Identity())
