"""Engines in the place of torch: one network at a time becomes a graph, compiled for this processor.

    module(*args)  ->  torch.export  ->  OpenVINO or ONNX Runtime  ->  a file in the cache  ->  the same tensors, sooner

`use_engine` stands where `nn.Module.compile` would: whoever calls the module notices nothing. One graph serves any
number of clips and tokens; other sizes get graphs of their own. Training, GPUs and operator counters see the module
itself, and so does whatever cannot become a graph, which one line says.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from .console import quiet_tracers, warn
from .errors import ConfigError
from .files import atomic_write
from .graphs import GRAPHS, Graph
from .paths import default_cache_dir

CACHE_BYTES = 4 << 30  # graphs on disk; those that were used longest ago go first
MAX_GRAPHS = 8  # of one network; frames of ever new sizes run in torch from then on
# Of a new graph, beside torch, as shares of the largest value.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.int8: 0.3}
EXTRAS = {"openvino": "fast", "onnxruntime": "export"}
_KNOWN = ("video_papr", "torch", "timm", "transformers")  # code that the key of a file on disk covers


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def engine_version(name: str) -> str:
    """For notes and records: "openvino 2026.4.1".

    Raises ConfigError: it is not installed.
    """
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        raise ConfigError(
            f'runtime.engine={name}: not installed (pip install "video_papr[{EXTRAS[name]}]"); or use '
            "runtime.engine=torch."
        ) from None


def use_engine(module: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> None:
    """Has an engine run a module in place; graphs are made when it is first called. A second call changes nothing.

    Args:
        module: float32, in eval mode; its result is one tensor, or a tuple of several. The first dimension of every
            tensor that it is given, and the second of those with at most three, may vary from call to call.
        name: "openvino" or "onnxruntime".
        dtype: float32; bfloat16 or int8 for matrix products in that precision.
    """
    if not isinstance(module._compiled_call_impl, _Graphs):
        module._compiled_call_impl = _Graphs(module, name, dtype)


class _Bound(nn.Module):
    """A module as a function of tensors alone; what else it was called with is part of the graph."""

    def __init__(self, module: nn.Module, leaves: list[Any], structure: Any) -> None:
        super().__init__()
        self.module, self.structure = module, structure
        self.given = [isinstance(leaf, Tensor) for leaf in leaves]
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def forward(self, *tensors: Tensor) -> Any:
        own = iter(tensors)
        leaves = [next(own) if given else leaf for given, leaf in zip(self.given, self.others, strict=True)]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return self.module._call_impl(*args, **kwargs)


class _Graphs:
    """What is called in the place of a module: its graphs, by the structure of the arguments."""

    def __init__(self, module: nn.Module, name: str, dtype: torch.dtype) -> None:
        self.module, self.name, self.dtype = module, name, dtype
        self.graphs: dict[Any, list[Graph]] = {}
        self.weights: Any = None
        self.given_up = False
        self.lock = Lock()  # one answer at a time: a graph has one set of buffers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self.given_up or self._watched(tensors):
            return self.module._call_impl(*args, **kwargs)
        tensors = [(t.float() if t.is_floating_point() else t).contiguous() for t in tensors]
        with self.lock:
            try:
                found = self._infer(tensors, leaves, structure)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                what = f"{self.name} cannot run {type(self.module).__name__}"
                if self.dtype == torch.int8:
                    raise ConfigError(f"runtime.dtype=int8: {what} ({reason}); use fp32.") from error
                warn(f"{what}, so torch does ({reason})")
                self.given_up = True
                self.graphs.clear()
                return self.module._call_impl(*args, **kwargs)
        return found[0] if len(found) == 1 else tuple(found)

    def _watched(self, tensors: list[Tensor]) -> bool:
        """Whether somebody needs torch's own operators: a gradient, a counter, a tracer, another device."""
        return (
            self.module.training
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0
            or any(tensor.device.type != "cpu" for tensor in tensors)
        )

    def _infer(self, tensors: list[Tensor], leaves: list[Any], structure: Any) -> list[Tensor]:
        weights = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.module.parameters()
        )
        if weights != self.weights:  # loaded anew, or trained meanwhile
            self.graphs.clear()
            self.weights = weights
        others = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        graphs = self.graphs.setdefault((structure, others, tuple(t.dtype for t in tensors)), [])
        graph = next((made for made in graphs if made.fits(tensors)), None)
        if graph is None:
            if sum(map(len, self.graphs.values())) >= MAX_GRAPHS:
                raise RuntimeError(f"more than {MAX_GRAPHS} sizes of frames")
            graph = self._make(_Bound(self.module, leaves, structure), tensors)
            graphs.append(graph)
        return graph.run(tensors)

    def _make(self, bound: _Bound, tensors: list[Tensor]) -> Graph:
        """The compiled graph for tensors like these: from the cache on disk, or new."""
        kind = GRAPHS[self.name]
        path = _file_of(bound, tensors, [self.name, self.dtype, kind.machine()], kind.packages)
        if path is not None and path.is_file():
            try:
                path.touch()
                return kind(path.read_bytes(), self.dtype)
            except Exception:  # damaged, or gone by now: it is made again
                path.unlink(missing_ok=True)
        with (
            quiet_tracers(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            graph = kind(_traced(bound, tensors), self.dtype)
        self._compare(graph.run(tensors), bound(*tensors))
        if path is not None:
            _keep(path, graph.dump())
        return graph

    def _compare(self, found: list[Tensor], expected: Any) -> None:
        """Raises RuntimeError unless a new graph gives what torch gives, from fewer clips than it was traced with."""
        for one, other in zip(found, [expected] if isinstance(expected, Tensor) else expected, strict=True):
            if one.shape != other.shape:
                raise RuntimeError(f"its graph gives {tuple(one.shape)}, not {tuple(other.shape)}")
            error = (one - other).abs().max() / other.abs().max().clamp(min=1e-6)
            if error > TOLERANCES[self.dtype]:
                raise RuntimeError(f"its graph is wrong by {error:.2g} of the largest value")


def _traced(bound: _Bound, tensors: list[Tensor]) -> ExportedProgram:
    """A module as a program, for any number of clips and of tokens."""
    # One clip more than is asked for: 1 would be a constant, and the comparison sees another number.
    examples = tuple(torch.cat([tensor, tensor[:1]]) for tensor in tensors)
    free = tuple(
        {0: Dim.AUTO, **({1: Dim.AUTO} if t.ndim in (2, 3) and t.shape[1] > 1 else {})} for t in examples
    )
    return torch.export.export(bound.eval(), examples, dynamic_shapes={"tensors": free})


def _file_of(
    bound: _Bound, tensors: list[Tensor], settings: list[object], packages: tuple[str, ...]
) -> Path | None:
    """The place of a graph on disk, named by all that shapes it; None where that is not known."""
    own = {type(part).__module__.split(".")[0] for part in bound.modules()}
    if not own <= set(_KNOWN):
        return None
    key = hashlib.sha256(_source())
    sizes = [(t.dtype, t.ndim, t.shape[1:] if t.ndim > 3 else t.shape[2:]) for t in tensors]
    versions = [f"{name} {version(name)}" for name in (*_KNOWN[1:], *packages) if find_spec(name)]
    flags = platform.processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    key.update(repr((sizes, settings, versions, flags)).encode())
    try:
        # Weights, and every attribute that code may read.
        torch.save(bound, cast(IO[bytes], _Writer(key.update)))
    except Exception:  # what cannot be pickled has no name
        return None
    return default_cache_dir() / "engines" / f"{key.hexdigest()}.blob"


class _Writer:
    """A file that hands on what is written into it."""

    def __init__(self, update: Callable[[bytes], object]) -> None:
        self.update = update

    def write(self, data: Any) -> int:
        self.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing is held back."""


@cache
def _source() -> bytes:
    """A digest of the package's code."""
    package = Path(__file__).resolve().parents[1]
    key = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        key.update(path.read_bytes())
    return key.digest()


def _keep(path: Path, blob: bytes) -> None:
    """Writes a graph, and removes the oldest ones beyond `CACHE_BYTES`; a full disk is no error."""
    if len(blob) > CACHE_BYTES // 2:
        return
    try:
        atomic_write(path, blob)
        files = sorted(path.parent.glob("*.blob"), key=lambda one: one.stat().st_mtime)
        held = sum(one.stat().st_size for one in files)
        for one in files[:-1]:
            if held <= CACHE_BYTES:
                break
            held -= one.stat().st_size
            one.unlink(missing_ok=True)
    except (OSError, ValueError):
        path.unlink(missing_ok=True)
