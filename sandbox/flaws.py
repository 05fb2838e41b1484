"""Flaws of a picture with a known mask, mirroring what people mark in real generations (RichHF-18K, arXiv 2312.10240).

Each flaw lowers one score: plausibility, alignment or aesthetics. The caption stays that of the scene without the flaw.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sandbox.world import (
    BACKGROUNDS,
    CIRCLE_RADIUS,
    COLOURS,
    RADII_PX,
    SHAPES,
    SIZE_PX,
    Image,
    Kind,
    Scene,
    Spec,
    Thing,
    blank,
    coverage,
    lay_out,
    paint,
    render,
)

Mask = NDArray[np.bool_]
"""Where the flaw is, (64, 64)."""

Inject = Callable[[Scene, np.random.Generator], tuple[Image, Mask]]

CHANGED = 0.1
"""A pixel belongs to the mask of an implausible part if a channel moved by more than this."""


@dataclass(frozen=True)
class Flawed:
    """A picture with one flaw, the place of the flaw and the score that it should lower."""

    image: Image
    mask: Mask
    flaw: str
    score: str


def inject(flaw: str, scene: Scene, generator: np.random.Generator) -> Flawed:
    """Draw a scene with a flaw."""
    score, function = FLAWS[flaw]
    image, mask = function(scene, generator)
    return Flawed(image, mask, flaw, score)


def random_flaw(scene: Scene, generator: np.random.Generator) -> Flawed:
    """Draw a scene with a random flaw that applies to it."""
    return inject(str(generator.choice([flaw for flaw in FLAWS if applies(flaw, scene)])), scene, generator)


def applies(flaw: str, scene: Scene) -> bool:
    """Whether a scene can have a flaw: relations and missing objects need two objects."""
    if flaw == "wrong relation":
        return scene.spec.relation is not None
    return flaw != "missing object" or len(scene.things) > 1


# --- implausible parts ----------------------------------------------------------------------------------------------

_Y, _X = np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5


def _pick(scene: Scene, generator: np.random.Generator) -> Thing:
    return scene.things[generator.integers(len(scene.things))]


def _redraw(scene: Scene, thing: Thing, cover: NDArray[np.float64]) -> tuple[Image, Mask]:
    """The scene with one object drawn through another outline."""
    image = blank(scene.spec.background)
    for other in scene.things:
        own = cover if other is thing else coverage(other.kind.shape, other.x, other.y, other.radius)
        image = paint(image, own, COLOURS[other.kind.colour])
    return image, _changed(render(scene), image)


def _changed(before: Image, after: Image) -> Mask:
    return np.abs(after - before).max(-1) > CHANGED


def _deformed(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """Warp the outline: waves that push parts of it outwards and others inwards."""
    thing = _pick(scene, generator)
    phase, waves = generator.uniform(0, 2 * np.pi), generator.integers(2, 5)
    angle = np.arctan2(_Y - thing.y, _X - thing.x)
    stretch = 1 + generator.uniform(0.28, 0.4) * np.sin(waves * angle + phase)
    dx, dy = (_X - thing.x) / stretch, (_Y - thing.y) / stretch
    straight = coverage(thing.kind.shape, thing.x, thing.y, thing.radius)
    cover = ndimage.map_coordinates(straight, [dy + thing.y - 0.5, dx + thing.x - 0.5], order=1)
    return _redraw(scene, thing, cover)


def _missing_part(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """Bite a piece out of an object, about a third of it."""
    thing = _pick(scene, generator)
    angle = generator.uniform(0, 2 * np.pi)
    reach = generator.uniform(0.45, 0.65) * thing.radius
    bite_x, bite_y = thing.x + reach * np.cos(angle), thing.y + reach * np.sin(angle)
    bite = coverage("circle", bite_x, bite_y, 0.6 * thing.radius / CIRCLE_RADIUS)
    return _redraw(scene, thing, coverage(thing.kind.shape, thing.x, thing.y, thing.radius) * (1 - bite))


def _free_place(scene: Scene, generator: np.random.Generator, radius: float) -> tuple[float, float]:
    """A centre as far from the objects as twenty random tries find."""

    def room(place: NDArray[np.float64]) -> float:
        return min(float(np.hypot(*(place - (thing.x, thing.y)))) - thing.radius for thing in scene.things)

    places = generator.uniform(radius, SIZE_PX - radius, size=(20, 2))
    x, y = max(places, key=room)
    return float(x), float(y)


def _add(scene: Scene, cover: NDArray[np.float64], colour: str) -> tuple[Image, Mask]:
    before = render(scene)
    after = paint(before, cover, COLOURS[colour])
    return after, _changed(before, after)


def _blob(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """An irregular stain of another colour."""
    radius = generator.uniform(4, 6)
    x, y = _free_place(scene, generator, radius)
    lobes = [(x + dx, y + dy) for dx, dy in generator.uniform(-radius, radius, size=(3, 2))]
    cover = np.max([coverage("circle", *lobe, generator.uniform(0.4, 0.8) * radius) for lobe in lobes], axis=0)
    return _add(scene, cover, str(generator.choice(list(COLOURS))))


def _fragment(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """A splinter of an object that floats elsewhere."""
    thing = _pick(scene, generator)
    x, y = _free_place(scene, generator, 4.0)
    cover = coverage("triangle", x, y, 4.5) * coverage("circle", x + 1.5, y, 4.0)
    return _add(scene, cover, thing.kind.colour)


def _blur(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """One object out of focus."""
    thing = _pick(scene, generator)
    cover = coverage(thing.kind.shape, thing.x, thing.y, thing.radius)
    return _redraw(scene, thing, ndimage.gaussian_filter(cover, generator.uniform(2.5, 3.5)))


# --- misaligned parts -----------------------------------------------------------------------------------------------


def _covers(things: tuple[Thing, ...] | list[Thing]) -> Mask:
    covers = [coverage(thing.kind.shape, thing.x, thing.y, thing.radius) > 0.5 for thing in things]
    return np.any(covers, axis=0) if covers else np.zeros((SIZE_PX, SIZE_PX), dtype=bool)


def _other(words: list[str], word: str, generator: np.random.Generator) -> str:
    return str(generator.choice([other for other in words if other != word]))


def _wrong_kind(change: Callable[[Kind, np.random.Generator], Kind]) -> Inject:
    """One object of another kind than the caption says."""

    def function(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
        index = int(generator.integers(len(scene.things)))
        kinds = list(scene.spec.kinds)
        kinds[index] = change(kinds[index], generator)
        drawn = lay_out(replace(scene.spec, kinds=tuple(kinds)), generator)
        return render(drawn), _covers([drawn.things[index]])

    return function


def _wrong_colour(kind: Kind, generator: np.random.Generator) -> Kind:
    return replace(kind, colour=_other(list(COLOURS), kind.colour, generator))


def _wrong_shape(kind: Kind, generator: np.random.Generator) -> Kind:
    return replace(kind, shape=_other(list(SHAPES), kind.shape, generator))


def _wrong_size(kind: Kind, generator: np.random.Generator) -> Kind:
    return replace(kind, size=_other(list(RADII_PX), kind.size, generator))


def _wrong_count(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """One object too many or, where there are three, one too few (a flaw that has no place)."""
    kinds = scene.spec.kinds
    if len(kinds) == 3:
        return render(lay_out(Spec(kinds[:2], scene.spec.background), generator)), _covers([])
    drawn = lay_out(Spec((*kinds, kinds[-1]), scene.spec.background), generator)
    return render(drawn), _covers(drawn.things if scene.spec.relation is None else drawn.things[1:])


def _wrong_relation(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """The picture mirrored at its diagonal: beside becomes above."""
    del generator
    things = tuple(replace(thing, x=thing.y, y=thing.x) for thing in scene.things)
    return render(replace(scene, things=things)), _covers(things)


def _wrong_background(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    background = _other(list(BACKGROUNDS), scene.spec.background, generator)
    return render(replace(scene, spec=replace(scene.spec, background=background))), ~_covers(scene.things)


def _missing_object(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """One object less (a flaw that has no place)."""
    gone = int(generator.integers(len(scene.things)))
    kept = tuple(thing for index, thing in enumerate(scene.things) if index != gone)
    return render(replace(scene, things=kept)), _covers([])


# --- dull pictures --------------------------------------------------------------------------------------------------

_WHOLE = np.ones((SIZE_PX, SIZE_PX), dtype=bool)


def _dull(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """Objects that fade into the background."""
    background = blank(scene.spec.background)
    return background + generator.uniform(0.4, 0.6) * (render(scene) - background), _WHOLE


def _shift(scene: Scene, dx: float, dy: float) -> Scene:
    return replace(scene, things=tuple(replace(thing, x=thing.x + dx, y=thing.y + dy) for thing in scene.things))


def _to_border(scene: Scene, corner: NDArray[np.int_], margin: float) -> tuple[float, float]:
    """The shift that brings the objects to `margin` pixels from two borders."""
    places = np.array([(thing.x, thing.y) for thing in scene.things])
    radii = np.array([thing.radius for thing in scene.things])[:, None]
    low, high = (places - radii).min(0) - margin, SIZE_PX - margin - (places + radii).max(0)
    dx, dy = np.where(corner == 0, -low, high)
    return float(dx), float(dy)


def _off_centre(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """Everything in a corner."""
    return render(_shift(scene, *_to_border(scene, generator.integers(2, size=2), 1.0))), _WHOLE


def _cramped(scene: Scene, generator: np.random.Generator) -> tuple[Image, Mask]:
    """Objects that run out of the picture."""
    return render(_shift(scene, *_to_border(scene, generator.integers(2, size=2), -3.5))), _WHOLE


FLAWS: dict[str, tuple[str, Inject]] = {
    "deformed outline": ("plausibility", _deformed),
    "missing part": ("plausibility", _missing_part),
    "foreign blob": ("plausibility", _blob),
    "floating fragment": ("plausibility", _fragment),
    "blur": ("plausibility", _blur),
    "wrong colour": ("alignment", _wrong_kind(_wrong_colour)),
    "wrong shape": ("alignment", _wrong_kind(_wrong_shape)),
    "wrong size": ("alignment", _wrong_kind(_wrong_size)),
    "wrong count": ("alignment", _wrong_count),
    "wrong relation": ("alignment", _wrong_relation),
    "wrong background": ("alignment", _wrong_background),
    "missing object": ("alignment", _missing_object),
    "dull contrast": ("aesthetics", _dull),
    "off-centre": ("aesthetics", _off_centre),
    "cramped": ("aesthetics", _cramped),
}
