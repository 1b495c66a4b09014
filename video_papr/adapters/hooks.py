"""The parts of which the hooks of a pruned model are made.

Letters: B clips, N tokens of the grid, K kept tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..core.threads import PerThread
from ..core.types import TokenSelection
from .host import Handle
from .selector import Selector


@dataclass
class Attachment:
    """What `prune` has added to a model: enough to use it, and to take it away."""

    selector: Selector
    handles: Sequence[Handle]


class Override:
    """Gives one instance another attribute, until it is removed."""

    def __init__(self, owner: object, name: str, value: object) -> None:
        self.owner, self.name = owner, name
        self.before = {name: vars(owner)[name]} if name in vars(owner) else {}
        setattr(owner, name, value)

    def remove(self) -> None:
        delattr(self.owner, self.name)
        vars(self.owner).update(self.before)


class EmbeddingHooks:
    """Surrounds the pass of a module that sees the pixels and makes the tokens; needs no memory between the two.

    Args:
        keep: (tokens, selection) -> the kept tokens.
        argument: name of the pixels in the module's `forward`.
    """

    def __init__(
        self,
        selector: Selector,
        keep: Callable[[Tensor, TokenSelection], Tensor],
        argument: str = "pixel_values",
    ) -> None:
        self.selector, self.keep, self.argument = selector, keep, argument

    def attach(self, module: nn.Module) -> list[Handle]:
        return [
            module.register_forward_pre_hook(self._check, with_kwargs=True),
            module.register_forward_hook(self._drop, with_kwargs=True),
        ]

    def _check(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.selector.check(args[0] if args else kwargs[self.argument])

    def _drop(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: Tensor
    ) -> Tensor:
        selection = self.selector(args[0] if args else kwargs[self.argument])
        return selection.blank(self.keep(tokens, selection))


class HandedOver:
    """Hands a thread's choice from the module that sees the pixels to one whose output are the placed tokens.

    A choice is taken out when it is used, and replaced by the next pass of the first module, which comes first in every
    forward pass: what a pass that failed has left behind never reaches another one.
    """

    def __init__(self, selector: Selector, keep: Callable[[Tensor, TokenSelection], Tensor]) -> None:
        self.selector, self.keep = selector, keep
        self.chosen, self.shorter = PerThread(), PerThread()

    def attach(self, model: nn.Module, sees: nn.Module, gives: nn.Module) -> list[Handle]:
        return [
            sees.register_forward_pre_hook(self._check, with_kwargs=True),
            sees.register_forward_hook(self._choose),
            gives.register_forward_hook(self._drop),
            model.register_forward_hook(self._forget, always_call=True),
        ]

    def refuse_maps(self, use: str) -> None:
        """Raises ValueError if this thread's last pass has dropped tokens; `use` says what serves instead of a map."""
        if self.shorter.value:
            raise ValueError(
                f"a pruned model has no full grid to lay its tokens out on; use {use}, and "
                "video_papr.kept_tokens(model, pixels) for their places"
            )

    def _check(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("mask") is not None:
            raise ValueError("a pruned model takes no mask: it numbers tokens that were dropped")
        self.selector.check(args[0])

    def _choose(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.chosen.value = self.selector(args[0])

    def _drop(self, module: nn.Module, args: tuple[Any, ...], tokens: Tensor) -> Tensor:
        selection, self.chosen.value = self.chosen.value, None
        kept = tokens if selection is None else selection.blank(self.keep(tokens, selection))
        self.shorter.value = kept.shape[1] < tokens.shape[1]
        return kept

    def _forget(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.chosen.value = None
