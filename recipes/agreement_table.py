"""How far rewards agree with people, with intervals over prompts, as numbers."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from align.evaluate import Estimate, interval_of
from rewards.agreement import Agreement, Column, mean_of_defined, people
from rewards.datasets.rich_feedback import RichFeedback
from rewards.metrics import plcc, srcc, word_scores
from rewards.rahf.network import SCORES

Interval = Callable[..., Estimate]
"""`align.evaluate.interval_of` with the prompts, the seed and the number of draws of one evaluation."""

ONE_PERSON = "one person"
"""Stands for the annotators themselves: the scores of each against the mean of the others."""

CEILING = "ceiling"
"""Stands for the mean of endlessly many such annotators against the mean of those there are."""

NOTES = {
    ONE_PERSON: "the scores of each annotator against the mean of the others",
    CEILING: "what the mean of endlessly many such annotators would have, estimated from how far these agree",
}


@dataclass(frozen=True)
class Agreed:
    """One number of one reward.

    Attributes:
        reward: Its name.
        target: What people said: the name of a score or of a map, or "words".
        metric: What is measured.
        n: Images it is measured on.
        estimate: With its 95 % interval over prompts.
    """

    reward: str
    target: str
    metric: str
    n: int
    estimate: Estimate

    def as_json(self) -> dict[str, Any]:
        """Flat, for a file."""
        row = asdict(self)
        return {**{key: value for key, value in row.items() if key != "estimate"}, **row["estimate"]}


def table(agreements: Mapping[str, Agreement], rows: Sequence[RichFeedback], seed: int, resamples: int) -> list[Agreed]:
    """All numbers of all rewards, and how much the first one's PLCC is above that of each other ("PLCC above NAME").

    Raises:
        ValueError: Fewer than two prompts.
    """
    interval = _interval(rows, seed, resamples)
    found = [one for name, agreement in agreements.items() for one in _of_reward(name, agreement, rows, interval)]
    return [*found, *_above(agreements, rows, interval), *_of_people(rows, seed, resamples)]


def _interval(rows: Sequence[RichFeedback], seed: int, resamples: int) -> Interval:
    groups = np.unique([row.prompt for row in rows], return_inverse=True)[1]
    return lambda statistic, *columns: interval_of(statistic, columns, groups, seed, resamples)


def _of_reward(name: str, agreement: Agreement, rows: Sequence[RichFeedback], interval: Interval) -> list[Agreed]:
    scores = [
        Agreed(name, target, metric.__name__.upper(), len(rows), interval(metric, column, people(rows, target)))
        for target in SCORES
        if (column := agreement.column(target)) is not None
        for metric in (plcc, srcc)
    ]
    maps = [
        Agreed(name, target, metric, int(np.isfinite(column).sum()), interval(mean_of_defined, column))
        for target, columns in agreement.maps.items()
        for metric, column in columns.items()
    ]
    return [*scores, *maps, *(_of_words(name, agreement.words, interval) if agreement.words is not None else [])]


def _of_words(name: str, counts: Int[np.ndarray, "n 3"], interval: Interval) -> list[Agreed]:
    corpus = [
        Agreed(name, "words", metric, len(counts), interval(partial(_corpus, index), counts))
        for index, metric in enumerate(("precision", "recall", "F1"))
    ]
    samples = word_scores(counts)
    return [
        *corpus,
        *(
            Agreed(name, "words", f"{metric} per sample", len(counts), interval(np.mean, np.nan_to_num(column)))
            for metric, column in zip(("precision", "recall", "F1"), samples.T, strict=True)
        ),
    ]


def _corpus(index: int, counts: Int[np.ndarray, "n 3"]) -> float:
    return float(word_scores(counts.sum(0))[index])


def _above(agreements: Mapping[str, Agreement], rows: Sequence[RichFeedback], interval: Interval) -> list[Agreed]:
    """The paired difference of the first reward to each other."""
    (first, mine), *others = agreements.items()
    return [
        Agreed(first, target, f"PLCC above {name}", len(rows), interval(_gap, ours, theirs, people(rows, target)))
        for name, other in others
        for target in SCORES
        if (ours := mine.column(target)) is not None and (theirs := other.column(target)) is not None
    ]


def _gap(ours: Column, theirs: Column, true: Column) -> float:
    return plcc(ours, true) - plcc(theirs, true)


def _of_people(rows: Sequence[RichFeedback], seed: int, resamples: int) -> list[Agreed]:
    """Where the data set says what each gave: how far people agree among themselves, and what that leaves to reach."""
    rated = _rated_alike(rows)
    if len({row.prompt for row in rated}) < 2:
        return []
    interval = _interval(rated, seed, resamples)
    given = {name: np.array([[rating[name] for rating in row.ratings] for row in rated]) for name in SCORES}
    return [
        Agreed(who, name, "PLCC", len(rated), interval(statistic, values.astype(float)))
        for who, statistic in ((ONE_PERSON, _one_against_others), (CEILING, _ceiling))
        for name, values in given.items()
    ]


def _rated_alike(rows: Sequence[RichFeedback]) -> list[RichFeedback]:
    """The rows with as many raters as most have that have several; of equally many rows, those with more raters."""
    counts = Counter(len(row.ratings) for row in rows if len(row.ratings) > 1)
    usual = max(counts, key=lambda count: (counts[count], count), default=0)
    return [row for row in rows if usual and len(row.ratings) == usual]


def _one_against_others(ratings: Float[np.ndarray, "n person"]) -> float:
    """The mean over people of the PLCC of one with the mean of the others."""
    count = ratings.shape[1]
    others = [list(chosen) for chosen in combinations(range(count), count - 1)]
    pairs = [(ratings[:, list(set(range(count)) - set(rest))[0]], ratings[:, rest].mean(1)) for rest in others]
    return float(np.mean([plcc(one, mean) for one, mean in pairs]))


def _ceiling(ratings: Float[np.ndarray, "n person"]) -> float:
    """The PLCC of the true mean with that of k people: the root of its reliability k r / (1 + (k - 1) r).

    That is the formula of Spearman and Brown (1910), with r the mean PLCC of two people; errors must be independent.
    """
    count = ratings.shape[1]
    r = np.mean([plcc(ratings[:, one], ratings[:, other]) for one, other in combinations(range(count), 2)])
    r = np.clip(r, 0, None)  # people who contradict each other leave nothing to reach, and below 0 there is a pole
    return float(np.sqrt(count * r / (1 + (count - 1) * r)))
