"""The world: scenes of one to three simple objects, their captions both ways, and an antialiased renderer.

A caption is one of three sentences, and `parse` is the inverse of `caption`:
    a large red star on a white background
    three small blue circles on a grey background
    a small red circle left of a large green square on a black background
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]
"""RGB image of shape (64, 64, 3), values in [0, 1]."""

Numbers = Sequence[float] | NDArray[np.float64]
"""Coordinates (x, y) in pixels, y downwards, or an RGB colour."""

SIZE_PX = 64
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.16),
    "yellow": (0.86, 0.86, 0.16),
    "green": (0.16, 0.86, 0.16),
    "cyan": (0.16, 0.86, 0.86),
    "blue": (0.16, 0.16, 0.86),
    "magenta": (0.86, 0.16, 0.86),
}
BACKGROUNDS: dict[str, float] = {"white": 0.96, "grey": 0.5, "black": 0.04}
RADII_PX: dict[str, float] = {"small": 8.5, "large": 13.0}
"""Circumradius of an outline; circles are drawn a little smaller, so that no shape looks larger than another."""
SHAPES = ("circle", "square", "triangle", "star")
COUNTS: dict[str, int] = {"two": 2, "three": 3}
RELATIONS = ("left of", "right of", "above", "below")
CIRCLE_RADIUS = 0.85
GAP_PX = 2.0
"""Least distance between the circumcircles of two objects, and between one and the border."""

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Kind:
    """What a caption says of an object: its size, colour and shape."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Spec:
    """What a caption says of a scene: one kind, a counted kind, or two kinds and their relation."""

    kinds: tuple[Kind, ...]
    background: str
    relation: str | None = None

    @property
    def counted(self) -> bool:
        """Whether the caption counts equal objects ("three green stars")."""
        return self.relation is None and len(self.kinds) > 1


@dataclass(frozen=True)
class Thing:
    """An object in a picture: its kind and the centre and radius of its outline, in pixels."""

    kind: Kind
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    spec: Spec
    things: tuple[Thing, ...]


# --- captions -------------------------------------------------------------------------------------------------------


def caption(spec: Spec) -> str:
    """The sentence that describes a scene."""
    first = spec.kinds[0]
    ending = f"on a {spec.background} background"
    if spec.counted:
        number = next(word for word, count in COUNTS.items() if count == len(spec.kinds))
        return f"{number} {first.size} {first.colour} {first.shape}s {ending}"
    phrases = [f"a {kind.size} {kind.colour} {kind.shape}" for kind in spec.kinds]
    return f"{f' {spec.relation} '.join(phrases)} {ending}"


def parse(text: str) -> Spec:
    """The scene that a sentence describes.

    Raises:
        ValueError: The sentence is outside the grammar; the message shows the grammar.
    """
    spec = _captions().get(" ".join(text.lower().split()))
    if spec is None:
        raise ValueError(f"The caption {text!r} is outside the sandbox's grammar:\n{grammar()}")
    return spec


def grammar() -> str:
    """The grammar of captions, for people."""
    return "\n".join(
        (
            "  caption    := a OBJECT on a BACKGROUND background",
            "              | COUNT OBJECTs on a BACKGROUND background",
            "              | a OBJECT RELATION a OBJECT on a BACKGROUND background",
            "  OBJECT     := SIZE COLOUR SHAPE",
            f"  SIZE       := {' | '.join(RADII_PX)}",
            f"  COLOUR     := {' | '.join(COLOURS)}",
            f"  SHAPE      := {' | '.join(SHAPES)}",
            f"  COUNT      := {' | '.join(COUNTS)}",
            f"  RELATION   := {' | '.join(RELATIONS)}",
            f"  BACKGROUND := {' | '.join(BACKGROUNDS)}",
        )
    )


def all_kinds() -> list[Kind]:
    """Every kind of object, in a fixed order."""
    return [Kind(*words) for words in itertools.product(RADII_PX, COLOURS, SHAPES)]


def all_specs() -> Iterator[Spec]:
    """Every scene that a caption can describe, in a fixed order."""
    for background in BACKGROUNDS:
        for kind in all_kinds():
            yield Spec((kind,), background)
            for count in COUNTS.values():
                yield Spec((kind,) * count, background)
        for first, second in itertools.product(all_kinds(), repeat=2):
            for relation in RELATIONS:
                yield Spec((first, second), background, relation)


_CAPTIONS: dict[str, Spec] = {}


def _captions() -> dict[str, Spec]:
    if not _CAPTIONS:
        _CAPTIONS.update((caption(spec), spec) for spec in all_specs())
    return _CAPTIONS


def split_of(text: str) -> Split:
    """The split a caption belongs to, by hash: 80 % train, 10 % dev, 10 % test."""
    bucket = hashlib.blake2b(text.encode(), digest_size=8).digest()[0] % 10
    return "dev" if bucket == 0 else "test" if bucket == 1 else "train"


def captions(split: Split) -> list[str]:
    """All captions of a split, in a fixed order."""
    return [text for text in _captions() if split_of(text) == split]


def sample_spec(generator: np.random.Generator, split: Split) -> Spec:
    """A random scene of a split: a quarter single objects, a quarter counted, one half related pairs."""
    while True:
        spec = _random_spec(generator)
        if split_of(caption(spec)) == split:
            return spec


