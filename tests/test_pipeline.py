"""From frames to logits."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import video_papr as vp
from video_papr.backbones import grouping
from video_papr.backbones.grouping import similar_lengths
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import ConfigError
from video_papr.core.pixels import normalize_pixels
from video_papr.core.types import TokenSelection
from video_papr.pruning.builders import SPECS
from video_papr.pruning.tome import ToMe

FRAMES, SIZE = 8, 32  # a grid of 2 x 4 x 4


def clips(batch=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def pipeline(name="x3d_s", keep_ratio=0.3):
    options = {"frames": 4, "size": 64, "stage": "res4"} if name.startswith("x3d") else {}
    backbone = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)
    return vp.Pipeline(backbone, vp.build_pruner(name, keep_ratio=keep_ratio, **options))


@pytest.mark.parametrize("name", ["x3d_s", "random"])
def test_keep_ratio_one_gives_the_dense_logits(name):
    dense = pipeline("none")
    assert dense.pruner is None
    assert dense.select(clips()) is None
    torch.testing.assert_close(pipeline(name, 1)(clips()), dense(clips()), rtol=0, atol=1e-6)


def test_logits_do_not_depend_on_the_batch():
    flow, frames = pipeline(), clips(5)
    alone = torch.cat([flow(frames[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(flow(frames), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(flow(frames.flip(0)).flip(0), alone, rtol=0, atol=1e-5)
    assert alone.std(0).max() > 1e-3  # the clips do differ


@pytest.mark.parametrize("name", ["none", "x3d_s"])
def test_a_processor_runs_few_clips_side_by_side(name, monkeypatch):
    flow, frames = pipeline(name), clips(5)
    together = flow(frames)
    tokens = flow.backbone.grid.num_tokens if name == "none" else 9
    monkeypatch.setattr(grouping, "SIDE_BY_SIDE", 2 * tokens * flow.backbone.dim)
    seen: list[int] = []
    flow.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    torch.testing.assert_close(flow(frames), together, rtol=0, atol=1e-5)
    assert sorted(seen) == [1, 2, 2]
    assert flow(frames[:0]).shape == (0, flow.backbone.num_classes)


@pytest.mark.parametrize("options", [{}, {"scope": "frame"}, {"budget": "top_p"}, {"compensation": "merge"}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_clip_whose_map_is_not_finite_has_no_logits(monkeypatch, options, value):
    """A scorer that overflows, or whose weights are broken, would choose the first tokens of every clip."""
    ratio = {} if "budget" in options else {"keep_ratio": 0.3}
    flow, frames = (
        vp.Pipeline(pipeline("none").backbone, vp.build_pruner("motion", **ratio, **options)),
        clips(),
    )
    healthy, score = flow(frames), flow.pruner.scorer.forward

    def broken(frames, grid):
        map = score(frames, grid).clone()
        map[1] = value
        map[2, 0, 0, 0] = value  # a single one is passed over, or kept
        return map

    monkeypatch.setattr(flow.pruner.scorer, "forward", broken)
    found, selection = flow(frames), flow.select(frames)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()
    torch.testing.assert_close(found[0], healthy[0], rtol=0, atol=1e-5)
    swapped = flow.classify(frames[[2, 1]], selection.rows(torch.tensor([2, 1])))
    assert swapped.isnan().any(1).tolist() == [False, True]


def test_the_two_halves_make_the_whole():
    flow, frames = pipeline(), clips()
    selection = flow.select(frames)
    assert selection is not None
    assert (selection.num_kept, selection.grid) == (9, flow.backbone.grid)
    assert torch.equal(flow.classify(frames, selection), flow(frames))
    assert torch.equal(flow.classify(frames, None), pipeline("none")(frames))
    other = TokenSelection(torch.arange(9).expand(3, -1), flow.backbone.grid)
    assert not torch.allclose(flow.classify(frames, other), flow(frames))


def test_every_network_gets_its_own_normalisation():
    flow, frames = pipeline(), clips()
    seen = {}
    embed = flow.backbone.patch_embed
    embed.proj.register_forward_pre_hook(lambda _, inputs: seen.update(backbone=inputs[0]))
    assert flow.pruner is not None
    trunk = flow.pruner.scorer.trunk
    trunk.register_forward_pre_hook(lambda _, inputs: seen.update(scorer=inputs[0]))
    flow.classify(frames, None)
    flow.select(frames)
    share = frames.permute(0, 4, 1, 2, 3).double() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = embed.gather((share - mean) / std).flatten(2)
    torch.testing.assert_close(seen["backbone"].double(), expected, rtol=0, atol=1e-5)
    assert seen["scorer"].mean().item() == pytest.approx(((share - 0.45) / 0.225).mean().item(), abs=0.02)
    assert seen["scorer"].shape == (3, 3, 4, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    flow, frames = pipeline(), clips()
    expected = flow(frames)
    logits = flow.to(dtype)(frames)
    assert logits.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.3
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, FRAMES, SIZE, SIZE, 3),
        torch.zeros(1, FRAMES + 4, SIZE, SIZE, 3, dtype=torch.uint8),
        torch.zeros(1, 3, FRAMES, SIZE, SIZE, dtype=torch.uint8),
        torch.zeros(FRAMES, SIZE, SIZE, 3, dtype=torch.uint8),
        torch.zeros(1, FRAMES, SIZE, SIZE, 4, dtype=torch.uint8),
    ],
    ids=lambda frames: f"{frames.dtype} {tuple(frames.shape)}",
)
def test_frames_of_another_type_or_shape(frames):
    flow = pipeline("motion")
    line = rf"^frames must be uint8 \(B, 8, 32, 32, 3\), got {frames.dtype} \({frames.shape[0]}, "
    for call in (flow, flow.select, lambda x: flow.classify(x, None)):
        with pytest.raises(ValueError, match=line):
            call(frames)


# ---- clips that keep unequal numbers of tokens ----


def unlike_clips():
    """Noise, a black clip, a clip of one colour, a picture that stands still, and one whose half moves."""
    frames = clips(5)
    frames[1] = 0
    frames[2] = torch.tensor([200, 30, 90], dtype=torch.uint8)
    frames[3] = frames[3, :1]
    frames[4, :, :12] = frames[4, :1, :12]
    return frames


VARIABLE: list[tuple[str, dict[str, object]]] = [
    ("run_length", {"min_keep": 0.05}),
    ("motion", {"budget": "top_p", "top_p": 0.6}),
    ("motion", {"budget": "top_p", "top_p": 0.6, "scope": "frame"}),
    ("x3d_s", {"budget": "threshold", "threshold": 0.4}),
    ("similarity", {"mode": "threshold", "tau": 0.2}),
    ("similarity", {"mode": "adaptive", "diversity": "cluster", "after_block": 2}),
    ("similarity", {"mode": "adaptive", "deviations": -0.3, "diversity": "grid", "after_block": 1}),
]


@pytest.mark.parametrize("merger", [None, ToMe(3), ToMe(2, "decreasing")], ids=["", "tome", "falling"])
@pytest.mark.parametrize(("name", "options"), VARIABLE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_unequal_clips_side_by_side_equal_one_by_one(name, options, merger, dtype, tolerance):
    small = {"frames": 4, "size": 64, "stage": "res4"} if name.startswith("x3d") else {}
    backbone = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)
    for value in backbone.parameters():  # far from uniform attention
        value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    flow = vp.Pipeline(backbone.to(dtype), vp.build_pruner(name, **small, **options), merger)
    frames = unlike_clips()
    selection = flow.select(frames)
    assert selection is not None and selection.valid is not None
    counts = selection.counts().tolist()
    assert len(set(counts)) > 1
    alone = torch.cat([flow(frames[i : i + 1]) for i in range(5)])
    assert alone.isfinite().all()
    assert alone.std(0).max() > 1e-2
    torch.testing.assert_close(flow(frames), alone, rtol=0, atol=tolerance)
    torch.testing.assert_close(flow(frames.flip(0)).flip(0), alone, rtol=0, atol=tolerance)
    # all in one group, padded to the longest
    everyone = torch.arange(5)
    padded = flow._run(frames, selection.rows(everyone))
    torch.testing.assert_close(padded, alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("after_block", [0, 1, 3])
def test_similarity_goes_on_where_it_chose(after_block):
    flow, frames = pipeline("none"), clips()
    backbone = flow.backbone.double()
    flow = vp.Pipeline(backbone, vp.build_pruner("similarity", keep_ratio=0.4, after_block=after_block))
    selection = flow.select(frames)
    assert selection is not None and flow.pruner is not None
    assert (selection.num_kept, selection.block) == (12, after_block)
    pixels = normalize_pixels(frames, mean=backbone.mean, std=backbone.std, dtype=torch.float64)
    tokens = backbone.embed(pixels)
    for block in backbone.blocks[:after_block]:
        tokens = block(tokens)
    compared = tokens if after_block else backbone.patch_embed(pixels)  # before positions
    expected = flow.pruner.choose(compared, backbone.grid)
    assert torch.equal(selection.keep_idx, expected.keep_idx)
    tokens = torch.stack([one[kept] for one, kept in zip(tokens, selection.keep_idx, strict=True)])
    for block in backbone.blocks[after_block:]:
        tokens = block(tokens)
    torch.testing.assert_close(flow(frames), backbone.forward_head(tokens), rtol=0, atol=1e-9)
    significance = flow.significance(frames)
    assert significance is not None
    torch.testing.assert_close(significance, flow.pruner.score(compared, backbone.grid))


def test_similarity_needs_a_block_to_go_on_with():
    with pytest.raises(ConfigError, match=r"^pruner\.after_block=4 must be below the backbone's 4 blocks$"):
        vp.Pipeline(vp.build_backbone("videomae_tiny"), vp.build_pruner("similarity", after_block=4))


# ---- merging inside the blocks ----


@pytest.mark.parametrize("name", ["none", "random", "similarity"])
def test_merging_nothing_changes_nothing(name):
    flow, frames = pipeline(name), clips()
    merging = vp.Pipeline(flow.backbone, flow.pruner, vp.build_merger("tome", r=0))
    torch.testing.assert_close(merging(frames), flow(frames), rtol=0, atol=1e-6)


def test_attention_and_mean_count_a_merged_token_as_often_as_it_has_tubelets():
    """Tokens with equal content merge without a loss: the logits are those of all of them."""
    backbone = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE).double()
    tokens = torch.randn(2, 4, 192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    doubled = tokens.repeat_interleave(2, 1)  # neighbours are equal: A and B
    options = {"tokens": doubled, "block": 0}
    plain = backbone(None, **options)
    assert not torch.allclose(backbone(None, tokens=doubled[:, 1:]), plain)
    for r in (1, 4):
        first_only = ToMe(r)
        lengths: list[int] = []

        def merge(tokens, *rest, block, **more):
            if block:
                return tokens, rest[1]
            merged = first_only(tokens, *rest, block=block, **more)  # noqa: B023
            lengths.append(merged[0].shape[1])  # noqa: B023
            return merged

        merge.prop_attn = True
        torch.testing.assert_close(backbone(None, merger=merge, **options), plain, rtol=0, atol=1e-9)
        assert lengths == [8 - r]


def test_lengths_are_grouped_so_that_little_is_padding():
    counts = torch.tensor([10, 100, 99, 88, 87, 12, 100, 3])
    groups = [group.tolist() for group in similar_lengths(counts)]
    assert groups == [[1, 6, 2, 3], [4], [5], [0], [7]]
    assert [group.tolist() for group in similar_lengths(torch.tensor([5]))] == [[0]]


@pytest.mark.parametrize("merger", [None, ToMe(2)], ids=["", "tome"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("motion", {"budget": "top_p", "top_p": 0.6}),
        ("similarity", {"mode": "adaptive"}),
        ("similarity", {"mode": "adaptive", "after_block": 1}),
    ],
)
def test_class_token_of_vivit_is_never_padding_nor_merged(name, options, merger):
    shape = {"num_frames": FRAMES, "input_size": SIZE, "tubelet": (2, 8, 8)}
    torch.manual_seed(0)
    backbone = ViViT(num_classes=5, dim=24, depth=3, num_heads=3, **shape).double().eval()
    for value in backbone.requires_grad_(False).parameters():
        value.add_(0.2 * torch.randn(value.shape, dtype=torch.float64))
    flow, frames = vp.Pipeline(backbone, vp.build_pruner(name, **options), merger), unlike_clips()
    selection = flow.select(frames)
    assert selection is not None and selection.valid is not None
    assert selection.counts().max() <= 64  # the class token is not counted
    alone = torch.cat([flow(frames[i : i + 1]) for i in range(5)])
    assert alone.std(0).max() > 1e-2
    torch.testing.assert_close(flow(frames), alone, rtol=0, atol=1e-9)
    nothing = vp.Pipeline(backbone, vp.build_pruner(name, **options), ToMe(0))
    plain = vp.Pipeline(backbone, vp.build_pruner(name, **options))
    torch.testing.assert_close(nothing(frames), plain(frames), rtol=0, atol=1e-9)


# ---- one flow with stages ----

SMALL: dict[str, dict[str, object]] = {
    "x3d_xs": {"frames": 4, "size": 32, "stage": "res2"},
    "x3d_s": {"frames": 4, "size": 32},
    "x3d_m": {"frames": 4, "size": 32, "stage": "res3"},
    "papr_plus": {"frames": 4, "size": 32, "stages": ["res2"]},
    "image_convnet": {"model": "resnet10t"},
    "video_convnet": {"size": 32, "stage": "layer2"},
    "similarity": {"after_block": 1},
}
PARTS = ["embed", "blocks", "head"]


@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_a_run_that_is_watched_is_the_same_run(name):
    """Every pruner, compensation and merger: the same logits, and the stages in their order."""
    backbone = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)
    spec, frames, pruner = SPECS[name], unlike_clips()[2:], vp.build_pruner(name, **SMALL.get(name, {}))
    assert pruner is not None
    for compensation, merger in product(("none", "pool", "merge"), (None, ToMe(2))):
        if compensation == "pool" and merger is not None:
            continue  # both weigh the mean
        pruner.compensation = compensation
        flow, stages = vp.Pipeline(backbone, pruner, merger), list[str]()
        assert torch.equal(flow(frames, stages.append), flow(frames))
        scoring = ["select"] if spec.reads_tokens else ["score", "select"]
        rest = stages[len(scoring) :]
        assert stages[: len(scoring)] == scoring
        assert rest == PARTS * (len(rest) // 3) and (spec.variable or len(rest) == 3)


@torch.inference_mode()
def test_a_compiled_backbone_is_one_stage():
    flow, stages = pipeline("motion"), list[str]()
    expected = flow(clips())
    flow.backbone.compile(backend="eager")
    torch.testing.assert_close(flow(clips(), stages.append), expected)
    assert stages == ["score", "select", "backbone"]


@torch.inference_mode()
def test_stages_of_packed_clips():
    backbone = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)
    flow = vp.Pipeline(backbone, vp.build_pruner("run_length"), packing="packed")
    stages: list[str] = []
    assert torch.equal(flow(unlike_clips(), stages.append), flow(unlike_clips()))
    assert stages == ["score", "select", *PARTS]
