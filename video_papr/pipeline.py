"""From frames to logits: the whole flow of a pruned video transformer. Start reading here.

    frames (B, T, H, W, 3) uint8
      -> pruner.select: scores every tubelet and keeps the best             stages "score", "select"
      -> backbone: embeds the kept tubelets, runs its blocks, classifies    stages "embed", "blocks", "head"
      -> logits (B, classes)

Nothing else knows this way. Whoever times, counts or looks at it passes a `mark`, which is called with a stage's name
when that stage ends. A compiled backbone is one stage, "backbone"; a pruner that reads tokens has no "score".

Letters: B clips, T frames, H x W pixels, N tokens of the grid, K kept tokens, P class tokens, D channels.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .backbones.builders import Backbone
from .backbones.grouping import run_in_groups
from .backbones.packing import JAGGED
from .core.engines import use_engine
from .core.errors import ConfigError, check_known
from .core.parts import join_selection, pool_parts, split_frames, split_selection
from .core.types import Mark, TokenSelection, unobserved
from .pruning.compensation import compensate
from .pruning.protocol import Pruner
from .pruning.tome import ToMe

PACKINGS = ("auto", "packed", "bucketed")
REPLAYING = ("reduce-overhead", "max-autotune")  # modes of torch.compile that record CUDA graphs


class Pipeline(nn.Module):
    """A backbone, the pruner that decides what it reads, and the merger that joins tokens on the way.

    Args:
        backbone: from `build_backbone`.
        pruner: from `build_pruner`; None keeps every tubelet.
        merger: from `build_merger`; None merges nothing.
        packing: how clips that keep unequal numbers of tokens run, one of `PACKINGS`. "packed": all in one row, see
            `backbones.packing`. "bucketed": in groups of similar length, padded to the longest. "auto": packed on a
            CUDA device, unless the backbone is compiled, or a bias in attention is needed (a merger,
            compensation="merge").

    Raises:
        ConfigError: the pruner does not fit the backbone; or the packing is unknown, or needs attention without a bias.
    """

    def __init__(
        self,
        backbone: Backbone,
        pruner: Pruner | None = None,
        merger: ToMe | None = None,
        *,
        packing: str = "auto",
    ) -> None:
        super().__init__()
        self.backbone, self.pruner, self.merger, self.packing = backbone, pruner, merger, packing
        check_known("runtime.packing", packing, PACKINGS)
        if packing == "packed" and self._biased:
            reason = "pruner.compensation=merge" if merger is None else "merger=tome"
            raise ConfigError(
                f"runtime.packing=packed: cannot be combined with {reason}, which weighs tokens in attention; use "
                "runtime.packing=auto or bucketed"
            )
        if merger is not None and backbone.closed:
            raise ConfigError(f"merger=tome: {backbone.closed}; use merger=none")
        if pruner is not None:
            pruner.check_backbone(backbone, merges=merger is not None)
            pruner.fit(backbone)

    def forward(self, frames: Tensor, mark: Mark = unobserved) -> Tensor:
        """frames (B, T, H, W, 3) uint8, as the loader cuts them for the backbone -> logits (B, classes).

        Args:
            frames: with a fourth channel, the motion plane, where the pruner reads one; see `reads_motion`.
            mark: called with each stage's name when it ends; see the head of this file.

        Raises:
            ValueError: the frames have another shape or dtype than the backbone reads.
        """
        return self.classify(frames, self.select(frames, mark), mark)

    def significance(self, frames: Tensor) -> Tensor | None:
        """frames (B, T, H, W, 3) uint8 -> the map that decides, (B, T', H', W'); None when nothing prunes."""
        self._check_frames(frames)
        if self.pruner is None:
            return None
        if not self._chooses_by_parts:
            return self.pruner.significance(frames, self.backbone)
        parts = self.backbone.parts
        maps = self.pruner.significance(split_frames(frames, parts), self.backbone)
        return maps.unflatten(0, (-1, parts)).flatten(1, 2)

    def select(self, frames: Tensor, mark: Mark = unobserved) -> TokenSelection | None:
        """frames (B, T, H, W, 3) uint8 -> the kept tubelets; None when nothing prunes."""
        self._check_frames(frames)
        if self.pruner is None:
            return None
        options: dict[str, Any] = {"packed": self._packs, "mark": mark}
        if not self._chooses_by_parts:
            return self.pruner.select(frames, self.backbone, **options)
        parts = self.backbone.parts
        return join_selection(
            self.pruner.select(split_frames(frames, parts), self.backbone, **options), parts
        )

    def classify(self, frames: Tensor, selection: TokenSelection | None, mark: Mark = unobserved) -> Tensor:
        """frames (B, T, H, W, 3) uint8, selection or None for all tubelets -> logits (B, classes).

        The logits of a clip whose map is not finite are NaN, see `TokenSelection.blank`.

        Clips of unequal length run in one row without padding, or in groups of similar length, so that little is
        padded. What is padded is barred from attention and from the mean: the logits are those of each clip alone.
        """
        self._check_frames(frames)
        if frames.shape[-1] == 4:
            frames = frames[..., :3]
        logits = self._classify(frames, selection, mark)
        return logits if selection is None else selection.blank(logits)

    def _classify(self, frames: Tensor, selection: TokenSelection | None, mark: Mark) -> Tensor:
        """`classify`, whatever the selection is worth."""
        parts = self.backbone.parts
        if parts == 1:
            return self.classify_parts(frames, selection, mark)
        pieces = split_frames(frames, parts)
        rows = torch.arange(len(pieces), device=frames.device)
        if selection is not None:
            selection, rows = split_selection(selection, parts)
        pieces = pieces if len(rows) == len(pieces) else pieces[rows]
        answers = self.classify_parts(pieces, selection, mark)
        pooled = pool_parts(answers, rows, parts, len(frames), self.backbone.pool)
        logits: Tensor = self.backbone.clip_head(pooled)
        return logits

    def classify_parts(
        self, frames: Tensor, selection: TokenSelection | None, mark: Mark = unobserved
    ) -> Tensor:
        """`classify`, of what the backbone reads by itself: clips, or parts of clips (see `Encoder.parts`)."""
        merges = selection is not None and selection.compensation == "merge"
        if selection is not None and selection.valid is not None and self._packs and not merges:
            return self._run(frames, selection, mark, packed=True)
        num_tokens, dim = self.backbone.part_grid.num_tokens, self.backbone.dim
        run = partial(self._run, mark=mark)
        return run_in_groups(run, frames, selection, num_tokens=num_tokens, dim=dim)

    def _run(
        self, frames: Tensor, selection: TokenSelection | None, mark: Mark = unobserved, packed: bool = False
    ) -> Tensor:
        """One call of the backbone: frames (B, T, H, W, 3) uint8 and what is kept of them -> logits (B, classes)."""
        options: dict[str, Any] = {} if self.merger is None else {"merger": self.merger}
        if selection is not None:
            options |= compensate(selection, self.backbone, frames, padding_last=self.merger is not None)
        # The backbone normalises what it keeps of the bytes: a dropped tubelet never becomes a float.
        pixels = None if "tokens" in options else rearrange(frames, "b t h w c -> b c t h w")
        compiled = self.backbone._compiled_call_impl is not None and not packed
        if not compiled:
            options["mark"] = mark
        run = self.backbone.forward_packed if packed else self.backbone
        logits: Tensor = run(pixels, **options)
        if self.backbone.replayed:  # a CUDA graph overwrites the logits that it returned last
            logits = logits.clone()
        if compiled:
            mark("backbone")
        return logits

    @property
    def reads_motion(self) -> bool:
        """Whether frames are to be read from their file with a motion plane, see `data.readers.vectors`."""
        return self.pruner is not None and self.pruner.spec.reads_motion

    @property
    def _chooses_by_parts(self) -> bool:
        """Whether the pruner compares tokens of the backbone, and that reads a clip part by part."""
        return self.pruner is not None and self.pruner.spec.reads_tokens and self.backbone.parts > 1

    @property
    def _biased(self) -> bool:
        """Whether attention counts some tokens more often than others."""
        return self.merger is not None or (self.pruner is not None and self.pruner.compensation == "merge")

    @property
    def _packs(self) -> bool:
        """Whether clips of unequal length run in one row."""
        if self.packing != "auto":
            return self.packing == "packed"
        cuda = next(self.backbone.parameters()).is_cuda
        return JAGGED and cuda and not self._biased and self.backbone._compiled_call_impl is None

    def with_backbone(self, **changes: Any) -> Pipeline:
        """A pipeline of the same parts that runs the backbone uncompiled, with other attributes, `head` for example."""
        twin = copy.copy(self.backbone)
        vars(twin)["_modules"] = dict(self.backbone._modules)
        vars(twin)["_compiled_call_impl"] = None
        for name, value in changes.items():
            setattr(twin, name, value)
        return Pipeline(twin, self.pruner, self.merger, packing=self.packing)

    def headless(self) -> Pipeline:
        """`with_backbone`, without classifiers: what they would read, (B, D)."""
        return self.with_backbone(head=nn.Identity(), clip_head=nn.Identity())

    def compile_networks(self, **options: Any) -> None:
        """torch.compile for backbone and X3D, in place; the compiler runs when they are first called.

        Where every clip keeps as many tokens, each number of them becomes one whole graph of fixed shapes, and no
        further graph is made while the batches are full; see `evaluate`. Where the clip decides, shapes may vary.

        Args:
            options: of torch.compile, in place of these. On a GPU `mode="reduce-overhead"` and `"max-autotune"` record
                CUDA graphs, one for each shape, and replay them, which decides the speed of small batches.

        Raises ConfigError: CUDA graphs where the clip decides how much is kept, and `dynamic=False` does not promise
        that shapes stay.
        """
        varies = self.pruner is not None and self.pruner.budget.variable
        chosen = {**({} if varies else {"fullgraph": True, "dynamic": False}), **options}
        replayed = options.get("mode") in REPLAYING and next(self.backbone.parameters()).is_cuda
        if varies and replayed and chosen.get("dynamic") is not False:
            raise ConfigError(
                f"runtime.compile={options['mode']!r}: clips keep unequal numbers of tokens, and a CUDA graph has "
                "fixed shapes; use runtime.compile=true or a fixed number (pruner.budget=fixed)"
            )
        self.backbone.replayed = replayed
        self.backbone.compile(**chosen)
        if (trunk := self._trunk) is not None:
            trunk.compile(**{**options, "fullgraph": True, "dynamic": False})

    def run_in(self, engine: str, dtype: torch.dtype = torch.float32) -> None:
        """Has an engine run backbone and X3D on a processor, in place; graphs are made when they are first called.

        A backbone that a merger works in stays in torch.

        Args:
            engine: "openvino" or "onnxruntime".
            dtype: float32; bfloat16 where the processor computes in it, whose weights stay float32; int8 for the
                weights of the backbone, and its activations where the engine can: X3D stays float32.
        """
        if self.merger is None:
            use_engine(self.backbone, engine, dtype)
        if (trunk := self._trunk) is not None:
            trunk.channels_last = False  # engines order memory by themselves
            use_engine(trunk, engine, torch.float32 if dtype == torch.int8 else dtype)

    @property
    def _trunk(self) -> Any:
        """The network of the pruner's scorer, None where it has none."""
        trunk = getattr(getattr(self.pruner, "scorer", None), "trunk", None)
        return trunk if isinstance(trunk, nn.Module) else None

    def _check_frames(self, frames: Tensor) -> None:
        expected = (self.backbone.num_frames, *self.backbone.frame_size, 3)
        if self.reads_motion and frames.shape[-1] == 4:
            expected = (*expected[:-1], 4)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames must be uint8 (B, {', '.join(map(str, expected))}), got {frames.dtype} {tuple(frames.shape)}"
            )
