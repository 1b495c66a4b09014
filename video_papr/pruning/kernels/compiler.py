"""Builds the package's C++ with this machine's compiler, once for each version of torch, and loads it.

The library is kept in the cache directory. It is written in whole or not at all, so processes that build it at the same
time, or are killed over it, do each other no harm.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from ...core.paths import default_cache_dir

# torch's vector classes are written for one instruction set at a time, chosen here as torch itself chooses it.
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
}
ROUNDING = "-mavx512bf16"  # of newer processors: rounds to bfloat16
COMPILERS = ("g++", "c++", "clang++")


class BuildError(Exception):
    """The C++ could not be built or loaded here; the message says why."""


@cache
def load(source: Path) -> None:
    """Builds `source` if the cache holds nothing built from it, and tells torch its operators.

    Raises:
        BuildError: there is no compiler, it failed, or what it made cannot be loaded.
    """
    library = library_of(source)
    try:
        if not library.is_file():
            _build(_command(source), library)
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BuildError(" ".join(str(error).split())) from error


def library_of(source: Path) -> Path:
    """Where the library is kept that this machine's compiler makes of `source`; it need not be there yet.

    Raises:
        BuildError: there is no compiler.
    """
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    told = "\0".join([*_command(source), torch.__version__, *texts])
    return (
        default_cache_dir() / "kernels" / f"{source.stem}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    )


def _command(source: Path) -> list[str]:
    """The compiler and its arguments, without those that name the output."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = next((path for path in map(shutil.which, COMPILERS) if path), None)
    if not named and found is None:
        raise BuildError("there is no C++ compiler; install g++, or name one in the variable CXX")
    level = torch.backends.cpu.get_cpu_capability()
    level, flags = (level, INSTRUCTIONS[level]) if level in INSTRUCTIONS else ("DEFAULT", ())
    if level == "AVX512" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        flags = (*flags, ROUNDING)
    root = Path(torch.__file__).parent
    return [
        *(named or [str(found)]),
        *("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp", *flags),
        *(f"-DCPU_CAPABILITY={level}", f"-DCPU_CAPABILITY_{level}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *("-I", str(root / "include"), "-L", str(root / "lib"), str(source), "-ltorch_cpu", "-lc10"),
    ]


def _build(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"]
            first = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(" ".join(first.split())[:300])
        made.replace(library)
