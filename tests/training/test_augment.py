"""Augmentation: what is done to the picture turns the action into the one that the label table names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from video_papr.synthetic import drawing, scenes
from video_papr.synthetic.scenes import ACTIONS
from video_papr.synthetic.tracks import in_view
from video_papr.training.augment import (
    MIRRORED,
    MirrorActions,
    enlarge,
    jitter_colors,
    label_table,
    mirror,
    mirrored_tracks,
    natural,
    relight,
    unchanged,
)
from video_papr.training.store import Batch


def name_of(path):
    """Reads the action off the path of an actor, with no knowledge of how the path was drawn."""
    dx, dy = path.x[-1] - path.x[0], path.y[-1] - path.y[0]
    vx, vy = np.diff(path.x), np.diff(path.y)
    if not path.visible.all():
        return "blink"
    if path.radius.max() > 1.5 * path.radius.min():
        return "zoom_in" if path.radius[-1] > path.radius[0] else "zoom_out"
    turned = path.angle[-1] - path.angle[0]
    if abs(turned) > 1:
        return "rotate_cw" if turned > 0 else "rotate_ccw"  # y points down: growing angles turn clockwise
    bends = np.diff(np.unwrap(np.arctan2(vy, vx)))
    if abs(bends.sum()) > 1.5 and (bends * np.sign(bends.sum()) > -1e-6).all():  # a zigzag bends both ways
        return "circle_cw" if bends.sum() > 0 else "circle_ccw"
    if np.hypot(dx, dy) > 0.97 * np.hypot(vx, vy).sum():  # straight
        if abs(dx) > abs(dy):
            return "move_right" if dx > 0 else "move_left"
        return "move_down" if dy > 0 else "move_up"
    return "zigzag"


def quiet_square_scene(action, seed):
    """Only the actor on grey, 96 x 96, so that the mirror is exact."""
    scene = scenes.sample_scene(np.random.default_rng(seed), action, clutter=0)
    return replace(scene, height=96, width=96, background=np.full((152, 152, 3), 90, np.float32))


def drawn(scene):
    """(1, T, S, S, 3) uint8"""
    return torch.from_numpy(drawing.render(scene, np.random.default_rng(0))[0])[None]


def track_of(scene):
    """(T, 5) in the view, which is the whole square frame."""
    path, size = scene.shapes[-1].path, scene.width
    circles = drawing.render(scene, np.random.default_rng(0))[1]
    return in_view(np.column_stack([circles, path.angle, path.visible]), (size, size))


def with_path(scene, **changes):
    actor = scene.shapes[-1]
    return replace(scene, shapes=(replace(actor, path=replace(actor.path, **changes)),))


@pytest.mark.parametrize("action", ACTIONS)
def test_scenes_show_the_action_that_they_are_named_after(action):
    for seed in range(40):
        path = quiet_square_scene(action, seed).shapes[-1].path
        assert name_of(path) == action, seed


@pytest.mark.parametrize("action", ACTIONS)
def test_the_mirror_turns_actions_into_those_that_the_table_names(action):
    scene = quiet_square_scene(action, seed=7)
    path = scene.shapes[-1].path
    # The actor is symmetric about the axis that its angle points along: the mirror reflects that axis.
    other = with_path(scene, x=-path.x, angle=np.pi - path.angle)
    expected = ACTIONS[label_table(ACTIONS, MIRRORED)[ACTIONS.index(action)]]
    assert name_of(other.shapes[-1].path) == expected
    # and the changed picture is the picture of that changed path, to a grey level and a few pixels on its edge
    difference = (drawn(scene).flip(3).int() - drawn(other).int()).abs()
    assert (difference > 1).float().mean() < 1e-3
    # the track of an augmented clip is the track of that changed path
    found = mirrored_tracks(track_of(scene)[None])[0]
    turns = (found - track_of(other))[:, 3] / (2 * np.pi)  # an angle and the same after whole turns are one
    torch.testing.assert_close(found[:, [0, 1, 2, 4]], track_of(other)[:, [0, 1, 2, 4]], rtol=0, atol=1e-5)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-5)


def test_label_tables_are_their_own_inverse():
    names = tuple(sorted(ACTIONS))
    table = label_table(names, MIRRORED)
    assert torch.equal(table[table], torch.arange(12))
    partner = {names[i]: names[table[i]] for i in range(12)}
    moved = {name for name in names if partner[name] != name}
    assert moved == set(MIRRORED) | set(MIRRORED.values())
    assert all(partner[one] == other for one, other in MIRRORED.items())
    few = ("blink", "move_left", "zoom_in")  # partners that a dataset does not have change nothing
    assert label_table(few, MIRRORED).tolist() == [0, 1, 2]


def test_each_clip_is_mirrored_or_not_with_its_label_and_its_actor():
    names = tuple(sorted(ACTIONS))
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (96, 3, 4, 4, 3), dtype=torch.uint8, generator=generator)
    labels, tracks = torch.arange(96) % 12, torch.rand(96, 3, 5, generator=generator)
    changed, renamed, moved, _ = MirrorActions(names)(
        Batch(frames, labels, tracks), torch.Generator().manual_seed(1)
    )
    assert moved is not None
    table, turned = label_table(names, MIRRORED), []
    for i in range(96):
        turned.append(torch.equal(frames[i].flip(2), changed[i]))
        assert turned[i] or torch.equal(frames[i], changed[i])
        assert renamed[i] == (table[labels[i]] if turned[i] else labels[i])
        assert torch.equal(moved[i], mirrored_tracks(tracks[i]) if turned[i] else tracks[i])
    assert 24 < sum(turned) < 72


def test_mirror_leaves_labels_and_unchanged_leaves_everything():
    frames, labels = torch.randint(0, 256, (64, 2, 3, 3, 3), dtype=torch.uint8), torch.arange(64)
    batch = Batch(frames, labels)
    flipped, same, nobody, _ = mirror(batch, torch.Generator().manual_seed(0))
    assert torch.equal(same, labels)
    assert nobody is None
    turned = [torch.equal(flipped[i], frames[i].flip(2)) for i in range(64)]
    assert all(turned[i] or torch.equal(flipped[i], frames[i]) for i in range(64))
    assert 16 < sum(turned) < 48
    assert unchanged(batch, torch.Generator()) is batch


def test_colours_are_permuted_and_sometimes_inverted_and_nothing_else():
    frames = torch.randint(0, 256, (80, 2, 3, 3, 3), dtype=torch.uint8)
    changed = jitter_colors(frames, torch.Generator().manual_seed(0))
    orders, inverted = set(), 0
    for before, after in zip(frames, changed, strict=True):
        order = [
            [c for c in range(3) if torch.equal(source[..., c], after[..., k])]
            for source in (before, 255 - before)
            for k in range(3)
        ]
        straight = all(order[:3])
        assert straight or all(order[3:])
        inverted += not straight
        orders.add(tuple(found[0] for found in (order[:3] if straight else order[3:])))
    assert len(orders) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert 8 < inverted < 36
    assert torch.equal(jitter_colors(frames, torch.Generator().manual_seed(0)), changed)


def still_clips(seed, clips=3):
    """Clips whose frames are all alike."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(0, 256, (clips, 1, 12, 16, 3), generator=generator, dtype=torch.uint8)
    return Batch(picture.expand(-1, 4, -1, -1, -1), torch.arange(clips))


