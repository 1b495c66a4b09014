"""Scenes and how they are drawn: shapes that move over a background, seen by a moving camera.

Letters and units as in `scenes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Path:
    """Where a shape is at each frame: all arrays are (T,)."""

    x: Array
    y: Array
    radius: Array
    angle: Array
    visible: Array


@dataclass(frozen=True)
class Shape:
    """A shape and its path. The actor is the only shape of kind "actor"."""

    kind: str
    colors: Array  # (3, 3) float RGB in 0..255: first, second, outline
    path: Path


@dataclass(frozen=True)
class Scene:
    """Everything that `render` draws."""

    height: int
    width: int
    fps: int
    background: Array  # (H + 2 margin, W + 2 margin, 3) float32, 0..255
    camera: Array  # (T, 2) displacement (x, y) of the whole scene in units of S
    shapes: tuple[Shape, ...]  # drawn in this order; the actor comes last
    noise_std: float


def render(scene: Scene, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draws a scene; `rng` feeds the sensor noise.

    Returns:
        frames: (T, H, W, 3) uint8.
        circles: (T, 3) float32: x, y and radius in pixels of the circle that holds the actor. It stays while the actor
            blinks, because the place where something vanishes belongs to the action.
    """
    size = min(scene.height, scene.width)
    num_frames = len(scene.camera)
    frames = np.empty((num_frames, scene.height, scene.width, 3), np.uint8)
    noise = rng.normal(0, scene.noise_std, (4, scene.height, scene.width, 3)).astype(np.float32)
    for t in range(num_frames):
        image = _shifted_window(scene, scene.camera[t] * size)
        for shape in scene.shapes:
            if shape.path.visible[t] > 0:
                _draw(image, shape, t, *_to_pixels(scene, shape.path, t))
        image += noise[t % 4][:: (-1) ** (t // 4), :: (-1) ** (t // 8)]
        frames[t] = np.clip(image, 0, 255).astype(np.uint8)
    actor = scene.shapes[-1].path
    circles = np.array([_to_pixels(scene, actor, t) for t in range(num_frames)], np.float32)
    return frames, circles


def _to_pixels(scene: Scene, path: Path, t: int) -> tuple[float, float, float]:
    size = min(scene.height, scene.width)
    x = scene.width / 2 + (path.x[t] + scene.camera[t, 0]) * size
    y = scene.height / 2 + (path.y[t] + scene.camera[t, 1]) * size
    return float(x), float(y), float(path.radius[t] * size)


def _shifted_window(scene: Scene, offset: Array) -> Array:
    """The part of the background that the camera sees, at a sub-pixel offset (bilinear)."""
    canvas, height, width = scene.background, scene.height, scene.width
    margin_y, margin_x = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
    left = float(np.clip(margin_x - offset[0], 0, 2 * margin_x - 1))
    top = float(np.clip(margin_y - offset[1], 0, 2 * margin_y - 1))
    x0, y0 = int(left), int(top)
    fx, fy = left - x0, top - y0
    rows = (1 - fy) * canvas[y0 : y0 + height] + fy * canvas[y0 + 1 : y0 + height + 1]
    return (1 - fx) * rows[:, x0 : x0 + width] + fx * rows[:, x0 + 1 : x0 + width + 1]


def _draw(image: Array, shape: Shape, t: int, x: float, y: float, radius: float) -> None:
    """Blends one shape into `image` in place, with a soft edge one pixel wide."""
    height, width = image.shape[:2]
    y0, y1 = max(0, int(y - radius - 2)), min(height, int(y + radius + 3))
    x0, x1 = max(0, int(x - radius - 2)), min(width, int(x + radius + 3))
    if y0 >= y1 or x0 >= x1:
        return
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32) + 0.5
    dx, dy = (dx - x) / radius, (dy - y) / radius
    cos, sin = np.cos(shape.path.angle[t]), np.sin(shape.path.angle[t])
    a, b = cos * dx + sin * dy, -sin * dx + cos * dy  # coordinates that turn with the shape
    edge = 1.0 / radius

    def soft(distance: Array) -> Array:
        return np.clip(0.5 - distance / edge, 0, 1)[..., None]

    first, second, outline = (c.astype(np.float32) for c in shape.colors)
    fill = soft(a) * first + (1 - soft(a)) * second
    if shape.kind == "actor":
        ring = soft(0.8 - np.hypot(a, b))
        fill = (1 - ring) * fill + ring * outline
    alpha = soft(_distance(shape.kind, a, b))
    image[y0:y1, x0:x1] = (1 - alpha) * image[y0:y1, x0:x1] + alpha * fill


def _distance(kind: str, a: Array, b: Array) -> Array:
    """How far a point lies outside a shape of unit radius (negative inside)."""
    if kind in ("actor", "disc"):
        return np.hypot(a, b) - 1
    if kind == "square":
        return np.maximum(np.abs(a), np.abs(b)) - 0.72
    if kind == "bar":
        return np.maximum(np.abs(a) - 1, np.abs(b) - 0.32)
    if kind == "cross":
        return np.minimum(
            np.maximum(np.abs(a) - 0.95, np.abs(b) - 0.28), np.maximum(np.abs(a) - 0.28, np.abs(b) - 0.95)
        )
    if kind == "triangle":
        return np.maximum(-b - 0.5, np.maximum(0.866 * a + 0.5 * b, -0.866 * a + 0.5 * b) - 0.5)
    raise ValueError(f"unknown shape {kind!r}")
