"""Graphs do what the pipeline does; the comparison tells a tie from a mistake; what has no graph is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import ConfigError, ExportError
from video_papr.inference.export import (
    check_exportable,
    compiler,
    export_program,
    kept_tokens,
    run_aot,
    run_program,
    save_aot,
    save_program,
)
from video_papr.inference.export_check import Agreement, check_clips, compare
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.tome import build_merger


def pipeline(pruner="none", *, vivit=False, merger="none", **options):
    """Reads 4 frames of 32 x 32 pixels as 8 tokens, in 2 blocks."""
    kind = ViViT if vivit else VideoMAE
    torch.manual_seed(0)
    model = kind(num_classes=5, num_frames=4, input_size=32, dim=24, depth=2, num_heads=3).eval()
    model.requires_grad_(False)
    given = {} if pruner == "none" else {"keep_ratio": 0.5, **options}
    if pruner == "run_length":
        given = options
    return Pipeline(model, build_pruner(pruner, **given), build_merger(merger))


GRAPHS: dict[str, dict[str, Any]] = {
    "none": {},
    "center": {"vivit": True},
    "motion": {"scope": "frame"},
    "similarity": {"after_block": 1},
    "papr_plus": {"stages": ["res2"], "frames": 2, "size": 32},  # with tokens for the dropped ones
    "x3d_xs": {"stage": "res2", "frames": 2, "size": 32, "align_corners": False, "cell_center": 0.0},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_does_what_the_pipeline_does(name, tmp_path):
    flow = pipeline(name, **GRAPHS[name])
    path = save_program(export_program(flow), tmp_path / "model.pt2")
    frames = check_clips(flow, 2)
    found = compare(flow, run_program(path), frames, source=str(path))  # a clip alone, and four together
    assert found.clips == found.same_choice == found.same_answer == len(frames) == 5
    assert found.logit_difference < 1e-5


@pytest.mark.skipif(compiler() is None, reason="AOTInductor needs a C++ compiler")
def test_aot_package(tmp_path):
    flow = pipeline("motion")
    path = save_aot(export_program(flow), tmp_path / "model.aot.pt2")
    assert compare(flow, run_aot(path), check_clips(flow, 2), source=str(path)).clips == 5


def test_aot_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler"):
        save_aot(None, tmp_path / "model.aot.pt2")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "pool": (
        "motion",
        {"compensation": "pool"},
        "pruner.compensation=pool cannot be exported with pruner=motion",
    ),
    "merge": (
        "similarity",
        {"compensation": "merge"},
        "pruner.compensation=merge cannot be exported with pruner=similarity",
    ),
    "mass": ("motion", {"budget": "top_p"}, "budget 'top_p' cannot be exported: clips would keep unequal"),
    "run_length": ("run_length", {}, "pruner=run_length .* cannot be exported: .*use another pruner"),
    "adaptive": ("similarity", {"mode": "adaptive"}, "cannot be exported: .*pruner.mode=ratio"),
    "cluster": ("similarity", {"diversity": "cluster"}, "pruner.diversity=cluster cannot be exported"),
    "random": ("random", {}, "pruner=random cannot be exported: .*pruner=uniform"),
    "tome": ("motion", {"merger": "tome"}, "merger=tome cannot be exported: .*merger=none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_graph(name):
    pruner, options, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason) as caught:
        check_exportable(pipeline(pruner, **options))
    assert "\n" not in str(caught.value)


def answers(flow, frames, kept):
    """The logits of a choice."""
    from video_papr.core.types import TokenSelection

    return flow.classify(frames, TokenSelection(kept, flow.backbone.grid))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)))
def test_any_choice_among_equals_is_right(order):
    """All tokens of a grey clip score the same, so that a graph may keep any of them, and answers for these."""
    flow = pipeline("motion")
    frames = torch.full((2, 4, 32, 32, 3), 90, dtype=torch.uint8)
    kept = torch.tensor(sorted(order[:4]))

    def run(clips):
        rows = kept.repeat(len(clips), 1)
        return answers(flow, clips, rows), rows

    found = compare(flow, run, frames, source="graph")
    own = flow.select(frames)
    assert own is not None
    swapped = len(set(kept.tolist()) - set(own.keep_idx[0].tolist()))
    assert (found.clips, found.ties) == (2, 2 * swapped)
    assert found.same_choice == (0 if swapped else 2)


def test_mistakes_are_found():
    flow = pipeline("motion")
    frames = check_clips(flow, 2)[:3]

    def right(clips):
        selection = flow.select(clips)
        assert selection is not None
        return flow.classify(clips, selection), selection.keep_idx

    def others(clips):
        kept = right(clips)[1]
        rest = torch.stack([torch.tensor(sorted(set(range(8)) - set(row.tolist()))) for row in kept])
        return answers(flow, clips, rest), rest

    wrong: dict[str, Any] = {
        "keeps other tubelets than the pipeline, with scores": others,
        "logits differ from the pipeline's": lambda clips: (right(clips)[0] + 0.1, right(clips)[1]),
        "logits differ from": lambda clips: (right(clips)[0] * float("nan"), right(clips)[1]),
        "not ascending within 0 to 7": lambda clips: (right(clips)[0], right(clips)[1].flip(1)),
        "not ascending": lambda clips: (right(clips)[0], right(clips)[1] + 8),
        r"keep_idx is torch.int64 \(1, 3\) instead of torch.int64 \(1, 4\)": lambda clips: (
            right(clips)[0],
            right(clips)[1][:, :3],
        ),
        r"logits \(1, 4\) instead of \(1, 5\)": lambda clips: (right(clips)[0][:, :4], right(clips)[1]),
        "1 outputs, which do not fit the pruner": lambda clips: right(clips)[:1],
    }
    assert isinstance(compare(flow, right, frames, source="graph"), Agreement)
    for reason, run in wrong.items():
        with pytest.raises(ExportError, match=f"^graph: .*{reason}"):
            compare(flow, run, frames, source="graph")


def test_kept_tokens():
    assert [kept_tokens(pipeline(name)) for name in ("none", "motion", "similarity")] == [8, 4, 4]
