"""Clips of unequal length in one row: the answers of one by one, and no arithmetic on padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import video_papr as vp
from video_papr.backbones import packing as module
from video_papr.backbones.encoder import Encoder
from video_papr.backbones.packing import Packing, attend_clip_by_clip, attend_jagged
from video_papr.backbones.timm_vit import TimmViT
from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.benchmark.flops import count_gmacs
from video_papr.benchmark.work import count_work
from video_papr.config import RuntimeConfig
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid, TokenSelection
from video_papr.pipeline import Pipeline
from video_papr.pruning.tome import ToMe

FRAMES, SIZE, TOKENS = 8, 24, 36  # a grid of 4 x 3 x 3
WAYS: list[Callable[..., Tensor]] = [attend_clip_by_clip, attend_jagged]
JAGGED = pytest.mark.skipif(not module.JAGGED, reason="this torch makes no jagged tensors from a row")
each_way = pytest.mark.parametrize(
    "way", [WAYS[0], pytest.param(WAYS[1], marks=JAGGED)], ids=["clip by clip", "jagged"]
)


def model(kind: str) -> Encoder:
    """Small, float32, and far from uniform attention."""
    shape: dict[str, Any] = {"num_frames": FRAMES, "input_size": SIZE, "tubelet": (2, 8, 8)}
    torch.manual_seed(0)
    made: Encoder
    if kind == "timm":  # norms of query and key, registers, a norm before the blocks
        vit = timm.models.VisionTransformer(
            **{
                "img_size": 48,
                "patch_size": 8,
                "embed_dim": 24,
                "depth": 2,
                "num_heads": 3,
                "num_classes": 5,
            },
            **{"reg_tokens": 2, "init_values": 0.5, "qk_norm": True, "pre_norm": True},
        )
        made = TimmViT(vit.eval(), name=kind)
    else:
        made = {"videomae": VideoMAE, "vivit": ViViT}[kind](
            num_classes=5, dim=24, depth=3, num_heads=3, **shape
        )
    for value in made.eval().requires_grad_(False).parameters():
        value.add_(0.2 * torch.randn(value.shape))
    return made


MODELS = {kind: model(kind) for kind in ("videomae", "vivit", "timm")}
lengths_of = st.one_of(
    st.lists(st.integers(1, TOKENS), min_size=1, max_size=5),
    st.tuples(st.integers(1, TOKENS), st.integers(1, 4)).map(lambda pair: [pair[0]] * pair[1]),
)


def kept(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """keep_idx and valid of clips that keep so many of the tokens, drawn at random."""
    order = (
        torch.rand(len(lengths), TOKENS, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    )
    mask = (order < torch.tensor(lengths)[:, None]).view(-1, 4, 3, 3)
    selection = TokenSelection.from_mask(mask)
    everywhere = torch.ones(selection.keep_idx.shape, dtype=torch.bool)
    return selection.keep_idx, everywhere if selection.valid is None else selection.valid


def pixels_for(backbone: Encoder, batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, backbone.num_frames, *backbone.frame_size, generator=generator)


@pytest.mark.parametrize("kind", MODELS)
@settings(deadline=None, max_examples=15)
@given(lengths=lengths_of, seed=st.integers(0, 99))
def test_a_row_gives_the_logits_of_one_by_one(kind: str, lengths: list[int], seed: int) -> None:
    backbone, (keep_idx, valid) = MODELS[kind], kept(lengths, seed)
    pixels = pixels_for(backbone, len(lengths), seed)
    alone = torch.cat(
        [backbone(pixels[i : i + 1], keep_idx[i : i + 1, :count]) for i, count in enumerate(lengths)]
    )
    assert backbone.grid.num_tokens == TOKENS
    torch.testing.assert_close(backbone.forward_packed(pixels, keep_idx, valid), alone, rtol=0, atol=1e-5)
    # tokens that have come through the first block, padded, one by one; then the row
    started = backbone.encode(backbone.embed(pixels, keep_idx), stop=1, valid=valid)
    through = backbone.forward_packed(None, keep_idx, valid, tokens=started, block=1)
    torch.testing.assert_close(through, alone, rtol=0, atol=1e-5)
    first = backbone.encode(backbone.embed(pixels, keep_idx), stop=1, valid=valid, packed=True)
    inside = Packing.of(valid, backbone.num_prefix).mask
    torch.testing.assert_close(first[inside], started[inside], rtol=0, atol=1e-5)
    assert (first[~inside] == 0).all()


@JAGGED
@settings(deadline=None, max_examples=25)
@given(lengths=lengths_of, seed=st.integers(0, 99), prefix=st.integers(0, 2), inference=st.booleans())
def test_both_ways_to_attend_agree(lengths: list[int], seed: int, prefix: int, inference: bool) -> None:
    packing = Packing.of(kept(lengths, seed)[1], prefix)
    assert packing.lengths == tuple(prefix + length for length in lengths)
    count = sum(packing.lengths)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(inference):
        parts = [torch.randn(count, 3, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
        one, two = (way(*parts, packing) for way in WAYS)
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        tokens = torch.randn(len(lengths), max(packing.lengths), 4, generator=generator)
        row = packing.pack(tokens)
        assert row.shape == (1, count, 4)
        assert torch.equal(packing.unpack(row), tokens * packing.mask[..., None])


def test_query_and_key_have_the_precision_of_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, autocast runs the norms of query and key in float32; attention takes one precision."""

    class Float32(torch.nn.Module):
        def forward(self, part: Tensor) -> Tensor:
            return part.float()

    seen = []

    def attend(*parts: Any) -> Tensor:
        seen.append([part.dtype for part in parts[:3]])
        return attend_clip_by_clip(*parts)

    monkeypatch.setattr(module, "attend_within", attend)
    net = model("timm")
    blocks = net.blocks
    for block in blocks:
        block.attn.q_norm = block.attn.k_norm = Float32()
    packing = Packing.of(torch.ones(2, 3, dtype=torch.bool), 0)
    with torch.autocast("cpu", torch.bfloat16):
        module.run_packed(blocks, torch.rand(1, 6, 24), packing)
    assert seen == [[torch.bfloat16] * 3] * len(blocks)


