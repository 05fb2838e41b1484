"""Simulated people point at flaws, click wrong words and score, nearly as people of the paper agree with each other."""

from pathlib import Path

import numpy as np
import torch

from sandbox import flaws, world
from sandbox.build.rich import annotate
from sandbox.measure import Gold, measure
from sandbox.rich_feedback import MAX_POINTS, RADIUS_PX, RATERS, SCORES, Rater, remarks

EXACT = (Rater(bias=0.0, noise=0.0, threshold=0.5, care=1.0, slips=0.0),)


def _golds(count: int) -> list[Gold]:
    generator, found = np.random.default_rng(0), []
    for _ in range(count):
        scene = world.lay_out(world.sample_spec(generator, "train"), generator)
        flawed = flaws.random_flaw(scene, generator)
        found.append(measure(flawed.image, world.caption(scene.spec)))
    return found


def test_someone_without_errors_says_what_is_true() -> None:
    for gold in _golds(20):
        (said,) = remarks(gold, (0,), EXACT)
        assert said.words == gold.misaligned
        truth = [1 + 4 * getattr(gold, name) for name in SCORES]
        assert np.abs(np.array(said.scores) - truth).max() <= 0.5 + 1e-9


def test_points_cover_what_is_hot_and_stay_near_it() -> None:
    y, x = np.mgrid[0 : world.SIZE_PX, 0 : world.SIZE_PX] + 0.5
    for gold in _golds(20):
        (said,) = remarks(gold, (1,), EXACT)
        hot = gold.implausibility_map > 0.5
        assert (len(said.implausible) == 0) == (not hot.any())
        distance = [(x - px) ** 2 + (y - py) ** 2 for px, py in said.implausible]
        if 0 < len(distance) < MAX_POINTS:
            assert (np.min(distance, axis=0)[hot] <= (RADIUS_PX + 1e-9) ** 2).all()
        assert all(np.sqrt(one[hot].min()) < 4 for one in distance)


def test_people_agree_about_as_often_as_those_of_the_paper() -> None:
    scores = np.array([[said.scores for said in remarks(gold, (2, i))] for i, gold in enumerate(_golds(400))])
    spread = scores.max(1) - scores.min(1)
    assert scores.shape == (400, len(RATERS), len(SCORES))
    assert 0.15 < (spread == 0).mean() < 0.45
    assert 0.75 < (spread <= 1).mean() < 0.97


def test_feedback_is_kept_and_repeats(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    scenes = [world.lay_out(world.sample_spec(generator, "train"), generator) for _ in range(3)]
    drawn = np.stack([flaws.random_flaw(scene, generator).image for scene in scenes])
    pixels = torch.from_numpy((drawn * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    texts = [world.caption(scene.spec) for scene in scenes]
    first = annotate(tmp_path / "a.safetensors", pixels, texts, seed=1)
    again = annotate(tmp_path / "b.safetensors", pixels, texts, seed=1)
    kept = annotate(tmp_path / "a.safetensors", pixels, texts, seed=2)
    for other in (again, kept):
        assert torch.equal(first.marks, other.marks)
        assert torch.equal(first.scores, other.scores)
        assert torch.equal(first.misaligned, other.misaligned)
    assert first.heatmaps.max() <= 1
    assert first.scores.min() >= 0
    assert first.scores.max() <= 1
