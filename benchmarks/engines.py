"""The speed of each engine on a processor: dense and pruned in torch, compiled torch and OpenVINO, beside transformers.

python benchmarks/engines.py --output benchmarks/results/engines

All take turns in one process, with the same random weights and one clip; leave the machine to it alone. It writes
engines.json and engines.md. Every pruned row is compared with the dense one of its own engine, and with transformers'.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from video_papr.benchmark.clips import synthetic_clips
from video_papr.benchmark.peers import PeerFlow, available, build_pair
from video_papr.benchmark.timing import alternate, ratios, spread
from video_papr.core.engines import EXTRAS, engine_version
from video_papr.core.files import atomic_write
from video_papr.core.tables import Table
from video_papr.evaluation.results import command_line, describe_device, git_commit, versions
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.channels_last import use_channels_last

HEADER = [
    "model",
    "engine",
    "variant",
    "ms",
    "x own dense",
    "x transformers",
    "same tokens",
    "logits differ by",
]
Flows = dict[tuple[str, str], Any]


def flows_of(name: str, keep_ratio: float, engines: list[str]) -> Flows:
    """(engine, variant) -> what is timed; every engine has copies of its own of what it changes."""
    ours, theirs = build_pair(name, seed=0)
    flows: Flows = {}
    for engine in engines:
        dense = Pipeline(ours).with_backbone().eval()
        pruner = use_channels_last(build_pruner("x3d_s", keep_ratio=keep_ratio, weights=None))
        pruned = Pipeline(dense.backbone, pruner).eval()
        library, _, dtype = engine.partition(" ")
        if library in EXTRAS:
            pruned.run_in(library, torch.int8 if dtype else torch.float32)
        elif engine == "compiled":
            pruned.compile_networks(dynamic=False)
        flows[engine, "dense"], flows[engine, f"x3d_s {keep_ratio:g}"] = dense, pruned
    if theirs is not None:
        flows["transformers", "dense"] = PeerFlow(ours, theirs)
    return flows


@torch.inference_mode()
def measure(name: str, flows: Flows, repeats: int) -> list[dict[str, Any]]:
    """One record for each flow, on one synthetic clip."""
    frames = synthetic_clips(next(iter(flows.values())).backbone, 1, seed=0)
    logits = {key: flow(frames) for key, flow in flows.items()}
    times = alternate(
        {" ".join(key): partial(flow, frames) for key, flow in flows.items()},
        frames.device,
        repeats=repeats,
        sample_ms=0,
    )
    records = []
    for key in flows:
        engine, variant = key
        own, plain = times[" ".join(key)], ("torch", variant)
        record: dict[str, Any] = {"model": name, "engine": engine, "variant": variant, "rounds_ms": own}
        record["own_dense"] = ratios(times[f"{engine} dense"], own)
        if ("transformers", "dense") in flows:
            record["transformers"] = ratios(times["transformers dense"], own)
        if variant != "dense":
            kept = [flows[each].select(frames).mask() for each in (key, plain)]
            record["same_tokens"] = ((kept[0] & kept[1]).sum() / kept[1].sum()).item()
        record["logit_difference"] = (logits[key] - logits[plain]).abs().max().item()
        records.append(record)
    return records


def row(record: dict[str, Any]) -> list[str]:
    """One line of the table."""

    def shown(values: dict[str, float] | None) -> str:
        return "" if values is None else f"{values['median']:.2f} ({values['low']:.2f}-{values['high']:.2f})"

    same = record.get("same_tokens")
    return [
        *(record[key] for key in ("model", "engine", "variant")),
        f"{spread(record['rounds_ms'])['median']:.0f}",
        shown(record["own_dense"]),
        shown(record.get("transformers")),
        "" if same is None else f"{100 * same:.1f} %",
        f"{record['logit_difference']:.1e}",
    ]


def main() -> None:
    """Reads the words of the command line, measures, writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["videomae_b", "vivit_b"])
    parser.add_argument(
        "--engines",
        nargs="+",
        default=["torch", "compiled", "openvino", "onnxruntime"],
        help="also 'openvino int8'",
    )
    parser.add_argument("--keep-ratio", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("outputs/engines"))
    args = parser.parse_args()
    if "compiled" in args.engines:
        import torch._inductor.config as inductor

        inductor.freezing = True  # as runtime.compile does on a processor
    facts = {"device": describe_device(torch.device("cpu")), "threads": torch.get_num_threads()}
    facts |= {"command": command_line(), "git_commit": git_commit(), "repeats": args.repeats}
    facts |= {"versions": versions("transformers"), "peer": available()}
    facts |= {"engines": [engine_version(name) for name in {e.split()[0] for e in args.engines} & {*EXTRAS}]}
    args.output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for name in args.backbones:
        records += measure(name, flows_of(name, args.keep_ratio, args.engines), args.repeats)
        table = Table(HEADER, [row(record) for record in records]).filled().markdown()
        told = f"Measured by `{facts['command']}` on {facts['device']}."
        atomic_write(args.output / "engines.json", json.dumps({**facts, "records": records}, indent=2) + "\n")
        atomic_write(args.output / "engines.md", f"{told}\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
