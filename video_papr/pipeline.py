"""The whole way from frames to logits. Start reading here.

    frames (B, T, H, W, 3) uint8
      -> pruner: X3D, a rule or the tokens' similarity scores every tubelet, the best stay      `select`
      -> backbone: only the kept tubelets are embedded and encoded, and perhaps merged;         `classify`
         a token for each region may stand for the dropped ones
      -> logits (B, classes)

Letters: B clips, T frames, H x W pixels, N tokens of the grid, K kept tokens, P class tokens, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .backbones.builders import Backbone
from .backbones.packing import JAGGED
from .core.errors import ConfigError
from .core.pixels import normalize_pixels
from .core.types import TokenSelection
from .pruning.builders import Pruner
from .pruning.compensation import append_tokens, pool_weights, region_shares
from .pruning.select import gather_tokens, places_within
from .pruning.similarity import SimilarityPruner
from .pruning.tome import ToMe

REPLAYING = ("reduce-overhead", "max-autotune")  # modes of torch.compile that record CUDA graphs
SPREAD = 0.875  # clips run side by side when each keeps at least this share of the longest one's tokens
PACKINGS = ("auto", "packed", "bucketed")
# Values (tokens x channels) of the clips that run side by side on a processor. Activations of more are too large for
# its caches, and a large dense batch would look slow beside a pruned one.
SIDE_BY_SIDE = 3 << 19
Arrival = tuple[Tensor, Tensor, TokenSelection | None]
"""Tokens (B, P + K, D) that come to a place where they are chosen from, what is compared of them (B, K, D), and which
of the grid's tokens these K are; None: all."""


