"""Synthetic actions: pure functions that draw a small actor moving over a busy scene.

The class of a scene is the *motion* of its actor, not its look or its place: a single frame gives little of it away.
Everything else in the picture is there to mislead simple rules: the camera pans and shakes (frame difference lights
up everywhere), bright shapes stand still (brightness finds them), others flicker or drift at random (so does motion).
The actor alone is warm in colour, a disc of a dark and a light half: its look tells where it is, as a person's does.

Letters: T frames, H x W pixels. Positions are in units of S = min(H, W), measured from the centre of the frame:
x to the right, y downwards, both in [-0.5, 0.5] inside the central square. Angles are in radians, clockwise on screen.
"""

from __future__ import annotations

import numpy as np

from .drawing import Array, Path, Scene, Shape

VERSION = 1  # of the generator; counts up whenever the same seed gives other videos
ACTIONS = (
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "rotate_cw",
    "rotate_ccw",
    "zoom_in",
    "zoom_out",
    "circle_cw",
    "circle_ccw",
    "zigzag",
    "blink",
)
UP = -np.pi / 2  # circles start at their top and rotations upright, give or take half a radian
# How much the camera moves, in units of the default. The scenes themselves stay the same, number for number.
CAMERAS = {"mixed": 1.0, "calm": 0.1, "shaky": 2.0}
CAMERA_REACH = 0.28  # of S; the ground that is drawn ends a little farther out
DISTRACTOR_SHAPES = ("square", "triangle", "disc", "bar", "cross")


def sample_scene(
    rng: np.random.Generator, action: str, *, clutter: float = 1.0, camera: str = "mixed"
) -> Scene:
    """Draws a random scene of one action.

    Args:
        rng: the only source of randomness.
        action: one of `ACTIONS`.
        clutter: 0 is a quiet, still scene without distractors; 1 is the full task. Training starts low.
        camera: one of `CAMERAS`; the same `rng` gives the same scene, seen by another camera.
    """
    short = int(rng.choice([96, 112, 128]))
    long = int(short * rng.choice([1.0, 1.0, 1.25, 4 / 3])) // 2 * 2
    height, width = (short, long) if rng.random() < 0.7 else (long, short)
    fps = int(rng.choice([10, 12, 15, 24, 25, 30]))
    num_frames = int(np.clip(round(fps * rng.uniform(1.0, 2.0)), 16, 48))

    actor = Shape("actor", _actor_colors(rng), _actor_path(rng, action, num_frames))
    distractors = tuple(_distractor(rng, num_frames, role) for role in _distractor_roles(rng, clutter))
    margin = int(0.3 * short)
    background = _background(rng, height + 2 * margin, width + 2 * margin, clutter)
    return Scene(
        height=height,
        width=width,
        fps=fps,
        background=background,
        camera=_camera(rng, num_frames, clutter * CAMERAS[camera]),
        shapes=(*distractors, actor),
        noise_std=float(clutter * rng.uniform(1.0, 4.0)),
    )


# ---- the actor ----


