"""Captions both ways, layouts that keep their promises, and a renderer beside a brute-force one."""

import itertools

import numpy as np
import pytest

from sandbox import world

RNG_SEEDS = range(20)


def test_caption_and_parse_are_inverse_for_every_scene() -> None:
    specs = list(world.all_specs())
    captions = [world.caption(spec) for spec in specs]
    assert len(set(captions)) == len(specs) > 10_000
    assert all(world.parse(text) == spec for text, spec in zip(captions, specs, strict=True))


def test_a_caption_outside_the_grammar_shows_the_grammar() -> None:
    with pytest.raises(ValueError, match=r"(?s)'a purple cow' is outside.*OBJECT +:= SIZE COLOUR SHAPE.*magenta"):
        world.parse("a purple cow")


def test_splits_are_disjoint_and_fixed() -> None:
    splits = {name: world.captions(name) for name in ("train", "dev", "test")}
    assert sum(map(len, splits.values())) == len(list(world.all_specs()))
    assert len(splits["test"]) > 2000 and len(splits["dev"]) > 2000
    # the shipped weights were trained on this split: it must never move
    assert world.split_of("a large red star on a white background") == "train"
    assert splits["test"][0] == "three small yellow triangles on a white background"


@pytest.mark.parametrize("seed", RNG_SEEDS)
def test_layouts_keep_apart_and_in_relation(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scene = world.lay_out(world.sample_spec(generator, "train"), generator)
    for a, b in itertools.combinations(scene.things, 2):
        assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + world.GAP_PX
    for thing in scene.things:
        assert min(thing.x, thing.y, 64 - thing.x, 64 - thing.y) >= thing.radius + world.GAP_PX
    if scene.spec.relation is not None:
        first, second = ((thing.x, thing.y) for thing in scene.things)
        assert world.holds(scene.spec.relation, first, second)


def test_the_same_seed_draws_the_same_scene() -> None:
    np.testing.assert_array_equal(_random_image(7), _random_image(7))


def _random_image(seed: int) -> world.Image:
    generator = np.random.default_rng(seed)
    return world.render(world.lay_out(world.sample_spec(generator, "train"), generator))


@pytest.mark.parametrize("shape", world.SHAPES)
def test_coverage_is_the_share_of_each_pixel_inside_the_outline(shape: str) -> None:
    x, y, radius, fine = 30.3, 33.8, 12.0, 32
    cover = world.coverage(shape, x, y, radius)
    grid = (np.arange(64 * fine) + 0.5) / fine
    points_x, points_y = np.meshgrid(grid, grid)
    inside = _inside(shape, points_x - x, points_y - y, radius)
    exact = inside.reshape(64, fine, 64, fine).mean((1, 3))
    assert np.abs(cover - exact).mean() < 2e-3
    assert cover.sum() == pytest.approx(exact.sum(), rel=0.01)
    if shape != "circle":
        assert world.OUTLINES[shape].unit_area * radius**2 == pytest.approx(exact.sum(), rel=0.01)


def _corners(count: int, inner: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners (x, y) around the unit circle, clockwise from `turn`; every second one at radius `inner`."""
    angles = [turn + 2 * np.pi * index / count for index in range(count)]
    radii = [inner if index % 2 else 1.0 for index in range(count)]
    return [(r * np.sin(a), -r * np.cos(a)) for r, a in zip(radii, angles, strict=True)]


CORNERS = {"square": _corners(4, turn=np.pi / 4), "triangle": _corners(3), "star": _corners(10, inner=0.5)}


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Brute force: inside a polygon if inside one of the triangles from its centre to its edges."""
    if shape == "circle":
        return np.hypot(dx, dy) < world.CIRCLE_RADIUS * radius
    corners = radius * np.array(CORNERS[shape])
    inside = np.zeros(dx.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        det = ax * by - ay * bx
        u, v = (dx * by - dy * bx) / det, (ax * dy - ay * dx) / det
        inside |= (u >= 0) & (v >= 0) & (u + v <= 1)
    return inside


def test_relations_name_the_main_direction() -> None:
    for relation, second in {
        "left of": (9.0, 2.0),
        "right of": (-9.0, 2.0),
        "above": (2.0, 9.0),
        "below": (2.0, -9.0),
    }.items():
        held = [name for name in world.RELATIONS if world.holds(name, (0.0, 0.0), second)]
        assert held == [relation]