class Pipeline(nn.Module):
    """A backbone, the pruner that decides what it reads, and the merger that joins tokens on the way.

    Args:
        backbone: from `build_backbone`.
        pruner: from `build_pruner`; None keeps every tubelet.
        merger: from `build_merger`; None merges nothing.
        packing: how clips that keep unequal numbers of tokens run, one of `PACKINGS`. "packed": all in one row, see
            `backbones.packing`. "bucketed": in groups of similar length, padded to the longest. "auto": packed on a
            CUDA device, unless the backbone is compiled, or a bias in attention is needed (a merger, carry="merge").

    Raises:
        ConfigError: the pruner asks for more blocks than the backbone has, or for weights in a mean that there is not;
            or the packing is unknown, or needs attention without a bias.
    """

    def __init__(
        self,
        backbone: Backbone,
        pruner: Pruner | SimilarityPruner | None = None,
        merger: ToMe | None = None,
        *,
        packing: str = "auto",
    ) -> None:
        super().__init__()
        self.backbone, self.pruner, self.merger = backbone, pruner, merger
        self.packing = packing
        if packing not in PACKINGS:
            raise ConfigError(f"runtime.packing={packing!r} is unknown; use one of {', '.join(PACKINGS)}")
        if packing == "packed" and self._biased:
            reason = "pruner.carry=merge" if merger is None else "merger=tome"
            raise ConfigError(
                f"runtime.packing=packed: cannot be combined with {reason}, which weighs tokens in attention; use "
                "runtime.packing=auto or bucketed"
            )
        depth = len(backbone.blocks)
        if isinstance(pruner, SimilarityPruner) and pruner.after_blocks[-1] >= depth:
            places = list(pruner.after_blocks)
            raise ConfigError(
                f"pruner.after_block={places if len(places) > 1 else places[0]} must be below the backbone's {depth} "
                "blocks"
            )
        if pruner is not None and pruner.carry == "pool":
            if not backbone.averages:
                raise ConfigError(
                    "pruner.carry=pool: this backbone answers from its class token, there is no mean to weigh; "
                    "use pruner.carry=merge or none"
                )
            if merger is not None:
                raise ConfigError(
                    "pruner.carry=pool: cannot be combined with merger=tome, which weighs the mean itself; "
                    "use pruner.carry=merge or none"
                )

    def significance(self, frames: Tensor) -> Tensor | None:
        """frames (B, T, H, W, 3) uint8 -> the map that decides, (B, T', H', W'); None when nothing prunes.

        Where several places decide, a token has the value of the last one that it came to, less 2 for each place behind
        that: the map is minus a mean cosine, from -1 to 1, so what came further is always higher.
        """
        self._check_frames(frames)
        if isinstance(self.pruner, SimilarityPruner):
            found: Tensor | None = None
            for _, features, present in self._arrivals(frames, self.pruner):
                scores = self.pruner.significance(features, self.backbone.grid, present)
                found = (
                    scores if found is None or present is None else scores.where(present.mask(), found - 2)
                )
            return found
        return None if self.pruner is None else self.pruner.significance(frames, self.backbone.grid)

    def select(self, frames: Tensor) -> TokenSelection | None:
        """frames (B, T, H, W, 3) uint8 -> the kept tubelets; None when nothing prunes."""
        self._check_frames(frames)
        if isinstance(self.pruner, SimilarityPruner):
            return self._select_by_features(frames, self.pruner)
        return None if self.pruner is None else self.pruner(frames, self.backbone.grid)

    def classify(self, frames: Tensor, selection: TokenSelection | None) -> Tensor:
        """frames (B, T, H, W, 3) uint8, selection or None for all tubelets -> logits (B, classes).

        Clips of unequal length run in one row without padding, or in groups of similar length, so that little is
        padded. What is padded is barred from attention and from the mean: the logits are those of each clip alone.
        """
        self._check_frames(frames)
        if selection is None or selection.valid is None:
            return self._read_few(frames, selection)
        if self._packs and selection.carry != "merge":
            return self._read_packed(frames, selection, selection.valid)
        groups = similar_lengths(selection.counts())
        logits = torch.cat([self._read_few(frames[rows], selection.rows(rows)) for rows in groups])
        return logits[torch.cat(groups).argsort()]

    def forward(self, frames: Tensor) -> Tensor:
        """frames (B, T, H, W, 3) uint8, as the loader cuts them for the backbone -> logits (B, classes).

        Raises:
            ValueError: the frames have another shape or dtype than the backbone reads.
        """
        return self.classify(frames, self.select(frames))

    def compile_networks(self, **options: Any) -> None:
        """torch.compile for backbone and X3D, in place; the compiler runs when they are first called.

        Where every clip keeps as many tokens, each number of them becomes one whole graph of fixed shapes, and no
        further graph is made while the batches are full; see `evaluate`. Where the clip decides, shapes may vary.

        Args:
            options: of torch.compile, in place of these. On a GPU `mode="reduce-overhead"` and `"max-autotune"` record
                CUDA graphs, one for each shape, and replay them: the processor hands a GPU one graph in place of
                hundreds of kernels, which decides the speed of small batches. Answers stay valid all the same.

        Raises:
            ConfigError: CUDA graphs where the clip decides how much is kept, and `dynamic=False` does not promise that
                shapes stay.
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
        trunk = getattr(getattr(self.pruner, "scorer", None), "trunk", None)
        if isinstance(trunk, nn.Module):
            trunk.compile(**{**options, "fullgraph": True, "dynamic": False})

    def _read_few(self, frames: Tensor, selection: TokenSelection | None) -> Tensor:
        """`_read`, on a processor of no more clips at once than `SIDE_BY_SIDE` allows."""
        if frames.device.type != "cpu" or torch.compiler.is_compiling():
            return self._read(frames, selection)
        tokens = self.backbone.grid.num_tokens if selection is None else selection.num_kept
        parts = -(-len(frames) // max(1, SIDE_BY_SIDE // (tokens * self.backbone.dim)))
        if parts <= 1:
            return self._read(frames, selection)
        groups = torch.arange(len(frames)).tensor_split(parts)
        selections = [None if selection is None else selection.rows(rows) for rows in groups]
        return torch.cat([self._read(frames[r], kept) for r, kept in zip(groups, selections, strict=True)])

    def _read(self, frames: Tensor, selection: TokenSelection | None) -> Tensor:
        options: dict[str, Any] = {} if self.merger is None else {"merger": self.merger}
        if selection is None:
            return self._answer(planes(frames), None, **options)
        if selection.drops and selection.carry == "merge":
            tokens, options["sizes"] = self._with_merged(frames, selection)
            return self._answer(None, tokens=tokens, block=selection.block, **options)
        if selection.drops and selection.carry == "pool":
            options["weights"] = pool_weights(selection)
        if selection.valid is not None:
            options["valid"] = selection.valid
        if selection.tokens is not None:
            return self._answer(None, tokens=selection.tokens, block=selection.block, **options)
        return self._answer(planes(frames), selection.keep_idx, **options)

    def _answer(self, *inputs: Any, **options: Any) -> Tensor:
        """The backbone's logits in memory of their own: a CUDA graph overwrites those that it returned last."""
        logits: Tensor = self.backbone(*inputs, **options)
        return logits.clone() if self.backbone.replayed else logits

    @property
    def _biased(self) -> bool:
        """Whether attention counts some tokens more often than others."""
        return self.merger is not None or (self.pruner is not None and self.pruner.carry == "merge")

    @property
    def _packs(self) -> bool:
        """Whether clips of unequal length run in one row."""
        if self.packing != "auto":
            return self.packing == "packed"
        cuda = next(self.backbone.parameters()).is_cuda
        return JAGGED and cuda and not self._biased and self.backbone._compiled_call_impl is None

    def _read_packed(self, frames: Tensor, selection: TokenSelection, valid: Tensor) -> Tensor:
        return self.backbone.forward_packed(
            planes(frames) if selection.tokens is None else None,
            selection.keep_idx,
            valid,
            tokens=selection.tokens,
            block=selection.block,
            weights=pool_weights(selection) if selection.carry == "pool" else None,
        )

    def _with_merged(self, frames: Tensor, selection: TokenSelection) -> tuple[Tensor, Tensor]:
        """The kept tokens and those of the regions (B, P + K + R, D), and the sizes of all but the class tokens."""
        backbone = self.backbone
        exact = torch.promote_types(next(backbone.parameters()).dtype, torch.float32)
        shares, sizes = region_shares(selection, exact)
        kept, merged = selection.tokens, selection.merged
        if kept is None or merged is None:
            pixels = self.pixels(frames)
            kept = backbone.embed(pixels, selection.keep_idx)
            merged = backbone.embed_means(pixels, shares)
        return append_tokens(
            kept,
            merged,
            sizes,
            valid=selection.valid,
            num_prefix=backbone.num_prefix,
            padding_last=self.merger is not None,
        )

    def _tokens_and_features(self, frames: Tensor, after_block: int) -> tuple[Tensor, Tensor]:
        """All tokens (B, P + N, D) as they enter block `after_block`, and what is compared (B, N, D)."""
        embedded = self.backbone.patch_embed(self.pixels(frames))
        tokens = self.backbone.place(embedded)
        if after_block == 0:
            return tokens, embedded
        tokens = self.backbone.encode(tokens, stop=after_block)
        return tokens, tokens[:, self.backbone.num_prefix :]

    def _arrivals(self, frames: Tensor, pruner: SimilarityPruner) -> Iterator[Arrival]:
        """Place by place, what comes to it after the choices before it: see `Arrival`."""
        tokens, features = self._tokens_and_features(frames, pruner.after_blocks[0])
        present: TokenSelection | None = None
        yield tokens, features, present
        for place, (first, stop) in enumerate(pairwise(pruner.after_blocks)):
            chosen: TokenSelection = pruner(features, self.backbone.grid, present=present, place=place)
            tokens, present = self._kept(tokens, chosen, present), chosen
            tokens = self._encode(tokens, chosen, first, stop)
            features = tokens[:, self.backbone.num_prefix :]
            yield tokens, features, present

    def _select_by_features(self, frames: Tensor, pruner: SimilarityPruner) -> TokenSelection:
        """Goes on with the tokens that were computed for the choice instead of computing them again."""
        arrived: list[Tensor] = []
        for tokens, features, present in self._arrivals(frames, pruner):  # noqa: B007
            if present is not None and pruner.budget.variable:
                arrived.append(present.counts())
        last = len(pruner.after_blocks) - 1
        selection: TokenSelection = pruner(features, self.backbone.grid, present=present, place=last)
        merged = None
        if selection.carry == "merge":
            exact = torch.promote_types(tokens.dtype, torch.float32)
            merged = region_shares(selection, exact)[0] @ tokens[:, self.backbone.num_prefix :].to(exact)
        return replace(
            selection,
            tokens=self._kept(tokens, selection, present),
            block=pruner.after_blocks[-1],
            merged=merged,
            arrived=torch.stack(arrived, 1) if arrived else None,
        )

    def _kept(self, tokens: Tensor, chosen: TokenSelection, present: TokenSelection | None) -> Tensor:
        """tokens (B, P + K, D), the K of `present`, None: all of the grid -> those that are chosen of them."""
        places = chosen.keep_idx if present is None else places_within(chosen.keep_idx, present)
        return gather_tokens(tokens, places, num_prefix=self.backbone.num_prefix)

    def _encode(self, tokens: Tensor, chosen: TokenSelection, first: int, stop: int) -> Tensor:
        """tokens (B, P + K, D) of a selection -> the same behind the blocks `first` to `stop` - 1, with any padding."""
        if chosen.valid is None or self._packs:
            return self.backbone.encode(
                tokens, first=first, stop=stop, valid=chosen.valid, packed=self._packs
            )
        encoded = torch.zeros_like(tokens)
        for rows in similar_lengths(chosen.counts()):
            part = replace(chosen, tokens=tokens).rows(rows)
            assert part.tokens is not None
            length = part.tokens.shape[1]
            encoded[rows, :length] = self.backbone.encode(
                part.tokens, first=first, stop=stop, valid=part.valid
            )
        return encoded

    def pixels(self, frames: Tensor) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> what the backbone reads, (B, 3, T, H, W), normalised, in its precision."""
        dtype = next(self.backbone.parameters()).dtype
        return normalize_pixels(frames, mean=self.backbone.mean, std=self.backbone.std, dtype=dtype)

    def _check_frames(self, frames: Tensor) -> None:
        expected = (self.backbone.num_frames, *self.backbone.frame_size, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"frames must be uint8 (B, {', '.join(map(str, expected))}), got {frames.dtype} {tuple(frames.shape)}"
            )


def planes(frames: Tensor) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> (B, 3, T, H, W) uint8, the same memory, which a backbone reads too.

    It normalises what it keeps of them: a dropped tubelet never becomes a float.
    """
    return frames.movedim(-1, 1)


def similar_lengths(counts: Tensor) -> list[Tensor]:
    """Groups clips by the number of their tokens: counts (B,) -> indices of each group, longest clips first.

    In a group nobody is shorter than `SPREAD` of the longest, so at most an eighth of what runs is padding.
    """
    lengths, order = counts.sort(descending=True, stable=True)
    starts: list[int] = []
    longest = math.inf
    for place, length in enumerate(lengths.tolist()):
        if not starts or length < SPREAD * longest:
            starts.append(place)
            longest = length
    ends = [*starts[1:], len(lengths)]
    return list(order.split([end - start for start, end in zip(starts, ends, strict=True)]))
