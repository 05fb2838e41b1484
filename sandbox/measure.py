"""The gold truth: read any picture of the sandbox with classical vision, and judge it against its caption.

Analysis by synthesis. Backgrounds are achromatic and the six object colours lie 60 degrees apart in the chroma plane,
so the chroma of a pixel tells the colour of its object (angle) and how much of the pixel it covers (length), even where
edges are soft. Each connected region of one colour is fitted with the four outlines; the found objects are drawn again,
and what the drawing does not explain is implausible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from sandbox.world import (
    BACKGROUNDS,
    CIRCLE_RADIUS,
    COLOURS,
    OUTLINES,
    RADII_PX,
    SHAPES,
    SIZE_PX,
    Image,
    Kind,
    Spec,
    Thing,
    coverage,
    holds,
    paint,
    parse,
)

Map = NDArray[np.float64]
"""A heatmap of shape (64, 64), values in [0, 1]."""

WEIGHTS = {"alignment": 0.4, "plausibility": 0.4, "aesthetics": 0.2}
"""The overall score is this mean of the other three."""
FACT_WEIGHTS = {"size": 0.5, "colour": 1.0, "shape": 1.0, "count": 1.0, "relation": 1.0, "background": 0.5}
MIN_AREA_PX = 60.0
MAX_RADIUS_PX = 18.0
MIN_IOU = 0.55
NOISE = 0.15
"""Distance in RGB below which a pixel counts as explained: what an autoencoder loses is not a flaw."""
TOLERANCE = 0.02
"""Unexplained colour, as a share of the objects' area, that costs nothing: the blur of an autoencoder's edges."""
STRICTNESS = 6.0
"""Plausibility falls as exp(-STRICTNESS * unexplained share)."""

SPREAD_PX = 1.5

_COLOUR_NAMES = tuple(COLOURS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_CHROMA = np.array([np.array(colour) - np.mean(colour) for colour in COLOURS.values()])
_CHROMA_LENGTH = float(np.linalg.norm(_CHROMA[0]))
_UNIT_AREAS = {"circle": np.pi * CIRCLE_RADIUS**2} | {name: outline.unit_area for name, outline in OUTLINES.items()}


@dataclass(frozen=True)
class Found:
    """An object read from a picture: what it is, how well its outline fits (IoU), how strong its colour is."""

    thing: Thing
    iou: float
    strength: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows, before any caption is asked."""

    background: str
    found: tuple[Found, ...]
    unexplained: Map
    """How far each pixel is from the drawing of the found objects, 0 within noise, 1 for another colour."""


@dataclass(frozen=True)
class Gold:
    """The truth about a picture and its caption: scores and maps in [0, 1], and each word with its misalignment."""

    plausibility: float
    alignment: float
    aesthetics: float
    overall: float
    implausibility_map: Map
    misalignment_map: Map
    words: tuple[str, ...]
    misaligned: tuple[bool, ...]


def measure(image: Image, text: str) -> Gold:
    """Judge a picture, (64, 64, 3) in [0, 1], against a caption.

    Raises:
        ValueError: The picture has another shape, or the caption is outside the grammar.
    """
    spec = parse(text)
    reading = read(image)
    match = Match.of(spec, reading)
    scores = {
        "plausibility": plausibility(reading),
        "alignment": match.alignment(),
        "aesthetics": aesthetics(reading),
    }
    overall = sum(WEIGHTS[name] * value for name, value in scores.items())
    words = tuple(text.lower().split())
    return Gold(
        **scores,
        overall=overall,
        implausibility_map=_spread(reading.unexplained) if reading.found else np.ones((SIZE_PX, SIZE_PX)),
        misalignment_map=match.heatmap(),
        words=words,
        misaligned=match.misaligned(words),
    )


# --- reading --------------------------------------------------------------------------------------------------------


def read(image: Image) -> Reading:
    """Find the background, the objects and what they leave unexplained."""
    if image.shape != (SIZE_PX, SIZE_PX, 3):
        raise ValueError(
            f"The sandbox measures RGB pictures of shape ({SIZE_PX}, {SIZE_PX}, 3), got {image.shape}. "
            "Resize the picture, or use another reward for other models."
        )
    level = _background_level(image)
    background = min(_BACKGROUND_NAMES, key=lambda name: abs(BACKGROUNDS[name] - level))
    found = tuple(_find_objects(image))
    return Reading(background, found, _unexplained(image, level, found))


def _chroma(image: Image) -> tuple[Map, NDArray[np.int_]]:
    """How much of each pixel a colour covers (1 = full), and which colour."""
    chroma = image - image.mean(-1, keepdims=True)
    return np.linalg.norm(chroma, axis=-1) / _CHROMA_LENGTH, (chroma @ _CHROMA.T).argmax(-1)


def _background_level(image: Image) -> float:
    """Median grey of the colourless pixels (of all pixels where colour is everywhere)."""
    amount, _ = _chroma(image)
    grey = image.mean(-1)
    colourless = amount < 0.2
    return float(np.median(grey[colourless] if colourless.any() else grey))