def test_padding_costs_nothing() -> None:
    """A row of clips takes the sum of what each takes alone, in every layer."""
    backbone, lengths = MODELS["vivit"], [3, 36, 1, 17]
    keep_idx, valid = kept(lengths, 0)
    pixels = pixels_for(backbone, 4)
    alone = [
        count_gmacs(backbone, pixels[i : i + 1], keep_idx[i : i + 1, :count])
        for i, count in enumerate(lengths)
    ]
    assert count_gmacs(backbone.forward_packed, pixels, keep_idx, valid) == pytest.approx(
        sum(alone), rel=1e-9
    )
    padded = count_gmacs(lambda: backbone(pixels, keep_idx, valid=valid))
    assert padded > 2 * sum(alone)


FLOWS: list[tuple[str, dict[str, Any]]] = [
    ("motion", {"budget": "top_p", "top_p": 0.6}),
    ("motion", {"budget": "top_p", "top_p": 0.6, "compensation": "pool"}),
    ("run_length", {}),
    ("similarity", {"mode": "adaptive"}),
    ("similarity", {"mode": "adaptive", "diversity": "cluster", "after_block": [0, 1, 2]}),
]


def clips() -> Tensor:
    """Noise, a black clip, one whose half stands still, one that hardly moves."""
    frames = torch.randint(
        0, 256, (4, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    frames[1] = 0
    frames[2, :, :13] = frames[2, :1, :13]
    frames[3, :, 3:] = frames[3, :1, 3:]
    return frames


@each_way
@pytest.mark.parametrize("kind", ["videomae", "vivit"])
@pytest.mark.parametrize(("name", "options"), FLOWS)
def test_an_answer_does_not_depend_on_the_batch(
    name: str, options: dict[str, Any], kind: str, way: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "vivit" and options.get("compensation") == "pool":
        return  # refused: there is no mean
    monkeypatch.setattr(module, "attend_within", way)
    backbone, pruner, frames = MODELS[kind], vp.build_pruner(name, **options), clips()
    packed = Pipeline(backbone, pruner, packing="packed")
    selection = packed.select(frames)
    assert selection is not None and selection.valid is not None
    with torch.inference_mode():
        together = packed(frames)
        alone = torch.cat([packed(frames[i : i + 1]) for i in range(4)])
        assert alone.std(0).max() > 1e-2
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(packed(frames.flip(0)).flip(0), alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(packed(frames[1:3]), alone[1:3], rtol=0, atol=1e-5)
        bucketed = Pipeline(backbone, pruner, packing="bucketed")
        torch.testing.assert_close(bucketed(frames), alone, rtol=0, atol=1e-5)


def test_which_way_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    backbone, frames = model("videomae"), clips()
    monkeypatch.setattr(
        backbone, "forward_packed", lambda *_, **__: ran.append("packed") or torch.zeros(4, 5)
    )
    variable, fixed = vp.build_pruner("run_length"), vp.build_pruner("motion")
    for packing, pruner, expected in (
        ("auto", variable, []),  # a processor
        ("bucketed", variable, []),
        ("packed", variable, ["packed"]),
        ("packed", fixed, []),  # all clips are equally long
    ):
        ran.clear()
        Pipeline(backbone, pruner, packing=packing)(frames)
        assert ran == expected
    assert vp.Pipeline(backbone, variable, packing="packed").packing == "packed"


def test_what_cannot_be_packed_is_one_line() -> None:
    backbone, pruner = MODELS["videomae"], vp.build_pruner("run_length")
    with pytest.raises(
        ConfigError, match=r"^runtime\.packing='row' is unknown; use one of auto, packed, bucketed$"
    ):
        Pipeline(backbone, pruner, packing="row")
    with pytest.raises(
        ConfigError, match=r"^runtime\.packing=packed: cannot be combined with merger=tome, which"
    ):
        Pipeline(backbone, pruner, ToMe(2), packing="packed")
    with pytest.raises(
        ConfigError, match=r"^runtime\.packing=packed: cannot be combined with pruner\.compensation=merge"
    ):
        Pipeline(backbone, vp.build_pruner("run_length", compensation="merge"), packing="packed")
    with pytest.raises(
        ConfigError, match=r"^runtime\.packing='packed': cannot be combined with runtime\.compile"
    ):
        RuntimeConfig(compile=True, packing="packed")
    with pytest.raises(ValueError, match=r"^pixels must be \(B, 3, 8, 24, 24\)"):
        backbone.forward_packed(torch.zeros(1, 3, 8, 8, 8), *kept([2], 0))


@each_way
def test_the_work_of_a_row_is_counted(way: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "attend_within", way)
    flow = Pipeline(MODELS["videomae"], vp.build_pruner("run_length"), packing="packed")

    def run(frames: Tensor, mark: Callable[[str], None]) -> Tensor:
        logits = flow(frames)
        mark("all")
        return logits

    work = count_work(run, clips())["all"]
    layers = sum(count_work(run, clip)["all"].gmacs for clip in clips().split(1))
    assert work.gmacs == pytest.approx(layers, rel=0.3)  # not every kernel of attention is counted
    assert work.gigabytes > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["videomae", "vivit"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float32, 1e-3)])
def test_on_a_gpu(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    """In autocast's precision, with heads of 64 channels as in all published models."""
    big = {"videomae": VideoMAE, "vivit": ViViT}[kind]
    torch.manual_seed(0)
    backbone = big(
        num_classes=5, dim=192, depth=3, num_heads=3, num_frames=FRAMES, input_size=SIZE, tubelet=(2, 8, 8)
    )
    backbone = backbone.eval().requires_grad_(False).cuda()
    frames = clips().cuda()
    for name, options in FLOWS:
        if kind == "vivit" and options.get("compensation") == "pool":
            continue
        pruner = vp.build_pruner(name, **options)
        flow = Pipeline(backbone, pruner).cuda()
        assert flow._packs
        with torch.inference_mode(), torch.autocast("cuda", dtype, dtype != torch.float32):
            selection = flow.select(frames)
            assert selection is not None and selection.valid is not None
            one_by_one = [
                flow.classify(frames[i : i + 1], selection.rows(torch.tensor([i]).cuda())) for i in range(4)
            ]
            alone = torch.cat(one_by_one).float()
            together = flow.classify(frames, selection).float()
        torch.testing.assert_close(together, alone, rtol=0, atol=tolerance * float(alone.abs().max()))


def test_grid_of_these_tests() -> None:
    assert MODELS["videomae"].grid == TokenGrid(4, 3, 3)
