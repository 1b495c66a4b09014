"""The map that a ConvNet gives at one of its stages: the mean over the channels there, or what its classifier says.

PaPr's insight (Mahmud et al., ECCV 2024) is that a classifier's weights spoil localisation, and that uniform ones mend
it. `recalibration` chooses: "uniform" is the channel mean; "cam" weighs the channels by the classifier's row of the
class that the ConvNet itself predicts (Zhou et al., CVPR 2016); "none" applies the classifier as it is to every cell
(Long et al., CVPR 2015) and takes the highest logit there.

Letters: B clips or images, C channels, t x h x w or h x w the cells of a stage, Q classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, check_known, did_you_mean

RECALIBRATIONS = ("uniform", "cam", "none")


class _Reached(Exception):
    """The stage has its features, and nobody needs what comes behind it."""


class StageMap(nn.Module):
    """A ConvNet that stops at a stage and gives a map.

    Args:
        network: (B, 3, ...) -> logits (B, Q), or whatever: what comes behind the stage runs for "cam" alone.
        stage: name of the module whose output is read; None: `network.forward_features` where there is one, otherwise
            the last module that gives a map of several cells.
        recalibration: one of `RECALIBRATIONS`.
        sample: (1, 3, ...) pixels, zeros for example, that the network can read.

    Raises ConfigError: there is no such stage, it gives no feature map, or "cam" and "none" find no classifier for it.
    """

    def __init__(
        self, network: nn.Module, stage: str | None, recalibration: str, *, sample: Tensor, name: str
    ) -> None:
        super().__init__()
        self.network, self.stage, self.name = network, stage, name
        self.recalibration = check_known("pruner.recalibration", recalibration, RECALIBRATIONS)
        self.cam = recalibration == "cam"
        names = [found for found, _ in network.named_modules() if found]
        if stage is not None and stage not in names:
            tops = ", ".join(found for found, _ in network.named_children())
            raise ConfigError(
                f"pruner.stage={stage}: pruner.model={name} has no such part, but {tops}.{did_you_mean(stage, names)}"
            )
        channels = self._check(sample)
        self.classifier = None if recalibration == "uniform" else self._classifier(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, ...), normalised -> map (B, *cells) float32."""
        features, logits = self._read(pixels)
        if self.classifier is None:
            # Averaging before resizing keeps the same tokens as averaging after it, and resizes one channel.
            return features.mean(1, dtype=torch.float32)
        rows = self._rows(self.classifier)
        if not self.cam:
            bias: Any = self.network.get_submodule(self.classifier).bias
            logits = torch.einsum("bc...,qc->b...q", features.float(), rows.float())
            return (logits if bias is None else logits + bias.float()).amax(-1)
        if logits is None or logits.ndim != 2 or logits.shape[1] != len(rows):
            shape = None if logits is None else tuple(logits.shape)
            raise ConfigError(
                f"pruner.recalibration=cam: pruner.model={self.name} answers {shape} instead of logits (B, {len(rows)})"
            )
        return torch.einsum("bc...,bc->b...", features.float(), rows[logits.argmax(1)].float())

    def _read(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, C, *cells) of the stage, and logits for "cam"."""
        network: Any = self.network
        if self.stage is None:
            features = network.forward_features(pixels)
            return features, network.forward_head(features) if self.cam else None
        found: list[Tensor] = []

        def keep(module: nn.Module, given: Any, output: Tensor) -> None:
            found.append(output)
            if not self.cam:
                raise _Reached

        handle = network.get_submodule(self.stage).register_forward_hook(keep)
        try:
            logits = network(pixels)
        except _Reached:
            logits = None
        finally:
            handle.remove()
        return found[-1], logits

    def _check(self, sample: Tensor) -> int:
        """C of the stage, which is found first where it has no name."""
        network, failure = self.network, "nothing"
        gives: dict[str, Any] = {}  # shape of the output of every module, in the order in which they end
        hooks = [
            module.register_forward_hook(
                lambda _, __, output, name=name: gives.update({name: _shape(output)})
            )
            for name, module in network.named_modules()
        ]
        whole = self.stage is None and hasattr(network, "forward_features")
        try:
            with torch.no_grad():
                output = network.forward_features(sample) if whole else network(sample)  # type: ignore[operator]
            gives[""] = _shape(output)
        except Exception as error:  # a network of another kind, or the head on a small sample, stumbles
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            for hook in hooks:
                hook.remove()
        if self.stage is None and not whole:
            self.stage = next(
                (name for name in reversed(gives) if name and _cells(gives[name], sample) > 1), None
            )
        found = gives.get(self.stage or "", failure)
        channels = getattr(network, "num_features", None) if whole else None
        if _cells(found, sample) <= (not whole) or channels not in (None, found[1]):
            place = f"pruner.model={self.name}" if self.stage is None else f"pruner.stage={self.stage}"
            wanted = "(B, C, h, w)" if sample.ndim == 4 else "(B, C, t, h, w)"
            raise ConfigError(
                f"{place} gives no feature map {wanted} but {found}; use a ConvNet, and a stage before its pooling"
            )
        return int(found[1])

    def _classifier(self, channels: int) -> str:
        """The name of the layer that makes logits of the pooled features of the stage."""
        linear = [name for name, module in self.network.named_modules() if _is_linear(module)]
        known = getattr(self.network, "num_classes", None) != 0
        if linear and known and self._rows(linear[-1]).shape[1] == channels:
            return linear[-1]
        raise ConfigError(
            f"pruner.recalibration={self.recalibration}: pruner.model={self.name} has no classifier that reads the "
            f"{channels} channels of {self.stage or 'its last map'} as they are; use uniform"
        )

    def _rows(self, name: str) -> Tensor:
        weight = self.network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.flatten(1)


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, or a convolution that is one at every cell."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1} and module.groups == 1


def _shape(output: Any) -> tuple[int, ...] | str:
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__


def _cells(shape: tuple[int, ...] | str, sample: Tensor) -> int:
    """Cells of a feature map, along height and width; 0 for what is none."""
    return 0 if isinstance(shape, str) or len(shape) != sample.ndim else math.prod(shape[-2:])
