"""Benchmark of a configuration: every setting of `tools/bench.py`, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from ..benchmark.ceilings import Ceilings, measure_ceilings
from ..benchmark.clips import file_clips, synthetic_clips
from ..benchmark.growth import growth
from ..benchmark.peers import PeerFlow, available, build_pair
from ..benchmark.suite import Plan, measure
from ..benchmark.variants import Variant, build_variants, compile_variants
from ..config import BenchConfig
from ..core.console import note, warn
from ..core.errors import ConfigError
from ..evaluation.cost import Engine
from ..evaluation.results import command_line, describe_device, git_commit, versions
from ..pipeline import Pipeline
from . import runtime


@dataclass(frozen=True)
class Case:
    """One setting: all its variants are measured against each other."""

    backbone: str
    num_frames: int | None
    input_size: int | None
    dtype: str
    batch_size: int


def run_benchmark(config: BenchConfig) -> dict[str, Any]:
    """Measures every setting; returns the content of bench.json.

    Raises ConfigError: something in the configuration that the user can mend.
    """
    engine = runtime.build_engine(config.runtime)
    device = engine.device
    _check(config, device)
    measured = config.dtypes if config.ceilings else ()
    ceilings: dict[str, Ceilings] = {
        name: measure_ceilings(device, runtime.DTYPES[name]) for name in measured
    }
    cases = list_cases(config)
    found: list[dict[str, Any]] = []
    start = perf_counter()
    with tqdm(total=len(cases) * config.repeats, unit="round", disable=not config.progress) as bar:
        for case in cases:
            left = 60 * (config.minutes or 0) - (perf_counter() - start)
            seconds = max(1.0, left / (len(cases) - len(found))) if config.minutes else 0.0

            def planned(rounds: int, seconds: float, case: Case = case) -> None:
                bar.total -= config.repeats - rounds
                more = f", {len(cases)} settings in all" if len(cases) > 1 else ""
                note(f"{case.backbone}: {rounds} rounds, about {seconds:.0f} s{more} (minutes=, repeats=)")

            bar.set_description(f"{case.backbone} {case.dtype} x{case.batch_size}")
            with runtime.mendable_errors(case.batch_size):
                watch: dict[str, Any] = {"on_round": bar.update, "on_plan": planned}
                top = ceilings.get(case.dtype)
                found.append(_measure(config, case, engine, seconds, ceilings=top, **watch))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    lines = growth(found) if config.vary == "one" else []
    return {
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "compile": config.runtime.compile,
        "engine": runtime.chosen_engine(config.runtime, engine),
        "repeats": config.repeats,
        "seed": config.seed,
        "ceilings": {
            name: {"gflops_per_s": top.flops_per_s / 1e9, "gigabytes_per_s": top.bytes_per_s / 1e9}
            for name, top in ceilings.items()
        },
        "settings": found,
        **({"growth": lines} if lines else {}),
        "command": command_line(),
        "git_commit": git_commit(),
        "versions": versions("transformers"),
    }


def _check(config: BenchConfig, device: torch.device) -> None:
    """Raises ConfigError, or warns, where something that is asked for is not to be had."""
    if device.type == "cpu" and "fp16" in config.dtypes:
        raise ConfigError("dtypes=fp16: not supported on the CPU; use fp32 or bf16.")
    if config.huggingface is True and not available():
        raise ConfigError('huggingface=true: needs transformers (pip install "video_papr[bench]").')
    if config.huggingface == "auto" and not available():
        warn('transformers is not installed, so its models are left out (pip install "video_papr[bench]")')


def list_cases(config: BenchConfig) -> list[Case]:
    """All combinations of the lists; with vary=one, those that differ from the first values in one axis of growth."""
    axes = (config.num_frames, config.input_sizes, config.batch_sizes)
    clips = set(product(*axes))
    if config.vary == "one":
        first = tuple(values[0] for values in axes)
        clips = {clip for clip in clips if sum(a != b for a, b in zip(clip, first, strict=True)) <= 1}
    return [
        Case(backbone, frames, size, dtype, batch)
        for backbone, frames, size, dtype, batch in product(
            config.backbones, config.num_frames, config.input_sizes, config.dtypes, config.batch_sizes
        )
        if (frames, size, batch) in clips
    ]


def _measure(
    config: BenchConfig, case: Case, engine: Engine, seconds: float, **options: Any
) -> dict[str, Any]:
    """The record of one setting; `options` of `measure`."""
    runs_in = runtime.chosen_engine(config.runtime, engine)
    ours, theirs = build_pair(
        case.backbone, seed=config.seed, num_frames=case.num_frames, input_size=case.input_size
    )
    if config.huggingface is False:
        theirs = None
    file_ms = None
    if config.video is None:
        clips = synthetic_clips(ours, case.batch_size, seed=config.seed)
    else:
        clips, file_ms = file_clips(config.video, ours, case.batch_size)
    variants = build_variants(
        ours,
        theirs,
        pruners=[(pruner.name, pruner.options) for pruner in config.pruners],
        keep_ratios=config.keep_ratios,
        tome=config.tome,
        split=runs_in == "torch" and not config.runtime.compile,
        packing=config.runtime.packing,
    )
    dtype = runtime.DTYPES[case.dtype]
    _place(variants, engine.device, dtype, runs_in)
    return {
        "backbone": case.backbone,
        "num_frames": ours.num_frames,
        "input_size": ours.input_size,
        "num_tokens": ours.grid.num_tokens,
        "dtype": case.dtype,
        "batch_size": case.batch_size,
        "file_ms": file_ms,
        "variants": measure(
            variants,
            clips.to(engine.device),
            Plan(config.repeats, config.warmup, config.sample_ms, config.stages, config.seed, seconds),
            # What is counted before stands for the networks as they are, whatever runs them.
            prepare=partial(_speed_up, config, variants, dtype, runs_in),
            **options,
        ),
    }


def _place(variants: Sequence[Variant], device: torch.device, dtype: torch.dtype, runs_in: str) -> None:
    """Moves the networks to the device, in the precision that whatever runs them reads."""
    for variant in variants:
        for network in (variant.flow, variant.chooser):
            if network is not None:
                network.to(device, dtype if runs_in == "torch" else torch.float32)
        if runs_in != "torch" and isinstance(variant.flow, PeerFlow):
            variant.flow.theirs.to(dtype)


def _speed_up(config: BenchConfig, variants: Sequence[Variant], dtype: torch.dtype, runs_in: str) -> None:
    """Compiles the networks, or hands them to an engine."""
    if config.runtime.compile:
        compile_variants(variants, **config.runtime.compile_options)
    elif runs_in != "torch":
        for variant in variants:
            if isinstance(variant.flow, Pipeline):
                variant.flow.run_in(runs_in.split()[0], dtype)
