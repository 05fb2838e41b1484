"""A transformed picture under its transformed caption is worth what the picture was worth."""

from itertools import permutations

import numpy as np
import pytest
import torch

from sandbox import flaws, world
from sandbox.build.symmetry import Symmetry
from sandbox.measure import measure


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("channels", list(permutations(range(3))))
def test_gold_does_not_change(mirror: bool, channels: tuple[int, ...]) -> None:
    symmetry, generator = Symmetry(mirror, channels), np.random.default_rng(sum(channels[:2]))
    scene = world.lay_out(world.sample_spec(generator, "train"), generator)
    image = flaws.random_flaw(scene, generator).image
    moved = symmetry.pixels(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    before = measure(image, world.caption(scene.spec))
    after = measure(moved, world.caption(symmetry.spec(scene.spec)))
    for name in ("plausibility", "alignment", "aesthetics"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=0.02)


def test_the_twelve_differ_and_are_all_drawn() -> None:
    generator = np.random.default_rng(0)
    assert len({Symmetry.draw(generator) for _ in range(300)}) == 12
