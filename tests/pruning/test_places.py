"""Patch similarity at several places of a backbone, against a dense model whose attention leaves tokens out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid, TokenSelection
from video_papr.data.datasets import VideoSample
from video_papr.evaluation.cost import Engine, choice_cost, gmacs_per_view, mean_gmacs
from video_papr.evaluation.evaluator import Evaluator
from video_papr.inference.export import check_exportable
from video_papr.pipeline import Pipeline
from video_papr.pruning.budget import keep_count
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.similarity import SimilarityPruner
from video_papr.pruning.scorers.token_similarity import mean_similarity
from video_papr.pruning.select import on_grid, places_within
from video_papr.pruning.tome import ToMe

FRAMES, SIZE = 8, 24  # a grid of 4 x 3 x 3
TOKENS, DIM = 36, 24


def model(kind: type[VideoMAE] | type[ViViT] = VideoMAE) -> VideoMAE | ViViT:
    """Four small blocks in double precision, far from uniform attention."""
    shape: dict[str, Any] = {"num_frames": FRAMES, "input_size": SIZE, "tubelet": (2, 8, 8)}
    torch.manual_seed(0)
    made = kind(num_classes=5, dim=DIM, depth=4, num_heads=3, **shape).double().eval().requires_grad_(False)
    for value in made.parameters():
        value.add_(0.2 * torch.randn(value.shape, dtype=torch.float64))
    return made


def clips(batch: int = 3) -> Tensor:
    """Noise; the second clip hardly moves, the third is noise for one half. No two tubelets are equal."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 240, (batch, FRAMES, SIZE, SIZE, 3), generator=generator)
    frames[1, :, 4:] = frames[1, :1, 4:]
    frames[2, :, :, :13] = 77
    return (frames + torch.randint(0, 16, frames.shape, generator=generator)).to(torch.uint8)


def flow_of(after_block: Any, kind: Any = VideoMAE, merger: ToMe | None = None, **options: Any) -> Pipeline:
    return Pipeline(model(kind), build_pruner("similarity", after_block=after_block, **options), merger)


def masked_block(block: Any, tokens: Tensor, alive: Tensor) -> Tensor:
    """One clip (P + N, D) through a block where only `alive` (P + N,) tokens are attended to, written out."""
    attention, heads = block.attn, block.attn.num_heads
    query, key, value = attention.qkv(block.norm1(tokens)).view(len(tokens), 3, heads, -1).permute(1, 2, 0, 3)
    scores = query @ key.transpose(1, 2) / key.shape[2] ** 0.5
    shares = scores.masked_fill(~alive, float("-inf")).softmax(2)
    tokens = tokens + attention.proj((shares @ value).transpose(0, 1).flatten(1))
    return tokens + block.mlp(block.norm2(tokens))


def redundancy(features: Tensor, alive: list[int]) -> dict[int, float]:
    """Mean cosine similarity of every living token to the others."""
    pairs = F.cosine_similarity(features[alive][:, None], features[alive][None], dim=2).fill_diagonal_(0)
    return dict(zip(alive, (pairs.sum(1) / max(len(alive) - 1, 1)).tolist(), strict=True))


def survivors(likeness: dict[int, float], options: dict[str, Any], part: float) -> list[int]:
    """What one place leaves, with diversity=none."""
    mode = options.get("mode", "ratio")
    order = sorted(likeness, key=likeness.__getitem__)
    if mode == "ratio":
        return sorted(order[: keep_count(options["keep_ratio"] ** part, TOKENS)])
    values = torch.tensor(list(likeness.values()))
    level = (
        options["tau"]
        if mode == "threshold"
        else values.mean() + options["deviations"] * values.std(correction=0)
    )
    wanted = sum(value <= level for value in likeness.values())
    least, most = (keep_count(share, TOKENS) for share in (0.05, options.get("max_keep", 1.0) ** part))
    return sorted(order[: min(max(wanted, least), most, len(order))])