def _find_objects(image: Image) -> list[Found]:
    """Fit an outline to every connected region of one colour that is large enough to be an object."""
    amount, colour = _chroma(image)
    found: list[Found] = []
    for index, name in enumerate(_COLOUR_NAMES):
        regions, count = cast("tuple[NDArray[np.int_], int]", ndimage.label((colour == index) & (amount > 0.2)))
        for region in range(1, count + 1):
            cover = np.where(regions == region, amount, 0)
            if cover.sum() > MIN_AREA_PX / 3:
                found += _fit(cover, name)
    return found


def _fit(cover: Map, colour: str) -> list[Found]:
    """The outline that fits a region best, or nothing where none does."""
    strength = float(np.quantile(cover[cover > 0], 0.9))
    cover = np.clip(cover / max(strength, 1e-6), 0, 1)
    area = float(cover.sum())
    if area < MIN_AREA_PX:
        return []
    y, x = ((cover * axis).sum() / area for axis in np.mgrid[0:SIZE_PX, 0:SIZE_PX] + 0.5)
    starts = {shape: np.array([x, y, np.sqrt(area / _UNIT_AREAS[shape])]) for shape in SHAPES}
    likely = sorted(SHAPES, key=lambda name: _resemblance(cover, name, starts[name]))[-2:]
    fits = {shape: _refine(cover, shape, starts[shape]) for shape in likely}
    shape = max(fits, key=lambda name: _resemblance(cover, name, fits[name]))
    place = fits[shape]
    iou = _resemblance(cover, shape, place, missing=1.0)
    if iou < MIN_IOU or place[2] > MAX_RADIUS_PX:
        return []
    size = min(RADII_PX, key=lambda name: abs(RADII_PX[name] - place[2]))
    thing = Thing(Kind(size, colour, shape), *(float(value) for value in place))
    return [Found(thing, iou, min(strength, 1.0))]


def _resemblance(cover: Map, shape: str, place: NDArray[np.float64], missing: float = 0.4) -> float:
    """Soft Tversky index of a region and an outline; at `missing` 1 it is the intersection over union.

    A piece missing from an object weighs less than colour outside its outline, so an object that was bitten is fitted
    with the outline that it had.
    """
    outline = coverage(shape, *(float(value) for value in place))
    both = float(np.minimum(cover, outline).sum())
    return both / (float(cover.sum()) + missing * (float(outline.sum()) - both))