def sample_captions(generator: np.random.Generator, split: Split, count: int) -> list[str]:
    """`count` different captions of a split, in the proportions of `sample_spec`."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[caption(sample_spec(generator, split))] = None
    return list(texts)


def _random_spec(generator: np.random.Generator) -> Spec:
    background = str(generator.choice(list(BACKGROUNDS)))
    first, second = random_kind(generator), random_kind(generator)
    form = generator.integers(4)
    if form == 0:
        return Spec((first,), background)
    if form == 1:
        return Spec((first,) * int(generator.choice(list(COUNTS.values()))), background)
    return Spec((first, second), background, str(generator.choice(RELATIONS)))


def random_kind(generator: np.random.Generator) -> Kind:
    """A random kind of object."""
    return Kind(*(str(generator.choice(list(words))) for words in (RADII_PX, COLOURS, SHAPES)))


# --- layout ---------------------------------------------------------------------------------------------------------


def lay_out(spec: Spec, generator: np.random.Generator) -> Scene:
    """Place the objects of a scene at random: apart from each other and from the border, and in their relation."""
    radii = np.array([RADII_PX[kind.size] for kind in spec.kinds])
    low, high = radii + GAP_PX, SIZE_PX - radii - GAP_PX
    while True:
        places = generator.uniform(low, high, size=(256, 2, len(radii)))
        good = list(itertools.islice((place for place in places if _fits(place, radii, spec.relation)), 8))
        if good:
            # of several layouts the most central one: pictures are composed, not scattered
            place = min(good, key=lambda p: float(np.abs(p.mean(1) - SIZE_PX / 2).max()))
            things = (
                Thing(k, float(x), float(y), float(r)) for k, (x, y), r in zip(spec.kinds, place.T, radii, strict=True)
            )
            return Scene(spec, tuple(things))


def _fits(place: NDArray[np.float64], radii: NDArray[np.float64], relation: str | None) -> bool:
    for i, j in itertools.combinations(range(len(radii)), 2):
        if np.hypot(*(place[:, i] - place[:, j])) < radii[i] + radii[j] + GAP_PX:
            return False
    return relation is None or holds(relation, place[:, 0], place[:, 1], margin_px=8.0)


def holds(relation: str, first: Numbers, second: Numbers, margin_px: float = 0.0) -> bool:
    """Whether `first` is left of (right of, above, below) `second`, by the main direction between the two centres."""
    dx, dy = float(second[0] - first[0]), float(second[1] - first[1])
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along > abs(across) + margin_px


# --- renderer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outline:
    """A regular polygon or star: `points` corners on the unit circle, and between them corners (or, in a polygon, the
    middles of edges) at the radius `inner`; `turn` is the angle of a corner from the top, in radians."""

    points: int
    inner: float
    turn: float = 0.0

    @property
    def unit_area(self) -> float:
        """The area at radius one."""
        return self.points * self.inner * float(np.sin(np.pi / self.points))

    def distance(self, dx: NDArray[np.float64], dy: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
        """Signed distance in pixels from the outline, negative inside.

        All edges are mirror images of one half-edge, so each pixel is folded into the wedge of that one.
        """
        half = np.pi / self.points
        angle = np.abs((np.arctan2(dx, -dy) - self.turn + half) % (2 * half) - half)
        across, up = np.hypot(dx, dy) * (np.sin(angle), np.cos(angle))
        edge_x, edge_y = radius * self.inner * np.sin(half), radius * (self.inner * np.cos(half) - 1)
        along = np.clip((across * edge_x + (up - radius) * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        outside = across * edge_y - (up - radius) * edge_x < 0
        return np.where(outside, 1, -1) * np.hypot(across - along * edge_x, up - radius - along * edge_y)


OUTLINES: dict[str, Outline] = {
    "square": Outline(4, float(np.cos(np.pi / 4)), turn=np.pi / 4),
    "triangle": Outline(3, float(np.cos(np.pi / 3))),
    "star": Outline(5, 0.5),
}


_CENTRES = np.arange(SIZE_PX, dtype=np.float64) + 0.5


def coverage(shape: str, x: float, y: float, radius: float) -> NDArray[np.float64]:
    """The share of each pixel, (64, 64) in [0, 1], that an outline covers."""
    cover = np.zeros((SIZE_PX, SIZE_PX))
    rows, columns = _window(y, radius), _window(x, radius)
    window_y, window_x = _CENTRES[rows, None], _CENTRES[None, columns]
    if shape == "circle":
        distance = np.hypot(window_x - x, window_y - y) - CIRCLE_RADIUS * radius
    else:
        distance = OUTLINES[shape].distance(window_x - x, window_y - y, radius)
    cover[rows, columns] = np.clip(0.5 - distance, 0, 1)
    return cover


def _window(centre: float, radius: float) -> slice:
    """The pixels along one axis that an outline can touch."""
    low, high = int(np.floor(centre - radius - 1)), int(np.ceil(centre + radius + 1))
    return slice(max(low, 0), max(min(high, SIZE_PX), 0))


def paint(image: Image, cover: NDArray[np.float64], colour: Numbers) -> Image:
    """Lay a colour over an image where `cover` says so."""
    return image + cover[..., None] * (np.asarray(colour) - image)


def blank(background: str) -> Image:
    """An empty picture."""
    return np.full((SIZE_PX, SIZE_PX, 3), BACKGROUNDS[background])


def render(scene: Scene) -> Image:
    """Draw a scene."""
    image = blank(scene.spec.background)
    for thing in scene.things:
        image = paint(image, coverage(thing.kind.shape, thing.x, thing.y, thing.radius), COLOURS[thing.kind.colour])
    return image
