"""Scores of pairs in, rows and moved prompts out; and how they are told."""

import json
from dataclasses import replace

import pytest
import torch

from align.evaluate import compare
from recipes.comparison import Compared, compare_pairs
from recipes.comparison_text import MOVED, as_json, as_table, notes
from recipes.pairing import Entry, Pairing, pair

PROMPTS = [f"prompt {index}" for index in range(8)]


def entries(prompts: list[str], n: int, run_seed: int = 0) -> list[Entry]:
    return [
        Entry(f"{text}/{number}.png", text, number, run_seed + 100 * len(text) + number)
        for text in prompts
        for number in range(n)
    ]


def compared(pairing: Pairing, first: torch.Tensor, second: torch.Tensor) -> Compared:
    return compare_pairs("hps-v2.1", "overall", first, second, pairing, seed=0)


@pytest.fixture
def pairing() -> Pairing:
    """Of 8 prompts with 3 images each; B has the prompts the other way round."""
    return pair(entries(PROMPTS, 3), entries(PROMPTS[::-1], 3))


@pytest.fixture
def scores(pairing: Pairing) -> tuple[torch.Tensor, torch.Tensor]:
    """By image of A and of B: B gains k / 10 on prompt k, more or less."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(24, generator=generator), torch.empty(24)
    for position, (one, other) in enumerate(pairing.pairs):
        second[other] = first[one] + (pairing.groups[position] - 2) / 10 + 0.01 * (position % 3)
    return first, second


def test_the_row_is_that_of_the_paired_scores(pairing: Pairing, scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = scores
    one = compared(pairing, first, second)
    paired = second.reshape(8, 3).flip(0).flatten()
    groups = torch.arange(24) // 3
    assert one.row == compare("hps-v2.1", "overall", first.double(), paired.double(), groups, seed=0)
    assert (one.over, one.unscored, one.name) == ("prompts", 0, "hps-v2.1 overall")
    assert torch.equal(one.scores, torch.stack([first, paired], dim=1).double())


def test_prompts_are_ranked_by_their_mean_and_shown_by_their_middle_pair(
    pairing: Pairing, scores: tuple[torch.Tensor, torch.Tensor]
) -> None:
    one = compared(pairing, *scores)
    assert [move.prompt for move in one.gained] == [f"prompt {index}" for index in (7, 6, 5, 4, 3, 2)]
    assert [move.prompt for move in one.lost] == ["prompt 0", "prompt 1"]
    top = one.gained[0]
    assert top.difference == pytest.approx(0.51, abs=1e-6)
    assert top.mean_b - top.mean_a == pytest.approx(top.difference)
    assert (list(top.pairs), top.middle) == ([21, 22, 23], 22)


def test_pairs_without_a_score_are_left_out_and_counted(
    pairing: Pairing, scores: tuple[torch.Tensor, torch.Tensor]
) -> None:
    first, second = scores[0].clone(), scores[1].clone()
    first[0], second[0], second[1] = torch.nan, torch.inf, torch.nan  # of prompt 0, and two of prompt 7
    one = compared(pairing, first, second)
    assert (one.unscored, one.row.n) == (3, 21)
    assert [len(move.pairs) for move in one.moves] == [2, 3, 3, 3, 3, 3, 3, 1]
    assert notes(pairing, [one])[-1] == "3 pairs have no finite score by hps-v2.1 overall."


def test_of_one_prompt_the_interval_is_over_its_images() -> None:
    images = entries(PROMPTS[:1], 6)
    pairing = pair(images, images)
    first = torch.rand(6, generator=torch.Generator().manual_seed(1))
    second = first + torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    one = compared(pairing, first, second)
    assert one.over == "images"
    assert one.row == compare("hps-v2.1", "overall", first.double(), second.double(), torch.arange(6), seed=0)
    assert "All pairs are of one prompt" in notes(pairing, [one])[-1]


@pytest.mark.parametrize("kept", [0, 1])
def test_fewer_than_two_pairs_with_scores_are_refused(pairing: Pairing, kept: int) -> None:
    first = torch.full((24,), torch.nan)
    first[:kept] = 0.5
    with pytest.raises(ValueError, match=f"{kept} of 24 pairs have finite scores by hps-v2.1 overall"):
        compared(pairing, first, torch.rand(24))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (entries(PROMPTS, 3), ["share the prompt and the seed."]),
        (entries(PROMPTS, 3, run_seed=7), ["share the prompt and the sample's number.", "Warning: the seeds differ"]),
        (
            entries(PROMPTS[1:], 2),
            ["the seed.", "10 images of A and 0 of B have no partner", "7 of 7 common prompts have more images in one"],
        ),
        (
            [Entry(entry.name, entry.text) for entry in entries(PROMPTS, 3)],
            ["share the prompt and the file's place below its folder."],
        ),
        (
            [Entry(f"{place}.png", entry.text) for place, entry in enumerate(entries(PROMPTS, 3), start=100)],
            ["share the prompt and their place among its images, in the order of the files."],
        ),
    ],
    ids=["seed", "number", "uneven", "file", "order"],
)
def test_notes_say_what_the_pairs_share(second: list[Entry], said: list[str]) -> None:
    told = notes(pair(entries(PROMPTS, 3), second), [])
    assert len(told) == len(said)
    assert all(words in sentence for words, sentence in zip(said, told, strict=True))


def test_the_table_says_it_all(pairing: Pairing, scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    one = compared(pairing, *scores)
    left = replace(pairing, unpaired=([0, 1, 2, 3, 4, 5, 6], []))
    names = [entry.name for entry in entries(PROMPTS, 3)]
    lines = as_table(["runs/a", "runs/b"], [names, names], left, [one, one]).splitlines()
    assert lines[:3] == ["A: runs/a, 24 images", "B: runs/b, 24 images", "24 pairs of 8 prompts"]
    assert (
        "without a partner in A: prompt 0/0.png, prompt 0/1.png, prompt 0/2.png, prompt 1/0.png, prompt 1/1.png"
        in (lines[5])
    )
    assert lines[5].endswith(" and 2 more")
    row = one.row
    cells = [f"{row.base_mean:.4f}", f"{row.tuned_mean:.4f}", f"{row.difference:+.4f}"]
    assert lines[8].split()[:5] == ["hps-v2.1", "overall", *cells]
    assert lines[8].split()[-2:] == [f"{row.win_rate:.1%}", "24"]
    moved = lines[lines.index("moved most by hps-v2.1 overall") + 1 :]
    wanted = [f"{(index - 2) / 10 + 0.01:>+9.4f}  prompt {index}" for index in (7, 6, 5, 4, 3, 1, 0)]
    assert moved == wanted


def test_a_long_prompt_takes_one_line(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    images = entries([f"{index} of\nmany words " * 40 for index in range(8)], 3)
    pairing = pair(images, images)
    lines = as_table(["a", "b"], [[], []], pairing, [compared(pairing, *scores)]).splitlines()
    assert all(len(line) <= 120 for line in lines)
    assert lines[-1].endswith("...")


def test_json_has_the_same(pairing: Pairing, scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    one = compared(pairing, *scores)
    names = [entry.name for entry in entries(PROMPTS, 3)]
    content = json.loads(json.dumps(as_json(["runs/a", "runs/b"], [names, names], pairing, [one]), allow_nan=False))
    assert content["a"] == {"folder": "runs/a", "images": 24, "unpaired": []}
    assert content["pairing"] == {"tie": "seed", "pairs": 24, "prompts": 8, "same_seeds": True, "uneven_prompts": 0}
    (row,) = content["rows"]
    assert (row["mean_a"], row["mean_b"]) == (one.row.base_mean, one.row.tuned_mean)
    assert (row["win_rate_b"], row["interval_over"], row["unscored_pairs"]) == (one.row.win_rate, "prompts", 0)
    assert [move["prompt"] for move in row["gained"]] == [move.prompt for move in one.gained[:MOVED]]
    assert row["lost"][0] == {
        "prompt": "prompt 0",
        "pairs": 3,
        "mean_a": one.lost[0].mean_a,
        "mean_b": one.lost[0].mean_b,
        "difference": one.lost[0].difference,
    }
