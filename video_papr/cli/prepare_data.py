"""`python tools/prepare_data.py`: checks the videos of a dataset and writes an index, before a long run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import PrepareConfig
from ..core.console import make_console, warn
from ..core.files import atomic_write
from .common import print_written, run_command


def main() -> None:
    """Entry point of the command."""
    run_command("prepare_data", run)


def run(config: PrepareConfig, out: Path) -> dict[str, Any]:
    """Checks every video and writes index.csv, report.md and progress.jsonl; returns the number of videos by status."""
    from tqdm import tqdm

    from ..assembly import build, runtime
    from ..assembly.views import read_as_trained
    from ..backbones.builders import clip_size
    from ..data.index import build_index, index_text
    from ..data.index_probe import probe_videos
    from ..data.index_report import count_statuses, report_text
    from ..data.sampling import frames_needed

    dataset, backbone = config.dataset, config.backbone
    problems: list[str] = []
    root, videos = build.build_videos(dataset, progress=config.progress, on_invalid=problems.append)
    num_frames, _ = clip_size(backbone.name, num_frames=backbone.num_frames)
    reading = read_as_trained(dataset)
    assert reading.sampling is not None and reading.frame_stride is not None  # filled in
    needed = frames_needed(reading.sampling, num_frames=num_frames, frame_stride=reading.frame_stride)
    probes = probe_videos(
        {record.name: record.path for record in videos.records},
        out / "progress.jsonl",
        check=config.check,
        decoder=dataset.decoder,
        workers=runtime.num_workers(config.runtime),
    )
    bar = tqdm(probes, total=len(videos), desc="checking", unit="video", disable=not config.progress)
    entries = build_index(videos, dict(bar), min_frames=config.min_frames or needed)
    counts = count_statuses(entries)

    index, report = out / "index.csv", out / "report.md"
    # The names of files that are not UTF-8 keep their bytes.
    atomic_write(index, index_text(entries).encode("utf-8", "surrogateescape"))
    title = f"{dataset.name}: {root}" + (f", {dataset.annotations}" if dataset.annotations else "")
    atomic_write(report, report_text(title, entries, problems))
    _print(title, counts, problems, [index, report])
    return counts


def _print(title: str, counts: dict[str, int], problems: list[str], written: list[Path]) -> None:
    from ..core.tables import Table
    from ..data.index import STATUSES

    console = make_console()
    rows = [[status, f"{count:,}", STATUSES[status]] for status, count in counts.items()]
    Table(["status", "videos", "meaning"], rows, title=title, left=(0, 2)).print(console)
    if problems:
        warn(f"{len(problems)} entries of the list are wrong and left out; the first: {problems[0]}")
    print_written(written, console)
    console.print(f"To use it: dataset.index={written[0]}")
