"""`python tools/predict.py video=0`: a webcam, the screen, a network stream or a pipe, answered while it runs."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..config import PredictConfig
from ..core.console import make_console
from ..core.errors import DataError, VideoDecodeError
from ..core.escape import printable
from ..core.files import storing
from .common import print_written, warn_of_bundled

if TYPE_CHECKING:
    from ..data.readers.live import LiveSource
    from ..inference.predict import Answer

LINES = "live.jsonl"
WINDOW_SECONDS, STRIDE_SECONDS = 2.0, 1.0  # where the command does not say


def run_live(config: PredictConfig, source: LiveSource, out: Path) -> dict[str, Any]:
    """Prints every answer as it comes and writes live.jsonl, one line a window, until the source ends or Ctrl+C."""
    from ..assembly.compose import build_reader
    from ..data.readers.live import read_live
    from ..inference.live import Display, LiveWindows
    from ..inference.predict import warm_up

    pipeline, recipe = build_reader(config)
    warn_of_bundled(config)
    warm_up(pipeline, recipe)
    display = Display() if config.show else None
    length = config.window_seconds or WINDOW_SECONDS
    stride = config.stride_seconds or (config.window_seconds or STRIDE_SECONDS)
    frames, most = read_live(source, recipe.limits), config.max_seconds
    if most is not None:
        frames = takewhile(lambda frame: frame[0] < most, frames)
    spans = {"window_seconds": length, "stride_seconds": stride}
    live = LiveWindows(pipeline, frames, **spans, top_k=config.top_k, recipe=recipe)
    console, begun, count, failure = make_console(stderr=config.json), perf_counter(), 0, None
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    with storing(out / LINES), open(out / LINES, "w", encoding="utf-8") as file, suppress(KeyboardInterrupt):
        try:
            for count, answer in enumerate(live, start=1):
                line = _line(answer, live.skipped)
                print(line, file=file, flush=True)
                if config.json:
                    print(line, flush=True)
                best, rate = answer.guesses[0], count / (perf_counter() - begun)
                console.print(
                    f"{answer.start_seconds:7.1f} to {answer.end_seconds:.1f} s   {100 * best.probability:3.0f} % "
                    f"{printable(best.name)}   {answer.latency_ms:.0f} ms, {rate:.1f} windows/s, {live.skipped} skipped"
                )
                assert live.newest is not None
                if display is not None and not display.show(*live.newest, answer, live.reader):
                    break
        except VideoDecodeError as error:
            failure = str(error)
    print_written([out / LINES], console)
    if failure is not None or not count:
        raise DataError(f"video={printable(str(config.video))}: {failure or 'no frame came'}")
    return {"num_videos": 1, "num_failed": 0}


def _line(answer: Answer, skipped: int) -> str:
    """The line of live.jsonl."""
    record = {
        "start_seconds": answer.start_seconds,
        "end_seconds": answer.end_seconds,
        "top": [guess._asdict() for guess in answer.guesses],
        "latency_ms": answer.latency_ms,
        "skipped": skipped,
    }
    return json.dumps(record, ensure_ascii=False, allow_nan=False)
