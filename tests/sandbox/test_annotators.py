"""Simulated people prefer better pictures, not always, and not all alike."""

import numpy as np

from sandbox import flaws, world
from sandbox.annotators import ANNOTATORS, Annotator, choices, choose, scores_of
from sandbox.measure import measure


def group(seed: int) -> np.ndarray:
    """The scores of one clean picture, first, and three flawed ones."""
    generator = np.random.default_rng(seed)
    spec = world.sample_spec(generator, "train")
    drawn = [world.lay_out(spec, generator) for _ in range(4)]
    images = [world.render(drawn[0]), *(flaws.random_flaw(scene, generator).image for scene in drawn[1:])]
    return scores_of([measure(image, world.caption(spec)) for image in images])


def test_without_noise_the_highest_utility_is_chosen() -> None:
    exact = Annotator(alignment=1.0, plausibility=1.0, aesthetics=1.0, noise=0.0)
    scores = group(1)
    assert choose(scores, exact, np.random.default_rng(0)) == scores.mean(1).argmax()


def test_people_mostly_choose_the_clean_picture_and_sometimes_disagree() -> None:
    answers = choices(np.stack([group(seed) for seed in range(30)]), seed=0)
    assert answers.shape == (30, len(ANNOTATORS))
    assert 0.4 < (answers == 0).mean() < 1
    assert 0.3 < (answers == answers[:, :1]).all(1).mean() < 1


def test_the_same_seed_gives_the_same_choices() -> None:
    groups = np.stack([group(seed) for seed in range(3)])
    np.testing.assert_array_equal(choices(groups, seed=5), choices(groups, seed=5))