def naive(flow: Pipeline, frames: Tensor, options: dict[str, Any]) -> tuple[list[int], Tensor]:
    """One clip (1, T, H, W, 3): the tokens kept, and the logits, in a sequence of all N tokens from first to last."""
    backbone, pruner = flow.backbone, flow.pruner
    assert isinstance(pruner, SimilarityPruner)
    pixels, first = backbone.normalize(frames), backbone.num_prefix
    tokens, alive = backbone.embed(pixels)[0], list(range(TOKENS))
    for number, block in enumerate(backbone.blocks):
        if number in pruner.after_blocks:
            compared = tokens[first:] if number else backbone.patch_embed(pixels)[0]
            part = (pruner.after_blocks.index(number) + 1) / len(pruner.after_blocks)
            alive = survivors(redundancy(compared, alive), options, part)
        attended = torch.zeros(first + TOKENS, dtype=torch.bool)
        attended[[*range(first), *(first + token for token in alive)]] = True
        tokens = masked_block(block, tokens, attended)
    return alive, backbone.forward_head(tokens[attended][None])[0]


PLACES = [(0,), (2,), (0, 1), (1, 3), (0, 1, 3), (0, 1, 2, 3)]
RULES: list[dict[str, Any]] = [
    {"keep_ratio": 0.3},
    {"mode": "threshold", "tau": 0.1},
    {"mode": "adaptive", "deviations": 0.4, "max_keep": 0.4},
]


@pytest.mark.parametrize("kind", [VideoMAE, ViViT])
@pytest.mark.parametrize("options", RULES, ids=lambda rule: rule.get("mode", "ratio"))
@pytest.mark.parametrize("places", PLACES)
def test_pruning_step_by_step_equals_a_dense_model_that_attends_to_ever_fewer_tokens(
    places: tuple[int, ...], options: dict[str, Any], kind: Any
) -> None:
    flow, frames = flow_of(list(places), kind, **options), clips()
    selection = flow.select(frames)
    assert selection is not None
    logits = flow.classify(frames, selection)
    for clip in range(len(frames)):
        kept, expected = naive(flow, frames[clip : clip + 1], options)
        own = selection.rows(torch.tensor([clip]))
        assert own.keep_idx[0].tolist() == kept
        torch.testing.assert_close(logits[clip], expected, rtol=0, atol=1e-9)
    if options is RULES[0]:
        assert selection.counts().tolist() == [10] * 3  # floor(0.3 * 36), whatever the places
    elif len(places) > 1:
        assert selection.arrived is not None and selection.arrived.shape == (3, len(places) - 1)
        assert (selection.arrived >= selection.counts()[:, None]).all()


@pytest.mark.parametrize(
    "options", [*RULES, {"diversity": "grid"}, {"mode": "adaptive", "diversity": "cluster"}]
)
@pytest.mark.parametrize("place", [0, 2])
def test_a_list_of_one_is_the_number_to_the_last_bit(place: int, options: dict[str, Any]) -> None:
    frames = clips()
    one, two = (flow_of(place, **options), flow_of([place], **options))
    chosen, listed = one.select(frames), two.select(frames)
    assert chosen is not None and listed is not None and listed.arrived is None
    assert torch.equal(chosen.keep_idx, listed.keep_idx)
    assert torch.equal(one(frames), two(frames))


