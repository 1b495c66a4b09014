"""Pictures of what a pruner keeps: the frames, the same frames with dropped tubelets faded, and the significance map.

Letters: T frames of H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange, repeat
from torch import Tensor

from ..core.escape import printable, shorten

PICTURE_SIDE = 224  # pixels of a view in a picture, at least
GAP = 4  # pixels between two pictures of a strip
MIN_TILE = 112  # smaller frames are enlarged to at least this many pixels
WHITE = 255
DPI = 100
PAGE = 1200  # a gallery is about this many pixels wide, if its strips are not wider
MARGIN, TITLE, EDGE = 90, 34, 10  # room for the names of rows, for titles, and around everything
LETTER = 8  # a letter of a title is about this wide, in pixels
LONGEST_LABEL = 120  # letters


def picture_scale(frame_size: tuple[int, int]) -> int:
    """How many times larger than what a backbone reads, (H, W), a picture is cut, so that it can be looked at."""
    return -(-PICTURE_SIDE // max(frame_size))


@dataclass(frozen=True)
class Panel:
    """One view of a video: frames (T, H, W, 3) uint8, mask (T', H', W') bool, significance (T', H', W') or None."""

    title: str
    frames: Tensor
    mask: Tensor
    significance: Tensor | None = None


def render_kept_tubelets(
    frames: Tensor, mask: Tensor, significance: Tensor | None = None, *, max_columns: int = 8
) -> np.ndarray:
    """Draws one view as a strip in which time runs from left to right, one column per temporal slice of tubelets.

    Rows from top to bottom: the frames; the frames with dropped tubelets faded; the significance map (bright =
    significant), if it is given.

    Args:
        frames: (T, H, W, 3) uint8.
        mask: (T', H', W') bool, True where the tubelet is kept; T', H', W' divide T, H, W.
        significance: (T', H', W') float, higher = keep.
        max_columns: with more slices than this, evenly spaced ones are drawn.

    Returns:
        (height, width, 3) uint8 on white.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or mask.ndim != 3:
        shapes = f"{tuple(frames.shape)}, {tuple(mask.shape)}"
        raise ValueError(f"frames must be (T, H, W, 3) and mask (T', H', W'), got {shapes}")
    if any(pixels % tokens for pixels, tokens in zip(frames.shape[:3], mask.shape, strict=True)):
        raise ValueError(
            f"a token grid of {tuple(mask.shape)} does not divide frames of {tuple(frames.shape[:3])}"
        )
    if significance is not None and significance.shape != mask.shape:
        raise ValueError(
            f"significance {tuple(significance.shape)} and mask {tuple(mask.shape)} differ in shape"
        )
    slices = mask.shape[0]
    columns = np.linspace(0, slices - 1, min(slices, max_columns)).round().astype(int)
    first = columns * (frames.shape[0] // slices)  # the first frame of each tubelet
    pictures = frames.cpu().numpy()[first]
    kept = mask.cpu().numpy()[columns]
    size = pictures.shape[1:3]
    rows = [pictures, np.where(_enlarge(kept, size)[..., None], pictures, fade(pictures))]
    if significance is not None:
        rows.append(_enlarge(_colors(significance.float().cpu().numpy())[columns], size))
    scale = -(-MIN_TILE // min(size))
    return _tile([_enlarge(row, (size[0] * scale, size[1] * scale)) for row in rows])


def fade(pixels: np.ndarray) -> np.ndarray:
    """Towards white, uint8: a dark place that was kept must not look like one that was dropped."""
    return (pixels >> 2) + 192


def save_gallery(panels: Sequence[Panel], path: Path) -> Path:
    """Writes a PNG with one strip per panel under its title, and returns its path. Needs no display.

    Narrow strips stand side by side.
    """
    from matplotlib.figure import Figure

    strips = [render_kept_tubelets(panel.frames, panel.mask, panel.significance) for panel in panels]
    cell_height, cell_width = (max(strip.shape[axis] for strip in strips) for axis in (0, 1))
    # Strips of a single frame are narrower than their titles.
    written = min(LETTER * max(len(panel.title) for panel in panels), PAGE - MARGIN)
    cell_height, cell_width = cell_height + TITLE, max(cell_width, written) + MARGIN
    columns = min(max(1, PAGE // cell_width), len(strips))
    width, height = columns * cell_width + EDGE, -(-len(strips) // columns) * cell_height + EDGE
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    for place, (panel, strip) in enumerate(zip(panels, strips, strict=True)):
        left, top = place % columns * cell_width + MARGIN, place // columns * cell_height + TITLE

        def write(x: float, y: float, text: str, **style: Any) -> None:
            figure.text(x / width, 1 - y / height, _label(text), parse_math=False, **style)

        figure.figimage(strip, xo=left, yo=height - top - strip.shape[0])
        write(left, top - 8, panel.title, fontsize=11)
        kept = f"kept {100 * float(panel.mask.float().mean()):.0f} %"
        names = ["frames", kept] if panel.significance is None else ["frames", kept, "significance"]
        for row, name in enumerate(names):
            middle = top + (row + 0.5) * strip.shape[0] / len(names)
            write(left - 8, middle, name, fontsize=9, ha="right", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def save_timeline(
    spans: Sequence[tuple[float, float]],
    probabilities: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
) -> Path:
    """Writes a PNG with the probability of some classes over time, and returns its path. Needs no display.

    Args:
        spans: start and end of each window in seconds; it is drawn at its middle.
        probabilities: name of the class -> its probability in each window.
        title: shown as it is, without markup.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    middles = [(start + end) / 2 for start, end in spans]
    series = probabilities.values()
    lines = [axes.plot(middles, [100 * p for p in values], marker=".")[0] for values in series]
    axes.set(xlabel="seconds", ylabel="probability, %", ylim=(0, 102), xlim=(spans[0][0], spans[-1][1]))
    axes.grid(alpha=0.3)
    axes.set_title(_label(title), fontsize=11, loc="left", parse_math=False)
    legend = axes.legend(
        lines, list(map(_label, probabilities)), fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def _label(text: str) -> str:
    """A name as a drawing can hold it."""
    return shorten(printable(text), LONGEST_LABEL)


def _colors(significance: np.ndarray) -> np.ndarray:
    """(T', H', W') -> (T', H', W', 3) uint8: one scale for the whole view, so that slices compare."""
    from matplotlib import colormaps

    low, high = np.nanmin(significance), np.nanmax(significance)
    scaled = (significance - low) / max(high - low, 1e-12)
    return (colormaps["magma"](scaled)[..., :3] * WHITE).round().astype(np.uint8)


def _enlarge(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, h, w, ...) -> (n, H, W, ...): every cell becomes a block; `size` is a multiple of (h, w)."""
    times = {"a": size[0] // cells.shape[1], "b": size[1] // cells.shape[2]}
    return repeat(cells, "n h w ... -> n (h a) (w b) ...", **times)


def _tile(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Puts rows of pictures (n, H, W, 3) under each other, with white gaps."""
    padded = np.stack(rows)
    padded = np.pad(padded, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=WHITE)
    return rearrange(padded, "row column h w c -> (row h) (column w) c")[:-GAP, :-GAP]