def _actor_path(rng: np.random.Generator, action: str, num_frames: int) -> Path:
    """The class-defining motion, with random speed, extent, place, easing, and a small drift that says nothing."""
    u = np.linspace(0, 1, num_frames) ** rng.uniform(0.85, 1.18)
    radius = np.full(num_frames, rng.uniform(0.088, 0.145))
    angle = np.full(num_frames, rng.uniform(0, 2 * np.pi))
    visible = np.ones(num_frames)
    x, y = np.zeros(num_frames), np.zeros(num_frames)
    verb, _, way = action.partition("_")
    sign = -1.0 if way in ("left", "up", "ccw", "out") else 1.0
    if verb == "move":
        travel = sign * rng.uniform(0.3, 0.46) * (u - 0.5)
        x, y = (travel, y) if way in ("left", "right") else (x, travel)
    elif verb == "rotate":
        radius = np.full(num_frames, rng.uniform(0.112, 0.145))  # a turn cannot be seen on fewer pixels
        angle = UP + rng.uniform(-0.5, 0.5) + sign * 2 * np.pi * rng.uniform(0.45, 0.85) * u
    elif verb == "zoom":
        grown = rng.uniform(1.65, 1.9)
        radius = rng.uniform(0.076, 0.088) * grown ** (u if sign > 0 else 1 - u)
    elif verb == "circle":
        phase = UP + rng.uniform(-0.5, 0.5) + sign * 2 * np.pi * rng.uniform(0.6, 0.95) * u
        orbit = rng.uniform(0.125, 0.17)
        x, y = orbit * np.cos(phase), orbit * np.sin(phase)
    elif verb == "zigzag":
        x, y = _zigzag(rng, u)
    elif verb == "blink":
        visible = (np.sin(2 * np.pi * (rng.uniform(2.0, 3.0) * u + rng.uniform(0, 1))) > 0).astype(float)
    else:
        raise ValueError(f"unknown action {action!r}; known: {', '.join(ACTIONS)}")
    x, y = x + rng.uniform(-0.04, 0.04) * u, y + rng.uniform(-0.04, 0.04) * u
    return Path(*_placed(rng, x, y, radius), radius=radius, angle=angle, visible=visible)


def _zigzag(rng: np.random.Generator, u: Array) -> tuple[Array, Array]:
    """A slow advance along a random axis with a fast triangle wave across it."""
    periods = rng.uniform(1.5, 2.0)
    wave = 2 * np.abs(2 * ((periods * u + rng.uniform(0, 1)) % 1) - 1) - 1
    along, across = rng.choice([-1, 1]) * rng.uniform(0.1, 0.25) * (u - 0.5), rng.uniform(0.108, 0.145) * wave
    return (along, across) if rng.random() < 0.5 else (across, along)


def _placed(rng: np.random.Generator, x: Array, y: Array, radius: Array) -> tuple[Array, Array]:
    """Moves a path to a random place where it stays inside the central square of a still camera.

    Places near the border are as likely as the centre, so that keeping the centre does not keep the actor.
    """
    placed = []
    for axis in (x, y):
        reach = 0.5 - radius.max()
        low, high = -reach - axis.min(), reach - axis.max()
        placed.append(axis + (low + (high - low) * rng.beta(0.5, 0.5) if low < high else (low + high) / 2))
    return placed[0], placed[1]


def _actor_colors(rng: np.random.Generator) -> Array:
    """A dark and a light half inside a ring, all of warm hue. As a whole no brighter than the ground."""
    dark = [rng.uniform(110, 170), rng.uniform(0, 40), rng.uniform(0, 70)]
    light = [rng.uniform(225, 250), rng.uniform(150, 200), rng.uniform(140, 200)]
    ring = [rng.uniform(190, 240), rng.uniform(20, 130), rng.uniform(20, 110)]
    return np.array([dark, light, ring])


# ---- everything else ----


def _distractor_roles(rng: np.random.Generator, clutter: float) -> list[str]:
    """At full clutter: 2-4 static bright shapes, 5-7 that flicker, 1-2 that drift at random."""
    most = {"static": (2, 4), "flicker": (5, 7), "drift": (1, 2)}
    return [
        role
        for role, (low, high) in most.items()
        for _ in range(int(round(clutter * rng.integers(low, high + 1))))
    ]


