"""Compiled networks: one graph for each number of tokens, and none besides.

A backend that counts stands in for the compiler.
"""

import pytest
import torch
from torch import nn

from video_papr.backbones.videomae import VideoMAE
from video_papr.core.errors import ConfigError
from video_papr.data.datasets import VideoSample
from video_papr.evaluation.cost import Engine
from video_papr.evaluation.evaluator import Evaluator
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.channels_last import use_channels_last

CPU = torch.device("cpu")


def small_backbone():
    """Reads 8 frames of 32 x 32 pixels as 16 tokens, in 1 block: the compiler's time grows with the blocks."""
    torch.manual_seed(0)
    return VideoMAE(num_classes=5, num_frames=8, input_size=32, dim=24, depth=1, num_heads=3).eval()


@pytest.fixture
def graphs():
    """Filled with the class of whatever is compiled, graph by graph."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def counting(graphs):
    def backend(graph, inputs):
        graphs.append("graph")
        return graph.forward

    return backend


def frames_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 8, 32, 32, 3), generator=generator, dtype=torch.uint8)


@torch.inference_mode()
def test_one_graph_for_each_number_of_tokens_and_one_for_the_scorer(graphs):
    backbone = small_backbone()
    frames = frames_of(2)
    flows = [
        Pipeline(backbone, use_channels_last(build_pruner("x3d_s", keep_ratio=0.5, frames=4, size=32))),
        Pipeline(backbone, build_pruner("motion", keep_ratio=0.3)),
        Pipeline(backbone),
    ]
    plain = [flow(frames) for flow in flows]
    flows[0].compile_networks(backend=counting(graphs))
    for _ in range(3):
        for flow, expected in zip(flows, plain, strict=True):
            torch.testing.assert_close(flow(frames), expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 4  # three lengths, and the trunk


@torch.inference_mode()
def test_lengths_that_the_clip_decides_do_not_stop_the_run(graphs):
    pruner = build_pruner("motion", budget="top_p", top_p=0.5)
    backbone = small_backbone()
    flow = Pipeline(backbone, pruner)
    expected = [flow(frames_of(2, seed)) for seed in range(4)]
    flow.compile_networks(backend=counting(graphs))
    for seed, logits in enumerate(expected):
        torch.testing.assert_close(flow(frames_of(2, seed)), logits, rtol=1e-4, atol=1e-4)
    assert graphs


@pytest.mark.parametrize(("views", "batch_size"), [(3, 2), (2, 5)])
def test_an_evaluation_makes_no_graph_for_short_batches(graphs, views, batch_size):
    """Five videos: the last batch is short, or the last chunk of a video's views. Answers are those of a plain run."""

    def samples():
        for index in range(5):
            yield VideoSample(index, str(index), 0, frames_of(views, index), None, 1.0, None, 8, 25.0)

    def answers(full):
        found = Evaluator(
            flow,
            prepare=lambda clips: clips,
            views_per_video=views,
            batch_size=batch_size,
            engine=Engine(CPU),
            baseline=True,
            full_batches=full,
        ).run(samples())
        assert sum(found.kept.values()) == 5 * views
        return [(answer.top5, answer.baseline_top5) for answer in found.answers]

    flow = Pipeline(small_backbone(), build_pruner("motion", keep_ratio=0.5))
    plain = answers(full=False)
    flow.compile_networks(backend=counting(graphs))
    assert answers(full=True) == plain
    assert len(graphs) == 2  # pruned and dense
    assert isinstance(flow, nn.Module)


class Replaying(nn.Module):
    """Answers like a network in a CUDA graph: always in the same memory."""

    def __init__(self, network):
        super().__init__()
        self.run, self.memory = network.forward, torch.empty(0)

    def forward(self, *inputs, **options):
        logits = self.run(*inputs, **options)
        self.memory.resize_(64 * logits.shape[1])
        return self.memory[: logits.numel()].view_as(logits).copy_(logits)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("budget", "replayed"),
    [({"keep_ratio": 0.5}, True), ({}, True), ({}, False), ({"budget": "top_p", "top_p": 0.5}, True)],
)
def test_answers_outlive_the_next_call_of_a_cuda_graph(budget, replayed, monkeypatch):
    """Those of the dense model do not without `replayed`, which shows that the stand-in overwrites."""
    backbone = small_backbone()
    flow = Pipeline(backbone, build_pruner("motion", **budget) if budget else None)
    expected = [flow(frames_of(3, seed)) for seed in range(2)]
    monkeypatch.setattr(backbone, "forward", Replaying(backbone).forward)
    backbone.replayed = replayed
    found = [flow(frames_of(3, seed)) for seed in range(2)]
    assert all(map(torch.equal, found, expected)) == replayed


def test_modes_without_cuda_graphs_return_what_the_backbone_returns():
    for options in ({}, {"mode": "reduce-overhead"}, {"mode": "max-autotune"}):
        flow = Pipeline(small_backbone())
        flow.compile_networks(**options)  # the compiler runs at the first call, which never comes
        assert not flow.backbone.replayed  # a processor has none


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_cuda_graphs_give_the_same_answers():
    backbone = small_backbone()
    flow = Pipeline(backbone, build_pruner("motion", keep_ratio=0.5)).cuda()
    scoring = Pipeline(backbone, use_channels_last(build_pruner("x3d_s", frames=4, size=32))).cuda()
    batches = [frames_of(3, seed).cuda() for seed in range(6)]

    def run():
        return [(flow(x), scoring.significance(x), Pipeline(backbone)(x)) for x in batches]

    expected = run()
    torch.compiler.reset()
    for one in (flow, scoring):
        one.compile_networks(mode="reduce-overhead")
    assert backbone.replayed
    for found, plain in zip(
        run(), expected, strict=True
    ):  # not tokens that X3D keeps: rounding decides near ties
        torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-2)
    varying = Pipeline(backbone, build_pruner("motion", budget="top_p", top_p=0.5))
    with pytest.raises(ConfigError, match="CUDA graph has fixed shapes"):
        varying.compile_networks(mode="reduce-overhead")
    torch.compiler.reset()
