"""From frames to logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import video_papr as vp
from video_papr.structures import TokenSelection

FRAMES, SIZE = 8, 32  # a grid of 2 x 4 x 4


def clips(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def pipeline(name: str = "x3d_s", keep_ratio: float = 0.3) -> vp.Pipeline:
    options = {"frames": 4, "size": 64, "stage": "res4"} if name.startswith("x3d") else {}
    backbone = vp.build_backbone("videomae_tiny", num_frames=FRAMES, input_size=SIZE)
    return vp.Pipeline(backbone, vp.build_pruner(name, keep_ratio=keep_ratio, **options))


@pytest.mark.parametrize("name", ["x3d_s", "random"])
def test_keep_ratio_one_gives_the_dense_logits(name: str) -> None:
    dense = pipeline("none")
    assert dense.pruner is None
    assert dense.select(clips()) is None
    torch.testing.assert_close(pipeline(name, 1)(clips()), dense(clips()), rtol=0, atol=1e-6)


def test_logits_do_not_depend_on_the_batch() -> None:
    flow, frames = pipeline(), clips(5)
    alone = torch.cat([flow(frames[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(flow(frames), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(flow(frames.flip(0)).flip(0), alone, rtol=0, atol=1e-5)
    assert alone.std(0).max() > 1e-3  # the clips do differ


def test_the_two_halves_make_the_whole() -> None:
    flow, frames = pipeline(), clips()
    selection = flow.select(frames)
    assert selection is not None
    assert (selection.num_kept, selection.grid) == (9, flow.backbone.grid)
    assert torch.equal(flow.classify(frames, selection), flow(frames))
    assert torch.equal(flow.classify(frames, None), pipeline("none")(frames))
    other = TokenSelection(torch.arange(9).expand(3, -1), flow.backbone.grid)
    assert not torch.allclose(flow.classify(frames, other), flow(frames))


def test_every_network_gets_its_own_normalisation() -> None:
    flow, frames = pipeline(), clips()
    seen = {}
    flow.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.update(backbone=inputs[0]))
    assert flow.pruner is not None
    trunk = flow.pruner.scorer.trunk
    trunk.register_forward_pre_hook(lambda _, inputs: seen.update(scorer=inputs[0]))  # type: ignore[union-attr]
    flow(frames)
    share = frames.permute(0, 4, 1, 2, 3).double() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(seen["backbone"].double(), (share - mean) / std, rtol=0, atol=1e-5)
    assert seen["scorer"].mean().item() == pytest.approx(((share - 0.45) / 0.225).mean().item(), abs=0.02)
    assert seen["scorer"].shape == (3, 3, 4, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
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
def test_frames_of_another_type_or_shape(frames: Tensor) -> None:
    flow = pipeline("motion")
    line = rf"^frames must be uint8 \(B, 8, 32, 32, 3\), got {frames.dtype} \({frames.shape[0]}, "
    for call in (flow, flow.select, lambda x: flow.classify(x, None)):
        with pytest.raises(ValueError, match=line):
            call(frames)