@pytest.mark.parametrize("seed", range(5))
def test_natural_changes_all_frames_of_a_clip_alike(seed):
    batch = still_clips(seed)
    moved = natural(batch, torch.Generator().manual_seed(seed))
    assert moved.frames.shape == batch.frames.shape and moved.frames.dtype == torch.uint8
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.frames, moved.frames[:, :1].expand_as(moved.frames))
    assert torch.equal(moved.frames, natural(batch, torch.Generator().manual_seed(seed)).frames)
    assert not torch.equal(moved.frames, natural(batch, torch.Generator().manual_seed(seed + 1)).frames)
    with pytest.raises(ValueError, match="leaves tracks behind"):
        natural(batch._replace(tracks=torch.zeros(3, 4, 5)), torch.Generator())


def test_enlarge_shows_the_part_that_is_asked_for():
    """On a ramp, the left and right (top and bottom) edge of what is drawn are those of the part."""
    across = torch.linspace(0, 250, 64)
    ramp = torch.stack([across.expand(64, 64), across[:, None].expand(64, 64), torch.zeros(64, 64)], -1)
    frames = ramp.byte().expand(2, 3, -1, -1, -1)
    whole = enlarge(frames, torch.zeros(2, 2), torch.ones(2, 2))
    assert torch.equal(whole, frames)
    corners, sides = torch.tensor([[0.25, 0.0], [0.1, 0.3]]), torch.tensor([[0.5, 1.0], [0.6, 0.7]])
    drawn = enlarge(frames, corners, sides).float()
    for clip in range(2):
        for axis, line in enumerate((drawn[clip, 0, 32, :, 0], drawn[clip, 0, :, 32, 1])):
            low, side = float(corners[clip, axis]), float(sides[clip, axis])
            assert line[0] == pytest.approx(250 * low, abs=5)
            assert line[-1] == pytest.approx(250 * (low + side), abs=5)


def test_relight_keeps_middle_grey_and_stays_in_range():
    frames = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 1, 1, 1, 3)
    brighter = relight(frames, torch.tensor([1.3]), torch.tensor([0.0]))
    assert brighter.flatten().tolist() == [0, 128, 255]
    darker = relight(frames, torch.tensor([0.5]), torch.tensor([-40.0]))
    assert darker.flatten().tolist() == [24, 88, 152]
