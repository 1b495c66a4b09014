from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread

from video_papr.evaluation.visualize import (
    EDGE,
    GAP,
    MARGIN,
    TITLE,
    Panel,
    render_kept_tubelets,
    save_gallery,
    save_timeline,
)

SIZE, TUBELET = 112, 16  # large enough to be drawn without enlarging


def view(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames (8, 112, 112, 3), mask and map (4, 7, 7)."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (8, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    significance = torch.rand(4, 7, 7, generator=generator)
    return frames, significance > 0.6, significance


def tile(image: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = row * (SIZE + GAP), column * (SIZE + GAP)
    return image[top : top + SIZE, left : left + SIZE]


def test_rows_are_frames_kept_tubelets_and_map() -> None:
    frames, mask, significance = view()
    image = render_kept_tubelets(frames, mask, significance)
    assert image.dtype == np.uint8
    assert image.shape == (3 * SIZE + 2 * GAP, 4 * SIZE + 3 * GAP, 3)
    for column in range(4):
        frame = frames[2 * column].numpy()  # the first frame of each tubelet
        np.testing.assert_array_equal(tile(image, 0, column), frame)
        shown = tile(image, 1, column)
        for y in range(7):
            for x in range(7):
                block = np.s_[y * TUBELET : (y + 1) * TUBELET, x * TUBELET : (x + 1) * TUBELET]
                if mask[column, y, x]:
                    np.testing.assert_array_equal(shown[block], frame[block])
                else:
                    assert shown[block].min() >= 192
                heat = tile(image, 2, column)[block].reshape(-1, 3)
                assert (heat == heat[0]).all()  # one colour per token


def test_map_is_brightest_at_its_peak() -> None:
    frames, mask, _ = view()
    significance = torch.zeros(4, 7, 7)
    significance[2, 3, 5] = 1
    image = render_kept_tubelets(frames, mask, significance).astype(int)
    brightness = [tile(image, 2, column).sum(-1) for column in range(4)]
    assert max(part.max() for part in brightness) == brightness[2][3 * TUBELET, 5 * TUBELET]
    assert brightness[0].max() == brightness[2].min()


def test_colours_span_the_map_whatever_its_level() -> None:
    """The lowest value has the scale's darkest colour, and the highest its brightest."""
    frames, mask, _ = view()
    significance = torch.linspace(10, 12, 4 * 49).view(4, 7, 7)
    image = render_kept_tubelets(frames, mask, significance)
    corners = tile(image, 2, 0)[0, 0], tile(image, 2, 3)[-1, -1]
    expected = [(255 * np.array(colormaps["magma"](value)[:3])).round() for value in (0.0, 1.0)]
    np.testing.assert_array_equal(corners, expected)


def test_constant_map_and_no_map() -> None:
    frames, mask, _ = view()
    assert render_kept_tubelets(frames, mask, torch.ones(4, 7, 7)).shape[0] == 3 * SIZE + 2 * GAP
    assert render_kept_tubelets(frames, mask).shape[0] == 2 * SIZE + GAP


def test_small_frames_are_enlarged_and_long_clips_thinned() -> None:
    frames = torch.zeros(32, 16, 16, 3, dtype=torch.uint8)
    image = render_kept_tubelets(frames, torch.ones(16, 2, 2, dtype=torch.bool), max_columns=4)
    assert image.shape == (2 * 112 + GAP, 4 * 112 + 3 * GAP, 3)


@pytest.mark.parametrize(
    ("mask", "significance", "message"),
    [
        (torch.ones(3, 7, 7), None, "does not divide"),
        (torch.ones(7, 7), None, "must be"),
        (torch.ones(4, 7, 7), torch.ones(4, 7, 6), "differ"),
    ],
)
def test_shapes_that_do_not_fit(mask: torch.Tensor, significance: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_kept_tubelets(view()[0], mask.bool(), significance)


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2)])
def test_gallery_shows_every_strip_unchanged(tmp_path: Path, count: int, rows: int, columns: int) -> None:
    views = [view(seed) for seed in range(count)]
    panels = [Panel(f"clip_{seed}$x_1$.mp4    label: a", *views[seed]) for seed in range(count)]
    image = imread(save_gallery(panels, tmp_path / "new" / "kept.png"))
    height, width = 3 * SIZE + 2 * GAP, 4 * SIZE + 3 * GAP
    assert image.shape[:2] == (rows * (height + TITLE) + EDGE, columns * (width + MARGIN) + EDGE)
    pixels = (image[..., :3] * 255).round().astype(np.uint8)
    for place in range(count):
        top = place // columns * (height + TITLE) + TITLE
        left = place % columns * (width + MARGIN) + MARGIN
        strip = render_kept_tubelets(*views[place])
        np.testing.assert_array_equal(pixels[top : top + height, left : left + width], strip)


def test_timeline_shows_names_as_they_are(tmp_path: Path) -> None:
    spans = [(0.0, 2.0), (1.0, 3.0)]
    path = save_timeline(
        spans, {"_a$x_1$": [0.1, 0.9], "b": [0.9, 0.1]}, tmp_path / "new/line.png", title="$x_1$.mp4"
    )
    assert imread(path).shape[:2] == (360, 900)
