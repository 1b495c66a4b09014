"""The variants of one setting: the dense model, pruners at every keep ratio, ToMe, and transformers' own model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import _dynamo as dynamo
from torch import nn

from ..backbones.builders import Backbone
from ..pipeline import Pipeline
from ..pruning.builders import SPECS, build_pruner
from ..pruning.protocol import Pruner
from ..pruning.scorers.channels_last import use_channels_last
from ..pruning.tome import ToMe
from .peers import PeerFlow, drops_tokens
from .probes import backbone_whole
from .suite import DENSE, Variant

Options = Mapping[str, Any]


def build_variants(
    ours: Backbone,
    theirs: nn.Module | None,
    *,
    pruners: Sequence[tuple[str, Options]],
    keep_ratios: Sequence[float],
    tome: Sequence[int] = (),
    split: bool = True,
    packing: str = "auto",
) -> list[Variant]:
    """All variants around the same networks, the dense model first.

    Args:
        ours, theirs: from `peers.build_pair`.
        pruners: (name, options of `build_pruner`); with every one of `keep_ratios`, unless the options have one or the
            clip decides how much is kept.
        tome: tokens that ToMe merges per block, one variant each.
        split: time the parts of the backbone one by one; not possible where it is compiled.
    """

    def variant(name: str, kind: str, flow: Pipeline, settings: dict[str, Any]) -> Variant:
        staged = flow if split else partial(backbone_whole, flow)
        return Variant(name, kind, flow, staged, settings, None if flow.pruner is None else flow)

    variants = [variant(DENSE, "dense", Pipeline(ours), {})]
    choosers: dict[str, Pipeline] = {}
    for place, (name, options) in enumerate(pruners):
        for title, settings, pruner in _at_ratios(name, options, keep_ratios):
            flow = Pipeline(ours, pruner, packing=packing)
            variants.append(variant(title, "pruned", flow, settings))
            if place == 0 and not pruner.budget.variable:
                choosers[title] = flow
    variants += [
        variant(f"tome r={r}", "merged", Pipeline(ours, merger=ToMe(r)), {"merger": "tome", "r": r})
        for r in tome
    ]
    if theirs is None:
        return variants
    plain = PeerFlow(ours, theirs)
    variants.append(Variant("huggingface", "peer", plain, plain, {}, like=DENSE))
    for title, chooser in choosers.items() if drops_tokens(theirs) else ():
        masked = PeerFlow(ours, theirs, chooser)
        settings = {"dropped_by": "bool_masked_pos", "chosen_by": title}
        variants.append(
            Variant(f"huggingface {title}", "peer", masked, masked, settings, chooser, like=title)
        )
    return variants


def _at_ratios(
    name: str, options: Options, keep_ratios: Sequence[float]
) -> Iterator[tuple[str, dict[str, Any], Pruner]]:
    """(title, settings, pruner) at every ratio; all share one scorer, which is built, and compiled, once."""
    free = (name not in SPECS or SPECS[name].has_ratio) and "keep_ratio" not in options
    fixed = options.get("budget", "fixed") == "fixed" and options.get("mode", "ratio") == "ratio"
    extra = "".join(f" {key}={value}" for key, value in options.items() if key != "keep_ratio")
    scorer: nn.Module | None = None
    for ratio in keep_ratios if free and fixed else [options.get("keep_ratio")]:
        settings = {**options, "pruner": name} | ({} if ratio is None else {"keep_ratio": ratio})
        pruner = build_pruner(name, **{key: value for key, value in settings.items() if key != "pruner"})
        assert pruner is not None  # "none" is the dense model
        if scorer is not None:
            pruner.scorer = scorer
        scorer = getattr(use_channels_last(pruner), "scorer", None)
        yield f"{name}{'' if ratio is None else f' {ratio:g}'}{extra}", settings, pruner


def compile_variants(variants: Sequence[Variant], **options: Any) -> None:
    """torch.compile for every network in the variants, in place, with fixed shapes and the same `options`.

    A network that several variants share is told so several times, and compiled once for each shape.
    Every number of tokens becomes a graph of its own, with fixed shapes; torch's limit on graphs is raised to allow it.
    """
    dynamo.config.cache_size_limit = max(dynamo.config.cache_size_limit, 2 * len(variants))
    for variant in variants:
        flow = variant.flow
        if isinstance(flow, PeerFlow):
            # Not as one whole graph: what `bool_masked_pos` leaves has a length that no compiler knows beforehand.
            flow.theirs.compile(dynamic=False, **options)
        else:
            assert isinstance(flow, Pipeline)
            flow.compile_networks(fullgraph=True, dynamic=False, **options)
