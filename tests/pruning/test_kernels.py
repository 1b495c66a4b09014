"""Kernels of our own give what torch gives, and where they do not work torch's operators stay."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from video_papr.core.types import TokenGrid
from video_papr.data.datasets import VideoDataset, build_video_list
from video_papr.data.sampling import dense_clips
from video_papr.data.transforms import resize_and_crop
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.kernels import compiler, takes_a_while, use_kernels, x3d_block, x3d_cpp
from video_papr.pruning.kernels.depthwise import Depthwise, fuse_depthwise
from video_papr.pruning.kernels.x3d_pixels import fast_clip_of
from video_papr.pruning.map_pruner import MapPruner
from video_papr.pruning.scorers.channels_last import ChannelsLastTrunk, use_channels_last
from video_papr.pruning.scorers.x3d import STAGES, X3DTrunk, clip_of, fold_norms
from video_papr.pruning.scorers.x3d_depth_pruned import X3D_BLOCKS, X3D_KINDS, depth_prune_x3d

GRID = TokenGrid(8, 14, 14)
CPU = torch.device("cpu")
Shake = Callable[[X3DTrunk], X3DTrunk]
Draw = Callable[[int], Tensor]
Overlap = Callable[[Tensor, Tensor, float], float]

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiler.COMPILERS)), reason="needs a C++ compiler (g++)"
)


def fast_pruner(**options: Any) -> MapPruner:
    pruner = use_channels_last(build_pruner("x3d_s", **options))
    assert isinstance(pruner, MapPruner)
    return pruner


def is_packed(pruner: MapPruner) -> bool:
    return any(hasattr(module, "packed") for module in pruner.modules())


@needs_compiler
def test_the_operator_works_here() -> None:
    assert x3d_cpp.fault() is None
    pruner = fast_pruner(frames=4, size=32)
    names = set(pruner.state_dict())
    assert use_kernels(pruner, CPU) is None and is_packed(pruner)
    assert set(pruner.state_dict()) == names


@needs_compiler
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STAGES),
    st.integers(0, 2),
    st.integers(1, 5),
    st.sampled_from([(32, 32), (48, 33), (40, 96)]),
    st.lists(st.sampled_from(X3D_KINDS), min_size=X3D_BLOCKS, max_size=X3D_BLOCKS),
)
def test_features_of_every_stage(
    shaken: Shake, stage: str, batch: int, frames: int, size: tuple[int, int], kinds: list[str]
) -> None:
    """Also where depth pruning has merged blocks."""
    trunk = X3DTrunk(stage)
    depth_prune_x3d(trunk, kinds)
    fold_norms(shaken(trunk))
    fast = ChannelsLastTrunk(trunk)
    pixels = torch.randn(batch, 3, frames, *size)
    expected = {name: features.clone() for name, features in X3DTrunk.stages(fast, pixels)}
    assert x3d_cpp.fault() is None
    x3d_cpp.pack(fast)
    found = {name: features.clone() for name, features in fast.stages(pixels)}
    assert list(found) == list(expected)
    for name, features in found.items():
        torch.testing.assert_close(features, expected[name], rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(("mode", "least"), [("fp32", 0.99), ("bf16", 0.97), ("autocast", 0.97)])
def test_the_same_tokens_on_a_processor(mode: str, least: float, clips: Draw, overlap: Overlap) -> None:
    options = {"weights": "x3d_s_synthetic", "frames": 8, "size": 96}
    plain, fast = build_pruner("x3d_s", **options), fast_pruner(**options)
    assert isinstance(plain, MapPruner)
    if mode == "bf16":
        fast.bfloat16()
    assert use_kernels(fast, CPU) is None
    with torch.inference_mode():
        exact = plain.scorer(clips(2), GRID)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            found = fast.scorer(clips(2), GRID)
    if mode == "fp32":
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert overlap(exact, found, 0.3) >= least


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_tokens_of_real_videos(clips_dir: Path, dtype: torch.dtype, overlap: Overlap) -> None:
    """At the setting that is recommended, where noise in the pixels decides less: 99 % in bf16 too."""
    sampler = partial(dense_clips, num_frames=16, frame_stride=4, num_clips=1)
    dataset = VideoDataset(build_video_list("folder", root=clips_dir / "fight" / "val"), sampler)
    options = {"weights": "x3d_s_synthetic", "keep_ratio": 0.3}
    plain, fast = build_pruner("x3d_s", **options), fast_pruner(**options).to(dtype)
    assert isinstance(plain, MapPruner) and use_kernels(fast, CPU) is None
    with torch.inference_mode():
        for index in range(0, len(dataset), 8):
            frames = dataset[index].frames
            assert frames is not None
            views = resize_and_crop(frames, size=224, short_side=224, num_crops=1)
            exact, found = (pruner.scorer(views, GRID) for pruner in (plain, fast))
            assert overlap(exact, found, 0.3) >= 0.99


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(1, 24),
    st.integers(1, 8),
    *(st.integers(2, 40) for _ in range(2)),
    *(st.integers(1, 40) for _ in range(2)),
    st.booleans(),
)
def test_pixels(
    batch: int, length: int, frames: int, height: int, width: int, rows: int, columns: int, strided: bool
) -> None:
    assert x3d_cpp.fault() is None
    clip = torch.randint(0, 256, (batch, length, height, width, 3), dtype=torch.uint8)
    clip = clip.transpose(2, 3) if strided else clip
    found = fast_clip_of(clip, num_frames=frames, size=(rows, columns))
    assert found.shape == (batch, 3, frames, rows, columns)
    expected = clip_of(clip, num_frames=frames, size=(rows, columns))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clip_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 24, 20, 24, dtype=dtype)
    for block in packed_blocks():
        whole = block(x)
        assert whole.dtype == dtype
        assert torch.equal(whole, torch.cat([block(clip[None]) for clip in x]))


@needs_compiler
def test_gradients_are_left_alone_and_the_input_too() -> None:
    block = packed_blocks()[1]
    x = torch.randn(1, 2, 9, 8, 24)
    before = x.clone()
    with torch.enable_grad():
        out = block(x.movedim(2, 3).contiguous().movedim(2, 3))  # any strides
    assert torch.equal(out, block(x)) and torch.equal(x, before) and not out.requires_grad
    with pytest.raises(RuntimeError, match="float32 or bfloat16"):
        block(x.double())


@needs_compiler
def test_arithmetic_and_shapes_are_known_beforehand(shaken: Shake) -> None:
    """To counters of operations, which leave out what only fills up vectors, and to torch.compile."""
    trunk = X3DTrunk("res3")
    fold_norms(shaken(trunk))
    fast = ChannelsLastTrunk(trunk)
    pixels = torch.randn(2, 3, 3, 40, 33)
    counted = []
    assert x3d_cpp.fault() is None
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            fast(pixels)
        counted.append(counter.get_total_flops())
        x3d_cpp.pack(fast)
    assert counted[0] == counted[1] > 0
    expected = fast(pixels)
    torch.compiler.reset()
    whole = torch.compile(fast, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(whole(pixels), expected)
    torch.compiler.reset()


def packed_blocks() -> list[x3d_block.PackedBlock]:
    """One with stride, shortcut and squeeze-and-excitation, one without any of them, one with the last."""
    assert x3d_cpp.fault() is None
    trunk = x3d_cpp.random_trunk()
    x3d_cpp.pack(trunk)
    stage: Any = trunk.blocks[1]
    return [block.packed for block in stage.res_blocks]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is built yet, and nothing that a test builds is remembered."""
    monkeypatch.setenv("VIDEO_PAPR_CACHE", str(tmp_path))
    for remembered in (compiler.load, x3d_cpp.fault):
        remembered.cache_clear()
    yield tmp_path / "kernels"
    for remembered in (compiler.load, x3d_cpp.fault):
        remembered.cache_clear()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CXX": "", "PATH": ""}, "there is no C++ compiler; install g++"),
        ({"CXX": "no-such-compiler"}, "no-such-compiler"),
        ({"CXX": "false"}, "false ended with 1"),
        ({"CXX": "sh -c 'echo x.cpp:7: error: bad >&2; exit 1'"}, "x.cpp:7: error: bad"),
        ({"CXX": "touch"}, "touch"),
    ],
)
def test_a_compiler_that_fails_is_named(
    variables: dict[str, str], said: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    pruner = fast_pruner(frames=4, size=32)
    fault = use_kernels(pruner, CPU)
    assert fault is not None and said in fault and "\n" not in fault
    assert not is_packed(pruner)
    assert not list(empty_cache.glob("*"))


def test_a_damaged_library_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nonsense(command: list[str], library: Path) -> None:
        library.parent.mkdir(parents=True)
        library.write_bytes(b"no library")

    monkeypatch.setattr(compiler, "_build", write_nonsense)
    monkeypatch.setenv("CXX", "g++")
    fault = use_kernels(fast_pruner(frames=4, size=32), CPU)
    assert fault is not None and "x3d-" in fault


@needs_compiler
def test_it_is_built_once_and_in_one_piece(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruner = fast_pruner(frames=4, size=32)
    assert takes_a_while(pruner, CPU)
    assert not takes_a_while(pruner, torch.device("cuda")) and not takes_a_while(build_pruner("motion"), CPU)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)  # loaded already
    compiler.load(x3d_cpp.SOURCE)
    (library,) = empty_cache.iterdir()
    assert library.suffix == ".so" and library.stat().st_size > 10_000
    assert not takes_a_while(pruner, CPU)
    compiler.load.cache_clear()
    monkeypatch.setattr(compiler, "_build", None)  # building again would fail
    compiler.load(x3d_cpp.SOURCE)


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in compiler.INSTRUCTIONS, reason="needs AVX2 or AVX-512"
)
@pytest.mark.parametrize("level", ["avx2", "default"])
def test_processors_with_shorter_vectors(level: str, tmp_path: Path) -> None:
    """Another instruction set is for another process: torch chooses it once."""
    code = (
        "import torch; from video_papr.pruning.kernels.x3d_cpp import fault; "
        "print(fault(), torch.backends.cpu.get_cpu_capability())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ATEN_CPU_CAPABILITY": level, "VIDEO_PAPR_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["None", level.upper()], done.stderr


def test_features_and_names_of_a_trunk_with_other_convolutions(shaken: Shake) -> None:
    """Away from a GPU; module by module, as a GPU runs it, and as a processor does. Merged blocks stay as they are."""
    trunk = X3DTrunk("res3")
    depth_prune_x3d(trunk, ["whole", "dense", "whole", "pointwise", *["whole"] * (X3D_BLOCKS - 4)])
    shaken(trunk)
    fold_norms(trunk)
    fast = ChannelsLastTrunk(trunk)
    pixels = torch.randn(2, 3, 3, 40, 33)
    expected, names = fast(pixels).clone(), {name: id(value) for name, value in fast.named_parameters()}
    fuse_depthwise(fast)
    fuse_depthwise(fast)  # a second time nothing is left to do
    replaced = [module for module in fast.modules() if isinstance(module, Depthwise)]
    assert len(replaced) == 6 and {module.swish for module in replaced} == {True, False}
    assert not any(isinstance(module, nn.Conv3d) and module.groups > 24 for module in fast.modules())
    assert {name: id(value) for name, value in fast.named_parameters()} == names
    torch.testing.assert_close(fast(pixels), expected, rtol=1e-4, atol=1e-4)
    *_, (_, features) = X3DTrunk.stages(fast, pixels)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_elsewhere_and_in_other_pruners_nothing_changes() -> None:
    pruner = fast_pruner(frames=4, size=32)
    assert use_kernels(pruner, torch.device("meta")) is None
    assert not any(isinstance(module, Depthwise) for module in pruner.modules()) and not is_packed(pruner)
    for other in (None, build_pruner("motion"), build_pruner("x3d_s", frames=4, size=32)):
        for device in ("cuda", "cpu"):
            assert use_kernels(other, torch.device(device)) is None


@pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None, reason="needs triton and no GPU"
)
def test_a_kernel_that_does_not_run_is_not_used() -> None:
    pruner = fast_pruner(frames=4, size=32)
    assert use_kernels(
        pruner, torch.device("cuda")
    )  # the reason, whichever torch gives for a GPU that is not there
    assert not any(isinstance(module, Depthwise) for module in pruner.modules())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.float32, 0.99), (torch.bfloat16, 0.97)]
)  # bf16 has 8 bits
@pytest.mark.parametrize("compiled", [False, True])
def test_same_tokens_on_a_gpu(
    dtype: torch.dtype,
    least: float,
    compiled: bool,
    clips: Draw,
    overlap: Overlap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = {"weights": "x3d_s_synthetic", "frames": 8, "size": 96}
    plain, fast = build_pruner("x3d_s", **options), fast_pruner(**options)
    assert isinstance(plain, MapPruner)
    plain.cuda(), fast.to("cuda", dtype)
    assert use_kernels(fast, torch.device("cuda")) is None
    assert any(isinstance(module, Depthwise) for module in fast.modules())
    frames = clips(2).cuda()
    torch.compiler.reset()
    if compiled:
        fast.scorer.trunk.compile(fullgraph=True, dynamic=False)  # type: ignore[operator, union-attr]
    with torch.inference_mode():
        maps = [pruner.scorer(frames, GRID).cpu() for pruner in (plain, fast)]
    torch.compiler.reset()
    assert overlap(maps[0], maps[1], 0.3) >= least
