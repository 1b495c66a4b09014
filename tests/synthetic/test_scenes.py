"""What is drawn: the actor is where its circle says, the rest is there to mislead."""

from dataclasses import replace

import numpy as np
import pytest

from video_papr.synthetic import drawing, scenes
from video_papr.synthetic.scenes import ACTIONS


def scene(action, seed, clutter=1.0):
    return scenes.sample_scene(np.random.default_rng(seed), action, clutter=clutter)


def drawn(given):
    return drawing.render(given, np.random.default_rng(0))


def without_actor(given):
    actor = given.shapes[-1]
    path = replace(actor.path, visible=np.zeros_like(actor.path.visible))
    return replace(given, shapes=(*given.shapes[:-1], replace(actor, path=path)))


@pytest.mark.parametrize("clutter", [0.0, 0.4, 1.0])
def test_frames_are_what_a_video_writer_needs(clutter):
    sizes, lengths, rates = set(), set(), set()
    for seed, action in enumerate(ACTIONS):
        given = scene(action, seed, clutter)
        frames, circles = drawn(given)
        assert frames.dtype == np.uint8
        assert frames.shape == (len(circles), given.height, given.width, 3)
        assert circles.shape == (len(frames), 3)
        assert given.height % 2 == given.width % 2 == 0
        assert 16 <= len(frames) <= 48
        sizes.add((given.height, given.width))
        lengths.add(len(frames))
        rates.add(given.fps)
    assert min(len(sizes), len(lengths), len(rates)) >= 3


@pytest.mark.parametrize("action", ACTIONS)
def test_actor_circle_holds_the_actor(action):
    for seed in (1, 2):
        given = scene(action, seed)
        frames, circles = drawn(given)
        empty, _ = drawn(without_actor(given))
        rows, columns = np.mgrid[: given.height, : given.width] + 0.5
        visible = given.shapes[-1].path.visible > 0
        for t in range(0, len(frames), 5):
            x, y, radius = circles[t]
            distance = np.hypot(columns - x, rows - y)
            changed = (frames[t] != empty[t]).any(-1)
            assert not changed[distance > radius + 1].any()  # the edge is a pixel soft
            inside = changed[distance < radius - 1]
            assert not inside.any() if not visible[t] else inside.mean() > 0.8
            assert inside.size > 0
        if action == "blink":
            assert not visible.all() and visible.any()
            still = np.ptp(circles - given.camera[:, [0, 1, 1]] * [*[min(frames.shape[1:3])] * 2, 0], axis=0)
            assert (still < 0.05 * min(frames.shape[1:3])).all()  # the circle stays while the actor is away


def overflow(given):
    """How far the actor reaches out of the central square at each frame, in units of its side."""
    path = given.shapes[-1].path
    place = np.stack([path.x, path.y], 1) + given.camera
    return np.abs(place).max(1) + path.radius - 0.5


@pytest.mark.parametrize("action", ACTIONS)
def test_actor_stays_in_the_central_square(action):
    """Always under a still camera. The moving one takes its edge out in some frames, its middle hardly ever."""
    assert all(overflow(scene(action, seed, 0.0)).max() < 1e-6 for seed in range(60))
    full = [scene(action, seed) for seed in range(60)]
    edge = np.concatenate([overflow(given) for given in full])
    middle = np.concatenate([overflow(given) - given.shapes[-1].path.radius for given in full])
    assert (edge > 0).mean() < 0.25
    assert (middle > 0).mean() < 0.005


