"""Triton's depthwise convolution without a GPU: its arithmetic by the interpreter, and its machine code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.slow
@pytest.mark.skipif(not TRITON, reason="needs triton, which comes with torch's builds for CUDA")
def test_kernel_by_the_interpreter() -> None:
    path = Path(__file__).with_name("depthwise_interpreted.py")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and "all agree" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(not TRITON, reason="needs triton, which comes with torch's builds for CUDA")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("number", "together"), [("fp32", 2), ("bf16", 8)])
def test_kernel_compiles_without_a_gpu(
    number: str, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To machine code of an H100; nothing is spilled from its registers, and reads of neighbours are joined."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from video_papr.pruning.kernels.depthwise_triton import _kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    options = {"STRIDE": 2, "SWISH": True, "COLUMNS": 16, "CHANNELS": 64, "TOGETHER": together}
    kinds = {"x": f"*{number}", "weight": "*fp32", "bias": "*fp32", "out": f"*{number}"}
    signature = {
        name: kinds.get(name, "constexpr" if name in options else "i32") for name in _kernel.arg_names
    }
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(4)}  # as torch allocates
    source = ASTSource(_kernel, signature, constexprs=options, attrs=aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm
    assert code["cubin"] and "ld.local" not in code["ptx"] and "st.local" not in code["ptx"]
    assert "ld.global.v" in code["ptx"]
