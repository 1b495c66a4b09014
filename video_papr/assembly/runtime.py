"""What the machine can do of what `runtime` asks: device and precision, batches, processes, engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from ..config import RuntimeConfig
from ..core import engines
from ..core.console import note, warn
from ..core.errors import ConfigError
from ..core.processes import ALONE, Ranks
from ..evaluation.cost import Engine
from ..pipeline import Pipeline

READY_VIDEOS = 4  # decoded in advance at least: videos differ in length and size
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


def build_engine(runtime: RuntimeConfig, ranks: Ranks = ALONE) -> Engine:
    """Chooses device and precision, and sets torch's threads and compiler. Each rank of a machine takes the next GPU.

    Raises ConfigError: a GPU is asked for and there is none, or what only a GPU can do.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device='cuda': torch sees no CUDA device; use runtime.device=cpu or auto.")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    cuda = runtime.device != "cpu" and torch.cuda.is_available()
    if cuda and ranks.size > 1:
        count = torch.cuda.device_count()
        torch.cuda.set_device(ranks.local_rank % count)  # "cuda" means this one from now on
        if ranks.local_size > count and not ranks.local_rank:
            warn(
                f"{ranks.local_size} ranks share {count} GPU(s); --nproc-per-node={count} gives each its own"
            )
    if runtime.dtype != "auto":
        dtype = DTYPES[runtime.dtype]
    elif not cuda:
        dtype = torch.float32
    else:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if not cuda and dtype == torch.float16:
        raise ConfigError("runtime.dtype='fp16': not supported on the CPU; use fp32, bf16 or auto.")
    if not cuda and dtype == torch.bfloat16 and not computes_in_bf16():
        warn("runtime.dtype=bf16: this processor does not compute in bf16, which takes longer than fp32 then")
    if not cuda and runtime.compile == "reduce-overhead":
        raise ConfigError(
            "runtime.compile='reduce-overhead': replays CUDA graphs, which need a GPU; use runtime.compile=true."
        )
    if runtime.compile and not cuda:
        _pack_weights()
    return Engine(torch.device("cuda" if cuda else "cpu"), dtype)


def training_dtype(dtype: str, runtime: RuntimeConfig) -> str:
    """The precision of a training, "fp32" or "bf16"; "auto" is fp32 on processors without bf16 arithmetic."""
    if dtype != "auto":
        return dtype
    if runtime.device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if computes_in_bf16() else "fp32"


def computes_in_bf16() -> bool:
    """Whether the processor has arithmetic for bf16; torch has no public question for it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _pack_weights() -> None:
    """Lets torch.compile lay weights out once, in the order in which a processor's matrix products read them.

    Otherwise every product lays them out anew, which takes as long for the few tokens that are kept as for all of them.
    Every graph holds a copy of the weights from then on, and does not see what happens to the network's own.
    """
    import torch._inductor.config as inductor  # slow to import, so only where it is needed

    inductor.freezing = True


def dtype_name(engine: Engine) -> str:
    """Returns "fp32", "bf16" or "fp16"."""
    return next(name for name, dtype in DTYPES.items() if dtype == engine.dtype)


def batch_size(runtime: RuntimeConfig, engine: Engine) -> int:
    """Returns the views per forward pass."""
    if isinstance(runtime.batch_size, int):
        return runtime.batch_size
    return 64 if engine.device.type == "cuda" else 8


def num_workers(runtime: RuntimeConfig, ranks: Ranks = ALONE, *, turns: bool = False) -> int:
    """Returns the number of decoding processes: one core is left to the networks. The ranks of a machine share it.

    Args:
        turns: decoders and networks take turns on the same cores, see `takes_turns`, and none needs to be left.
    """
    if isinstance(runtime.workers, int):
        return runtime.workers
    return min(max(cores(ranks) - (not turns), 1), 16)


def takes_turns(engine: Engine, ranks: Ranks = ALONE) -> bool:
    """Whether the networks use all cores, so that decoding beside them would gain no time."""
    return not engine.queues and torch.get_num_threads() >= cores(ranks)


def shared_cores(engine: Engine, ranks: Ranks = ALONE) -> int:
    """Cores that networks and decoders share; 0 where a GPU runs the networks."""
    return 0 if engine.queues else cores(ranks)


def videos_ahead(engine: Engine, workers: int, batch: int, ranks: Ranks = ALONE) -> int:
    """Returns the videos that decoders keep ready: a whole batch where they have cores of their own, 0 otherwise."""
    alone = engine.queues or torch.get_num_threads() + workers <= cores(ranks)
    return max(READY_VIDEOS, batch) if alone else 0


def videos_in_turn(engine: Engine, workers: int, batch: int, ranks: Ranks = ALONE) -> int:
    """Returns the videos that decoders read before they stand still for the networks; 0: they never do.

    On the same cores, working ahead gains no time, and what it slows down is whatever a batch begins with: the scorer
    would look slower beside the dense model than it is. A batch of few videos would leave cores idle while it is read.
    """
    return batch if takes_turns(engine, ranks) and batch >= 2 * workers else 0


def decoding(engine: Engine, workers: int, batch: int, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Options of `iter_samples` for networks that read `batch` videos at once."""
    return {
        "workers": workers,
        "pin_memory": engine.device.type == "cuda",
        "prefetch": videos_ahead(engine, workers, batch, ranks),
        "turns": videos_in_turn(engine, workers, batch, ranks),
    }