def test_same_randomness_same_scene_and_other_randomness_another_one():
    one, same, other = (drawn(scene("zigzag", seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert one[0].shape != other[0].shape or not np.array_equal(one[0], other[0])


# What the default draws: mean of the frames, sum of the camera's absolute
# displacements, and the generator's next number. (Not a digest of the frames: processors differ in the last bit of a
# sine.)
DRAWN = {
    (0, "move_left"): (100.2106, 1.210405748, 2627215999),
    (5, "zigzag"): (103.6236, 1.258568636, 2437242602),
    (11, "blink"): (138.6660, 1.558240551, 1105901084),
    (42, "rotate_cw"): (123.7800, 0.899696675, 1453400586),
}


@pytest.mark.parametrize(("index", "action"), DRAWN)
def test_default_camera_draws_what_it_always_has(index, action):
    rng = np.random.default_rng([3, 0, index])
    given = scenes.sample_scene(rng, action)
    frames, _ = drawing.render(given, rng)
    mean, moved, following = DRAWN[index, action]
    assert frames.mean() == pytest.approx(mean, abs=1e-3)
    assert np.abs(given.camera).sum() == pytest.approx(moved, abs=1e-8)
    assert rng.integers(2**32) == following


def test_cameras_show_the_same_scene():
    for seed, action in enumerate(ACTIONS):
        cameras = {
            name: scenes.sample_scene(np.random.default_rng(seed), action, camera=name)
            for name in scenes.CAMERAS
        }
        mixed, calm, shaky = (cameras[name] for name in ("mixed", "calm", "shaky"))
        np.testing.assert_allclose(calm.camera, 0.1 * mixed.camera)
        reach = scenes.CAMERA_REACH
        np.testing.assert_allclose(shaky.camera, np.clip(2 * mixed.camera, -reach, reach))
        for other in (calm, shaky):
            assert np.array_equal(other.background, mixed.background)
            for one, two in zip(other.shapes, mixed.shapes, strict=True):
                assert np.array_equal(one.path.x, two.path.x) and np.array_equal(one.colors, two.colors)
        ground = shaky.background.shape[0] - shaky.height
        assert reach * min(shaky.height, shaky.width) <= ground / 2 - 1  # it never looks beyond what is drawn


def test_clutter_closes_the_shortcuts():
    """Under full clutter frames differ all over the picture, and the brightest place is seldom the actor."""
    change, brightest = [], []
    for seed in range(12):
        given = scene(ACTIONS[seed], seed)
        frames, circles = drawn(given)
        rows, columns = np.mgrid[: given.height, : given.width] + 0.5
        grey = frames.astype(float).mean(-1)
        for t in range(1, len(frames), 6):
            difference = np.abs(grey[t] - grey[t - 1])
            actor = np.hypot(columns - circles[t, 0], rows - circles[t, 1]) < circles[t, 2]
            change.append(np.median(difference[~actor]))
            bright = grey[t] >= np.quantile(grey[t], 0.95)
            brightest.append((bright & actor).sum() / bright.sum())
    assert np.mean(change) > 2
    assert np.mean(brightest) < 0.25
    quiet = scene("move_left", 0, 0.0)
    frames, circles = drawn(quiet)
    assert len(quiet.shapes) == 1
    assert not quiet.camera.any()
    corner = frames[:, :3, :3]
    assert (corner == corner[0, 0, 0]).all()


def test_only_the_actor_is_warm():
    for seed in range(6):
        given = scene("rotate_cw", seed)
        red, green, blue = np.moveaxis(given.background, -1, 0)
        assert (red <= np.maximum(green, blue)).all()
        *others, actor = given.shapes
        assert all((shape.colors[:, 0] <= shape.colors[:, 1:].max(1)).all() for shape in others)
        assert (actor.colors[:, 0] > actor.colors[:, 1:].max(1)).all()


@pytest.mark.parametrize("when", [0.0, 0.5, 1.0])
def test_one_frame_does_not_give_the_action_away(when):
    """Even the exact pose of the actor at a known time tells little: the 15 nearest of 3,000 poses vote."""

    def pose(seed, action):
        path = scene(action, seed, 0.0).shapes[-1].path
        t = int(when * (len(path.x) - 1))
        angle, far = path.angle[t], 9.0  # what cannot be seen is far from what can
        return [
            path.x[t],
            path.y[t],
            4 * path.radius[t],
            0.3 * np.cos(angle),
            0.3 * np.sin(angle),
            far * path.visible[t],
        ]

    rounds, labels = 300, np.tile(np.arange(12), 300)
    poses = np.array([pose(12 * i + k, action) for i in range(rounds) for k, action in enumerate(ACTIONS)])
    known, asked = slice(0, 3000), slice(3000, None)
    distance = np.square(poses[asked, None] - poses[None, known]).sum(-1)
    votes = [
        np.bincount(labels[known][row], minlength=12).argmax() for row in np.argsort(distance, 1)[:, :15]
    ]
    assert (np.array(votes) == labels[asked]).mean() < 0.45  # chance is 1/12


def test_roles_of_the_distractors():
    for seed in range(20):
        given = scene("blink", seed)
        *others, actor = given.shapes
        assert actor.kind == "actor"
        assert all(shape.kind in scenes.DISTRACTOR_SHAPES for shape in others)
        assert 8 <= len(others) <= 13
        flickering = [shape for shape in others if not shape.path.visible.all()]
        drifting = [shape for shape in others if np.ptp(shape.path.x) > 0]
        assert drifting and flickering
        assert not set(map(id, drifting)) & set(map(id, flickering))
        still = [shape for shape in others if np.ptp(shape.path.x) == 0 and shape.path.visible.all()]
        assert any(shape.colors[0].max() == pytest.approx(255) for shape in still)


@pytest.mark.parametrize("kind", scenes.DISTRACTOR_SHAPES)
def test_every_distractor_can_be_drawn_also_half_outside(kind):
    given = scene("blink", 0, 0.0)
    path = replace(
        given.shapes[0].path,
        x=np.full_like(given.shapes[0].path.x, 0.49),
        visible=np.ones_like(given.shapes[0].path.x),
    )
    shape = drawing.Shape(kind, np.tile([[250.0], [250.0], [250.0]], 3), path)
    image, _ = drawn(replace(given, shapes=(shape, *without_actor(given).shapes)))
    plain, _ = drawn(without_actor(given))
    changed = (image[0] != plain[0]).any(-1)
    assert changed.any()
    size = min(given.height, given.width)
    assert changed.sum() < (2 * path.radius[0] * size + 3) ** 2


def test_unknown_action():
    with pytest.raises(ValueError, match="unknown action 'jump'; known: move_left, "):
        scene("jump", 0)