def _distractor(rng: np.random.Generator, num_frames: int, role: str) -> Shape:
    x, y = rng.uniform(-0.5, 0.5, 2)
    path = Path(
        x=np.full(num_frames, x),
        y=np.full(num_frames, y),
        radius=np.full(num_frames, rng.uniform(0.06, 0.13)),
        angle=np.full(num_frames, rng.uniform(0, 2 * np.pi)),
        visible=np.ones(num_frames),
    )
    if role == "drift":
        walk = _smooth_walk(rng, num_frames, 4) * 0.14
        path = Path(path.x + walk[:, 0], path.y + walk[:, 1], path.radius, path.angle, path.visible)
    if role == "flicker":
        hold = max(1, num_frames // 12)
        visible = np.repeat(rng.random(num_frames // hold + 1) < 0.5, hold)[:num_frames]
        path = Path(path.x, path.y, path.radius, path.angle, visible.astype(float))
    kind = str(rng.choice(DISTRACTOR_SHAPES))
    base = _cooled(rng.uniform(60, 255, 3))
    if role == "static":
        base = base / base.max() * 255  # brighter than the actor's light half
    if role == "flicker":  # from far below or above the ground's lightness: a large difference between frames
        base = np.clip(rng.choice([25.0, 225.0]) + rng.uniform(-30, 30, 3), 0, 255)
    plain = kind == "disc" or rng.random() < 0.6  # only the actor is a disc of two halves
    second = base if plain else rng.uniform(20, 235, 3)
    return Shape(kind, _cooled(np.stack([base, second, base * 0.5])), path)


def _camera(rng: np.random.Generator, num_frames: int, amount: float) -> Array:
    """A slow pan plus a smooth shake, (T, 2) in units of S; up to an amount of 1 far below what an action travels."""
    u = np.linspace(-0.5, 0.5, num_frames)[:, None]
    pan = rng.uniform(-0.14, 0.14, 2) * u
    shake = _smooth_walk(rng, num_frames, 12) * rng.uniform(0.02, 0.04)
    jitter = rng.normal(0, 0.02, (num_frames, 2))
    moved = amount * (pan + shake + jitter)
    return moved if amount <= 1 else np.clip(moved, -CAMERA_REACH, CAMERA_REACH)


def _smooth_walk(rng: np.random.Generator, num_frames: int, knots: int) -> Array:
    """Random motion through `knots` points, (T, 2), of unit standard deviation per knot."""
    at = np.linspace(0, knots - 1, num_frames)
    points = rng.normal(0, 1, (knots, 2))
    return np.stack([np.interp(at, np.arange(knots), points[:, axis]) for axis in range(2)], 1)


def _background(rng: np.random.Generator, height: int, width: int, clutter: float) -> Array:
    """Noise of several scales and random rectangles, (height, width, 3) float32."""
    image = np.broadcast_to(rng.uniform(50, 200, 3), (height, width, 3)).astype(np.float32)
    if clutter == 0:
        return _cooled(image)
    for cells, lightness, color in ((4, 30.0, 22.0), (12, 32.0, 14.0), (30, 46.0, 14.0)):
        grid = rng.normal(0, lightness * clutter, (cells, cells, 1)) + rng.normal(
            0, color * clutter, (cells, cells, 3)
        )
        rows, columns = _linear(height, cells), _linear(width, cells)
        image = image + np.einsum("hi,ijc,wj->hwc", rows, grid.astype(np.float32), columns, optimize=True)
    for _ in range(int(round(clutter * rng.integers(5, 11)))):
        y0, x0 = int(rng.integers(0, height)), int(rng.integers(0, width))
        y1, x1 = y0 + int(rng.integers(6, height // 3)), x0 + int(rng.integers(6, width // 3))
        opacity = rng.uniform(0.3, 0.9)
        image[y0:y1, x0:x1] = (1 - opacity) * image[y0:y1, x0:x1] + opacity * rng.uniform(20, 230, 3)
    return _cooled(np.clip(image, 0, 255)).astype(np.float32)


def _cooled(colors: Array) -> Array:
    """Colours (..., 3) without the warm ones: red is brought down to the larger of green and blue.

    Warm hues belong to the actor, as skin and clothes tell people from walls. It is a matter of look alone, which says
    where the actor is and nothing of what it does.
    """
    red = np.minimum(colors[..., :1], colors[..., 1:].max(-1, keepdims=True))
    return np.concatenate([red, colors[..., 1:]], -1)


def _linear(size: int, cells: int) -> Array:
    """The matrix (size, cells) that stretches `cells` values over `size` pixels linearly."""
    at = np.linspace(0, cells - 1, size)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(cells))).astype(np.float32)