def cores(ranks: Ranks = ALONE) -> int:
    """This process's share of the cores that it may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return usable // ranks.local_size


def chosen_engine(runtime: RuntimeConfig, engine: Engine) -> str:
    """What runs the networks: "torch", or an engine and its version, "openvino 2026.4.1".

    Raises ConfigError: an engine is asked for, and is missing or cannot do what else is asked for.
    """
    missing = engine.dtype == torch.bfloat16 and not computes_in_bf16()
    if runtime.engine in engines.EXTRAS:
        if engine.device.type != "cpu":
            raise ConfigError(
                f"runtime.engine={runtime.engine}: runs on the processor here; use runtime.device=cpu, or "
                "runtime.engine=torch."
            )
        if missing:
            raise ConfigError(
                "runtime.dtype=bf16: OpenVINO computes in fp32 on this processor, which has no arithmetic for it; use "
                "fp32, or runtime.engine=torch."
            )
        if engine.dtype == torch.int8 and find_spec("nncf") is None:
            raise ConfigError('runtime.dtype=int8: OpenVINO needs nncf; pip install "video_papr[int8]".')
        return engines.engine_version(runtime.engine)
    possible = runtime.engine == "auto" and engine.device.type == "cpu" and not (runtime.compile or missing)
    return engines.engine_version("openvino") if possible and engines.has_openvino() else "torch"


def speed_up(pipeline: Pipeline, runtime: RuntimeConfig, engine: Engine) -> None:
    """Hands a pipeline's networks to what `runtime.engine` and `runtime.compile` ask for; graphs are made later.

    Raises ConfigError: see `chosen_engine` and `Pipeline.compile_networks`.
    """
    name = chosen_engine(runtime, engine)
    if name != "torch":
        if runtime.engine == "auto":
            note(
                f"runtime.engine=auto: {name} runs the networks; what it makes of them is kept for the next time"
            )
        if pipeline.merger is not None:
            if engine.dtype == torch.int8:
                raise ConfigError("runtime.dtype=int8: merger=tome does not become a graph; use merger=none.")
            note("merger=tome: the backbone stays in torch, because merging does not become a graph")
        pipeline.run_in(name.split()[0], engine.dtype)
    elif runtime.compile:
        pipeline.compile_networks(**runtime.compile_options)


@contextmanager
def mendable_errors(batch_size: int) -> Iterator[None]:
    """Turns what a key of the configuration can mend into one line: no memory left, no compiler.

    Raises ConfigError: memory ran out, or torch.compile does not work on this machine.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).strip().splitlines()[0]
        line = f"runtime.batch_size={batch_size}: out of GPU memory, use a smaller one ({reason})"
        raise ConfigError(line) from error
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split("Set TORCH")[0].split())
        raise ConfigError(
            f"runtime.compile: torch.compile does not work here ({reason}); install a C++ compiler (g++) or use "
            "runtime.compile=false."
        ) from error
