"""Motion vectors of the codec: what moves against the camera, found while decoding, without a look at a pixel.

FFmpeg exports the vectors of H.264, MPEG-4 part 2, MPEG-2 and their kin as side data of frames (`export_mvs`), none of
HEVC, VP9 and AV1, and intra frames have none. The camera's motion is the affine model that most vectors of a frame
follow, one for those that point back and one for those that point ahead. What is left of a vector is how far its block
moved by itself.

Letters: C clips, T frames of a clip, n frames that are read, H x W pixels of a frame, h x w its cells of 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.pixels import LARGEST_MOTION, MOTION_UNKNOWN
from .answers import Frames, Indices
from .orientation import Orientation

CELL = 8  # pixels; no vector that FFmpeg exports is finer
EXPORT = 1 << 28  # FFmpeg's AV_CODEC_FLAG2_EXPORT_MVS
# A byte of the motion plane is the root of the pixels that a cell moves per frame, times this: small motion is told
# from none, and large motion finds room.
STEPS = 25.0
_FRACTION = 16  # sums are whole numbers of 1/16 pixel, which no order of adding changes
_SCALES = (4.0, 2.0, 1.0, 0.5)  # of the fit, in pixels; vectors are in quarters of one
_PRIOR = np.diag([1e-3, 0.5, 0.5])  # vectors that speak for no motion, no zoom and no rotation
_ENOUGH = 200  # vectors of a frame for the fit
_AT_ONCE = 20_000  # vectors that are worked on together, unless one frame has more


class ClipMotion:
    """What moves in clips: looks at the frames that one pass decodes, and adds a plane to those that clips have.

    The plane of a frame says how far every pixel moved since the frame before it in its clip: the mean per frame of the
    video between the two, so that what else is decoded in the same pass plays no part. The first frame of a clip has
    what the second one has, and repeated frames do not move.

    Args:
        places: (C, T), which of the n frames that are read each frame of each clip is.

    Attributes:
        linked: (n,) bool, whether what is between the frame before and this one must be decoded, for a clip has both.
    """

    def __init__(self, places: Indices) -> None:
        self.places = places
        first, last = places.min(1, keepdims=True), places.max(1, keepdims=True)
        each = np.arange(places.max() + 1)
        self.linked: NDArray[np.bool_] = ((each > first) & (each <= last)).any(0)
        self.start()

    def start(self) -> None:
        """A pass begins; what another one found is forgotten."""
        self._waiting: list[NDArray[Any]] = []  # vectors of frames that are not added up yet
        self._marks: list[int] = []  # how many of these come up to each frame that is read
        self._total, self._known = np.zeros((1, 1), np.int32), 0
        # At each frame that is read: how far cells have moved up to it, and how many frames told.
        self._kept: list[tuple[NDArray[np.int32], int]] = []

    def add(self, frame: Any) -> None:
        """Looks at the vectors of a decoded frame (PyAV)."""
        self._size = frame.height, frame.width
        data = frame.side_data.get("MOTION_VECTORS")
        if data is not None and len(vectors := data.to_ndarray()):
            if sum(map(len, self._waiting)) + len(vectors) > _AT_ONCE:
                self._add_up()
            self._waiting.append(vectors.copy())  # the frame's memory goes back to the decoder

    def keep(self) -> None:
        """The frame that was added last is one that is read."""
        self._marks.append(len(self._waiting))

    def _add_up(self) -> None:
        sums = [self._total]
        if self._waiting:
            sums += list(self._total + np.cumsum(moving_cells(self._waiting, self._size), 0, np.int32))
        self._kept += [(sums[mark], self._known + mark) for mark in self._marks]
        self._total, self._known = sums[-1], self._known + len(self._waiting)
        self._waiting, self._marks = [], []

    def fill(self, planes: Frames, orientation: Orientation) -> None:
        """Writes the planes of the clips, (C, T, H, W) as they are shown."""
        self._add_up()
        shown = planes.shape[3:1:-1] if orientation.transpose else planes.shape[2:]
        rows, columns = (
            np.arange(length) * full // length // CELL for length, full in zip(shown, self._size, strict=True)
        )
        for clip, places in zip(planes, self.places, strict=True):
            for plane, place, before in zip(clip, places, [places[:2].max(), *places[:-1]], strict=True):
                cells = self._between(before, place, alone=len(places) == 1)
                plane[:] = orientation.apply(cells[rows[:, None], columns, None])[..., 0]

    def _between(self, one: int, other: int, *, alone: bool) -> Frames:
        (first, known), (last, count) = self._kept[min(one, other)], self._kept[max(one, other)]
        count -= known
        cells = [-(-side // CELL) for side in self._size]
        if count == 0:
            return np.full(cells, MOTION_UNKNOWN if alone or one != other else 0, np.uint8)
        mean = np.broadcast_to((last - first) * np.float32(STEPS**2 / _FRACTION / count), cells)
        return np.minimum(np.sqrt(mean) + 0.5, LARGEST_MOTION).astype(np.uint8)


def moving_cells(vectors: Sequence[NDArray[Any]], size: tuple[int, int]) -> NDArray[np.int32]:
    """How far each cell of some frames moves against the camera, in 1/16 pixel; a cell without a vector does not.

    No frame changes what is found of another one; together they are faster.

    Args:
        vectors: those of F frames, FFmpeg's AVMotionVector: a block of `w` x `h` pixels around (`dst_x`, `dst_y`) comes
            from (`motion_x`, `motion_y`) / `motion_scale` pixels away, in a frame before it (`source` < 0) or behind.
        size: (H, W) of the frames.

    Returns:
        (F, h, w) int32; where several vectors meet in a cell, their mean.
    """
    every, lengths = np.concatenate(vectors), [len(own) for own in vectors]
    frame = np.repeat(np.arange(len(vectors)), lengths)
    left, top, width, height = (every[name].astype(np.int32) for name in ("dst_x", "dst_y", "w", "h"))
    scale = np.maximum(every["motion_scale"], 1).astype(np.float32)
    moved = np.array([every["motion_x"] / scale, every["motion_y"] / scale])
    model = np.ones((3, len(every)), np.float32)
    model[1:] = left / size[1] - 0.5, top / size[0] - 0.5
    group = 2 * frame + (every["source"] < 0)
    # Odd steps, as the two directions of a block stand side by side.
    steps = [np.arange(0, length, length // _ENOUGH | 1) for length in lengths]
    some = np.concatenate(
        [step + start for step, start in zip(steps, np.cumsum([0, *lengths]), strict=False)]
    )
    camera = camera_motion(moved[:, some], model[:, some], group[some], 2 * len(vectors))
    own = np.sqrt(np.square(moved - _at(camera, model, group)).sum(0))
    left, top = (left - width // 2) // CELL, (top - height // 2) // CELL
    rows, columns = (-(-side // CELL) for side in size)
    cells, values = [], []
    for down in range(-(-int(height.max()) // CELL)):
        for right in range(-(-int(width.max()) // CELL)):
            x, y = left + right, top + down
            inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
            inside &= (right * CELL < width) & (down * CELL < height)
            cells.append(((frame * rows + y) * columns + x)[inside])
            values.append(own[inside])
    place, count = np.concatenate(cells), len(vectors) * rows * columns
    totals = np.bincount(place, np.concatenate(values), count)
    shares = np.maximum(np.bincount(place, minlength=count), 1)
    return np.rint(_FRACTION * totals / shares).astype(np.int32).reshape(-1, rows, columns)


def camera_motion(
    moved: NDArray[np.float32], model: NDArray[np.float32], group: NDArray[np.int64], groups: int
) -> NDArray[np.float32]:
    """The affine motion that most vectors of each group follow, by reweighted least squares.

    The weights are Geman and McClure's, on a scale that falls from round to round (graduated non-convexity): what moves
    otherwise than the rest counts less and less.

    Args:
        moved: (2, vectors) pixels.
        model: (3, vectors): 1, and the place in the frame from -0.5 to 0.5.
        group: (vectors,), the one of `groups` to which each belongs.

    Returns:
        (2, 3, groups), what the model is multiplied by.
    """
    pairs = [(i, j, model[i] * other) for i in range(3) for j, other in enumerate((*model, *moved)) if j >= i]
    weight, camera = np.ones_like(moved[0]), np.zeros((2, 3, groups), np.float32)
    sums = np.empty((groups, 3, 5))
    for scale in _SCALES:
        for i, j, pair in pairs:
            sums[:, i, j] = np.bincount(group, weight * pair, groups)
            if j < 3:
                sums[:, j, i] = sums[:, i, j]
        # Few vectors, or those of one row of blocks, say little about zoom and rotation.
        camera = np.linalg.solve(sums[..., :3] + _PRIOR, sums[..., 3:]).T.astype(np.float32)
        weight = 1 / np.square(1 + np.square((moved - _at(camera, model, group)) / np.float32(scale)).sum(0))
    return camera


def _at(
    camera: NDArray[np.float32], model: NDArray[np.float32], group: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The motion of a camera at vectors, (2, vectors)."""
    return np.array([(own[:, group] * model).sum(0) for own in camera])