@pytest.mark.parametrize("diversity", ["grid", "cluster"])
@pytest.mark.parametrize("mode", ["ratio", "threshold", "adaptive"])
def test_diversity_at_several_places(mode: str, diversity: str) -> None:
    """Clips alone and together keep the same; what is kept at a place was there before."""
    options = {"mode": mode, "diversity": diversity, "tau": 0.1, "cluster_tau": 0.6, "keep_ratio": 0.3}
    flow, frames = flow_of([0, 1, 3], **options), clips()
    selection = flow.select(frames)
    assert selection is not None and isinstance(flow.pruner, SimilarityPruner)
    if mode == "ratio":
        assert selection.counts().tolist() == [10] * 3
    alone = torch.cat([flow(frames[clip : clip + 1]) for clip in range(3)])
    torch.testing.assert_close(flow(frames), alone, rtol=0, atol=1e-9)
    before = torch.ones(3, *flow.backbone.grid.shape, dtype=torch.bool)
    for _, _, present in flow.pruner.arrivals(frames, flow.backbone):
        if present is not None:
            assert (before | ~present.mask()).all()
            before = present.mask()
    assert (before | ~selection.mask()).all()


def test_the_map_ranks_what_came_further_higher() -> None:
    flow, frames = flow_of([0, 2, 3], keep_ratio=0.25), clips()
    selection, found = flow.select(frames), flow.significance(frames)
    assert selection is not None and found is not None
    kept = selection.mask()
    for scores, own in zip(found, kept, strict=True):
        assert scores[own].min() >= scores[~own].max()
    assert found.min() >= -5 and found.max() <= 1