def _refine(cover: Map, shape: str, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Improve centre and radius by coordinate descent, down to a quarter of a pixel."""
    best = _resemblance(cover, shape, place)
    for step in (2.0, 1.0, 0.5, 0.25):
        for direction in np.concatenate([np.eye(3), -np.eye(3)]) * step:
            value = _resemblance(cover, shape, place + direction)
            while value > best:
                best, place = value, place + direction
                value = _resemblance(cover, shape, place + direction)
    return place


def _unexplained(image: Image, level: float, found: Sequence[Found]) -> Map:
    """Distance in RGB of each pixel to the drawing of what was found, less the noise, as a share of a full change."""
    drawing = np.full_like(image, level)
    for one in found:
        thing = one.thing
        colour = level + one.strength * (np.array(COLOURS[thing.kind.colour]) - level)
        drawing = paint(drawing, coverage(thing.kind.shape, thing.x, thing.y, thing.radius), colour)
    distance = np.linalg.norm(image - drawing, axis=-1)
    return np.clip((distance - NOISE) / (_CHROMA_LENGTH - NOISE), 0, 1)


def _spread(unexplained: Map) -> Map:
    """Widen the marks to the neighbourhood that a person would point at."""
    return np.clip(2 * ndimage.gaussian_filter(unexplained, SPREAD_PX), 0, 1)


# --- scores ---------------------------------------------------------------------------------------------------------


def plausibility(reading: Reading) -> float:
    """exp(-STRICTNESS * unexplained share of the objects' area); nothing recognisable is not plausible."""
    area = sum(_UNIT_AREAS[one.thing.kind.shape] * one.thing.radius**2 for one in reading.found)
    if not area:
        return 0.0
    share = float(reading.unexplained.sum()) / area
    return float(np.exp(-STRICTNESS * max(share - TOLERANCE, 0)))


def aesthetics(reading: Reading) -> float:
    """Mean of three: strong colours, a centred composition, and room between the objects and the border."""
    if not reading.found:
        return 0.0
    things = [one.thing for one in reading.found]
    strength = min(1.0, float(np.mean([one.strength for one in reading.found])) / 0.9)
    return float(np.mean([strength, _centred(things), _room(things)]))


def _centred(things: Sequence[Thing]) -> float:
    """1 where the middle of the objects is the middle of the picture, 0 from a quarter of the picture away."""
    low = np.min([(thing.x - thing.radius, thing.y - thing.radius) for thing in things], axis=0)
    high = np.max([(thing.x + thing.radius, thing.y + thing.radius) for thing in things], axis=0)
    offset = float(np.abs((low + high) / 2 - SIZE_PX / 2).max())
    return float(np.clip(1 - offset / (SIZE_PX / 4), 0, 1))


def _room(things: Sequence[Thing]) -> float:
    """1 where every outline is a pixel or more from the border, 0 where one is cut by four pixels."""
    edge = min(min(t.x, t.y, SIZE_PX - t.x, SIZE_PX - t.y) - t.radius for t in things)
    return float(np.clip((edge + 4) / 5, 0, 1))


# --- alignment ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A caption beside what was found: for each object that it names the found one (or none), and which facts hold."""

    spec: Spec
    reading: Reading
    partners: tuple[Found | None, ...]

    @staticmethod
    def of(spec: Spec, reading: Reading) -> "Match":
        """Pair the named objects with found ones so that most facts hold."""
        value = np.array([[_agreement(kind, one.thing.kind) for one in reading.found] for kind in spec.kinds])
        partners: list[Found | None] = [None] * len(spec.kinds)
        if reading.found:
            value = value + 1e-3 * _order_value(spec, reading.found)
            for row, column in zip(*linear_sum_assignment(value, maximize=True), strict=True):
                partners[row] = reading.found[column]
        return Match(spec, reading, tuple(partners))

    def kind_facts(self, index: int) -> dict[str, bool]:
        """Whether size, colour and shape of a named object are as the caption says."""
        kind, partner = self.spec.kinds[index], self.partners[index]
        names = ("size", "colour", "shape")
        return {n: partner is not None and getattr(partner.thing.kind, n) == getattr(kind, n) for n in names}

    def scene_facts(self) -> dict[str, bool]:
        """Whether count, background and, where there is one, relation are as the caption says."""
        facts = {
            "count": len(self.reading.found) == len(self.spec.kinds),
            "background": self.reading.background == self.spec.background,
        }
        if self.spec.relation is not None:
            facts["relation"] = self._related(self.spec.relation)
        return facts

    def _related(self, relation: str) -> bool:
        first, second = self.partners
        if first is None or second is None:
            return False
        return holds(relation, (first.thing.x, first.thing.y), (second.thing.x, second.thing.y))

    def alignment(self) -> float:
        """Weighted share of the facts that hold."""
        facts = [fact for i in range(len(self.spec.kinds)) for fact in self.kind_facts(i).items()]
        facts += self.scene_facts().items()
        total = sum(FACT_WEIGHTS[name] for name, _ in facts)
        return float(sum(FACT_WEIGHTS[name] for name, true in facts if true)) / total

    def heatmap(self) -> Map:
        """Where the picture contradicts the caption: wrong or surplus objects, ends of a wrong relation, background."""
        facts = self.scene_facts()
        covers = [
            (one, coverage(one.thing.kind.shape, one.thing.x, one.thing.y, one.thing.radius))
            for one in self.reading.found
        ]
        wrong = [cover for one, cover in covers if self._is_wrong(one, facts)]
        if not facts["background"]:
            wrong.append(1 - np.max([np.zeros((SIZE_PX, SIZE_PX)), *(cover for _, cover in covers)], axis=0))
        return np.max([np.zeros((SIZE_PX, SIZE_PX)), *wrong], axis=0)

    def _is_wrong(self, one: Found, scene_facts: dict[str, bool]) -> bool:
        surplus = {other.thing.kind for other in self.reading.found if other not in self.partners}
        if one.thing.kind in surplus:
            return True
        return not all(self.kind_facts(self.partners.index(one)).values()) or not scene_facts.get("relation", True)

    def misaligned(self, words: Sequence[str]) -> tuple[bool, ...]:
        """For each word of the caption, whether the picture contradicts it."""
        facts = self.scene_facts()
        kinds = [self.kind_facts(i) for i in range(len(self.spec.kinds))]
        if self.spec.counted:
            kinds = [{name: all(kind[name] for kind in kinds) for name in kinds[0]}]
        phrase = [[not facts["count"], not k["size"], not k["colour"], not k["shape"]] for k in kinds]
        relation = [not facts.get("relation", True)] * len((self.spec.relation or "").split())
        ending = [False, False, not facts["background"], False]
        flags = phrase[0] + (relation + phrase[1] if len(phrase) > 1 else []) + ending
        assert len(flags) == len(words), (flags, words)
        return tuple(flags)


def _agreement(wanted: Kind, seen: Kind) -> float:
    same = [name for name in ("size", "colour", "shape") if getattr(wanted, name) == getattr(seen, name)]
    return float(sum(FACT_WEIGHTS[name] for name in same))


def _order_value(spec: Spec, found: Sequence[Found]) -> NDArray[np.float64]:
    """Between equal candidates, prefer those that stand where the relation puts them."""
    if spec.relation is None:
        return np.zeros((len(spec.kinds), len(found)))
    axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[spec.relation]
    position = sign * np.array([(one.thing.x, one.thing.y)[axis] for one in found]) / SIZE_PX
    return np.stack([-position, position])