masks = st.lists(st.lists(st.booleans(), min_size=12, max_size=12).filter(any), min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(rows=masks, seed=st.integers(0, 99))
def test_scores_of_what_is_left(rows: list[list[bool]], seed: int) -> None:
    """Those of each clip's own tokens alone, -inf elsewhere; and in whatever order the tokens stand."""
    grid = TokenGrid(1, 3, 4)
    mask = torch.tensor(rows).view(-1, *grid.shape)
    present = TokenSelection.from_mask(mask)
    generator = torch.Generator().manual_seed(seed)
    everything = torch.randn(len(rows), 12, 5, generator=generator, dtype=torch.float64)
    tokens = everything.gather(1, present.keep_idx[..., None].expand(-1, -1, 5))
    found = SimilarityPruner().score(tokens, grid, present).flatten(1)
    assert torch.equal(found > float("-inf"), mask.flatten(1))
    for clip, kept in enumerate(mask.flatten(1)):
        expected = -mean_similarity(everything[clip, kept][None])[0]
        torch.testing.assert_close(found[clip, kept], expected, rtol=0, atol=1e-12)
    order = torch.randperm(present.num_kept, generator=generator)
    valid = None if present.valid is None else present.valid[:, order]
    shuffled, plain = mean_similarity(tokens[:, order], valid), mean_similarity(tokens, present.valid)
    torch.testing.assert_close(shuffled, plain[:, order], rtol=0, atol=1e-12)
    numbers = torch.arange(present.num_kept).expand(len(rows), -1)
    placed = on_grid(numbers, present, fill=-1).flatten(1)
    assert torch.equal(placed.gather(1, present.keep_idx), places_within(present.keep_idx, present))
    assert torch.equal(placed >= 0, mask.flatten(1))


def block_macs(count: int) -> int:
    """Of `count` tokens: query, key, value and projection, the MLP, and attention's two products."""
    return 12 * count * DIM**2 + 2 * count**2 * DIM


def test_arithmetic_is_that_of_the_tokens_that_are_left() -> None:
    frames = clips(3)[:1]
    embedding, head = TOKENS * 3 * 2 * 8 * 8 * DIM, 5 * DIM
    found = gmacs_per_view(flow_of([1, 3], keep_ratio=0.25), frames)
    scorer = embedding + block_macs(TOKENS) + 2 * block_macs(18)  # half of 36, then a quarter
    assert found["scorer"] == pytest.approx(scorer / 1e9, rel=1e-9)
    assert found["backbone"] == pytest.approx((block_macs(9) + head) / 1e9, rel=1e-9)
    assert found["total"] < gmacs_per_view(flow_of(3, keep_ratio=0.25), frames)["total"] < found["dense"]


@pytest.mark.parametrize("diversity", ["none", "cluster"])
def test_arithmetic_where_the_clip_decides(diversity: str) -> None:
    """What is counted without content is what a run takes."""
    flow = flow_of([1, 3], mode="adaptive", diversity=diversity, cluster_tau=0.6)
    counting, frames = choice_cost(flow), clips()
    assert counting is not None
    each = []
    for clip in frames.split(1):
        selection, run = flow.select(clip), gmacs_per_view(flow, clip)
        assert selection is not None and selection.arrived is not None
        each.append(counting(selection.arrived))
        assert each[-1] == pytest.approx(run["scorer"], rel=1e-9)
        assert mean_gmacs(flow, run, {selection.num_kept: 1})["backbone"] == pytest.approx(
            run["backbone"], rel=1e-9
        )
    together = flow.select(frames)
    assert together is not None and together.arrived is not None
    assert counting(together.arrived) == pytest.approx(sum(each) / 3, rel=1e-9)
    assert len(set(each)) > 1
    assert choice_cost(flow_of([1, 3])) is None and choice_cost(flow_of(1, mode="adaptive")) is None


@pytest.mark.parametrize("options", RULES[:2], ids=["ratio", "threshold"])
def test_merging_begins_behind_the_last_place(options: dict[str, Any]) -> None:
    flow, merging = flow_of([1, 2], **options), flow_of([1, 2], merger=ToMe(0), **options)
    torch.testing.assert_close(merging(clips()), flow(clips()), rtol=0, atol=1e-9)
    merging = flow_of([1, 2], merger=ToMe(2), **options)
    one, two = merging.select(clips()), flow.select(clips())
    assert one is not None and two is not None and torch.equal(one.keep_idx, two.keep_idx)
    assert not torch.allclose(merging(clips()), flow(clips()))


@pytest.mark.parametrize("places", [[3, 1], [1, 1], [0, -1], [True, 2], [], [1, 2.0], ["1", 2]], ids=str)
def test_lists_that_are_none(places: list[Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_pruner("similarity", after_block=places)
    right = "ascending whole numbers of at least 0, as in [3,6,9]"
    assert str(caught.value) == f"pruner.after_block={places} must be {right}"


def test_what_does_not_go_with_several_places() -> None:
    with pytest.raises(
        ConfigError, match=r"^pruner\.after_block=\[1, 4\] must be below the backbone's 4 blocks$"
    ):
        flow_of([1, 4])
    with pytest.raises(
        ConfigError,
        match=r"^pruner\.compensation=merge: cannot be combined with pruner\.after_block=\[1, 2\]",
    ):
        flow_of([1, 2], compensation="merge")
    with pytest.raises(ConfigError, match=r"^pruner\.after_block=\[1, 2\] cannot be exported"):
        check_exportable(flow_of([1, 2]))
    pooled = flow_of([1, 2], compensation="pool")(clips())  # which looks at the end only
    assert pooled.isfinite().all() and not torch.allclose(pooled, flow_of([1, 2])(clips()))


@pytest.mark.parametrize("mode", ["ratio", "adaptive"])
def test_an_evaluation_counts_the_choice_of_its_own_videos(mode: str) -> None:
    flow, views = flow_of([1, 3], mode=mode), clips()
    samples = [
        VideoSample(index, str(index), 0, view, None, 1.0, None, FRAMES, 25.0)
        for index, view in enumerate(views.split(1))
    ]
    found = Evaluator(
        flow,
        prepare=lambda clip: clip,
        views_per_video=1,
        batch_size=2,
        engine=Engine(torch.device("cpu")),
    ).run(samples)
    runs = found.pruned.scorer_gmacs
    if mode == "ratio":  # the same for every clip, and counted once beforehand
        assert runs == []
        return
    assert sum(count for _, count in runs) == 3
    each = [gmacs_per_view(flow, view)["scorer"] for view in views.split(1)]
    assert sum(gmacs * count for gmacs, count in runs) == pytest.approx(sum(each), rel=1e-9)
