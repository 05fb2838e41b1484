"""Scoring a folder: what is written, what is continued, what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from align.log import Log
from align.samples import SampleStore
from recipes.configs.score import ScoreConfig
from recipes.images import sample_items
from recipes.judge import check_all
from recipes.score import main, score
from recipes.scoring import Engine
from rewards.base import Images, Reward

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "a blue square")
SAMPLES = 5


class Colours(Reward):
    """The means of red and of blue; counts its calls, and can be told to fail at the n-th."""

    dimensions = ("red", "blue")
    differentiable = True

    def __init__(self, fail_at: int = 0, value: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self._fail_at, self._value = fail_at, value

    def preprocess(self, image: Tensor) -> Tensor:
        return image

    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        self.batches.append(list(prompts))
        if len(self.batches) == self._fail_at:
            raise KeyboardInterrupt
        return torch.stack([image.mean((1, 2))[[0, 2]] for image in images]) + self._value


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    """Ten finished samples of noise, in a run folder."""
    store = SampleStore(tmp_path / "run/samples")
    store.claim({"images": SAMPLES * len(PROMPTS)})
    pairs = [(prompt, sample) for prompt in PROMPTS for sample in range(SAMPLES)]
    rows = [store.row(position, *pair, position, "f" * 16) for position, pair in enumerate(pairs)]
    store.write(rows, torch.rand(len(rows), 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    store.seal(rows)
    return store


def _score(store: SampleStore, reward: Reward, name: str = "my:Colours", batch_size: int = 3) -> Tensor:
    folder = store.folder.parent
    with Log(folder) as log:
        engine = Engine(name, reward, CPU, batch_size)
        return score(sample_items(store), engine, folder / "scores", log, Accelerator(cpu=True))


def test_scores_are_written_by_image_and_model(store: SampleStore) -> None:
    scores, rows = _score(store, Colours()), store.rows()
    table = pq.read_table(store.folder.parent / "scores/my~Colours.parquet")
    assert table.column_names == ["image_id", "model", "red", "blue"]
    assert [str(kind) for kind in table.schema.types] == ["string", "string", "float", "float"]
    assert table["image_id"].to_pylist() == [row.image_id for row in rows]
    assert set(table["model"].to_pylist()) == {"f" * 16}
    expected = store.load(rows).mean((2, 3))[:, [0, 2]]
    assert torch.equal(scores, expected)
    assert table["blue"].to_pylist() == expected[:, 1].tolist()
    assert [path.name for path in (store.folder.parent / "scores").iterdir()] == ["my~Colours.parquet"]


def test_each_image_gets_its_own_prompt(store: SampleStore) -> None:
    reward = Colours()
    _score(store, reward, batch_size=4)
    assert reward.batches == [[PROMPTS[0]] * 4, [PROMPTS[0], *[PROMPTS[1]] * 3], [PROMPTS[1]] * 2]


def test_what_has_scores_is_not_scored_again(store: SampleStore) -> None:
    first, again = _score(store, Colours()), Colours()
    path = store.folder.parent / "scores/my~Colours.parquet"
    before = path.stat().st_mtime_ns
    assert torch.equal(_score(store, again), first)
    assert again.batches == []
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("torn", [b"", b'[["half a'], ids=["whole", "torn"])
def test_a_killed_run_continues_with_the_same_batches(store: SampleStore, torn: bytes) -> None:
    partial = store.folder.parent / "scores/.my~Colours/0.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _score(store, Colours(fail_at=3))
    partial.write_bytes(partial.read_bytes() + torn)
    rest, whole = Colours(), Colours()
    resumed = _score(store, rest)
    assert torch.equal(resumed, _score(store, whole, name="other"))
    assert rest.batches == whole.batches[2:]
    assert not partial.exists()


def test_scores_of_other_images_are_kept(store: SampleStore) -> None:
    _score(store, Colours())
    other = SampleStore(store.folder.parent / "other")
    other.claim({"images": 1})
    rows = [other.row(0, PROMPTS[0], 0, 0, "e" * 16)]
    other.write(rows, torch.zeros(1, 3, 8, 8))
    other.seal(rows)
    assert _score(other, Colours()).tolist() == [[0.0, 0.0]]
    table = pq.read_table(store.folder.parent / "scores/my~Colours.parquet")
    assert sorted(set(table["model"].to_pylist())) == ["e" * 16, "f" * 16]
    assert table.num_rows == 11


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_names_the_image_and_is_tried_again(
    store: SampleStore, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = _score(store, Colours(value=value))
    assert scores.isnan().all()
    image = store.rows()[0].path.name
    said = capsys.readouterr().err
    assert f"not scored: 00000/{image}: my:Colours gave {{'red': {value}, 'blue': {value}}}; scores must be" in said
    assert not (store.folder.parent / "scores/my~Colours.parquet").exists()
    assert torch.equal(_score(store, Colours()), _score(store, Colours(), name="other"))


def test_a_comparison_refuses_images_without_a_score(store: SampleStore) -> None:
    items, problems = sample_items(store), {}
    scores = torch.zeros(10, 2)
    check_all(items, scores, problems)
    scores[3, 1] = float("nan")
    with pytest.raises(ValueError, match=rf"{items[3].key[0]}.png \('a red circle'\) has no score: broken. Mend"):
        check_all(items, scores, {items[3].name: "broken"})


def test_scores_of_another_shape_are_refused(store: SampleStore) -> None:
    reward = Colours()
    reward.dimensions = ("red",)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) where \(images, dimensions\) are \(3, 1\)"):
        _score(store, reward)


def test_a_file_with_other_dimensions_is_refused(store: SampleStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        _score(store, Colours(fail_at=2))
    other = Colours()
    other.dimensions = ("red",)
    with pytest.raises(ValueError, match=r"which a stopped run left, has other dimensions than \['red'\]"):
        _score(store, other)
    _score(store, Colours())
    with pytest.raises(ValueError, match=r"has the columns .*'blue'\] where .*'red'\] belong"):
        _score(store, other)


def test_a_damaged_file_is_named(store: SampleStore) -> None:
    path = store.folder.parent / "scores/my~Colours.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"my~Colours.parquet is damaged .* Delete it and run again"):
        _score(store, Colours())


def _write_reward(folder: Path) -> None:
    (folder / "scored_reward.py").write_text(
        "import torch\n"
        "from rewards.base import Reward\n"
        "class Mean(Reward):\n"
        "    dimensions = ('overall',)\n"
        "    differentiable = True\n"
        "    def preprocess(self, image):\n"
        "        return image\n"
        "    def __call__(self, images, prompts):\n"
        "        return torch.stack([image.mean() for image in images])[:, None]\n"
    )


def test_the_command_scores_a_run_by_a_users_reward(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.folder.parent
    _write_reward(folder)
    monkeypatch.chdir(folder)
    config = ScoreConfig(images=[folder], rewards=["scored_reward:Mean"], device="cpu")
    before = sorted(folder.rglob("*"))
    main(config, dry_run=True)
    assert "plan: 10 images, 1 rewards" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before
    main(config)
    assert "scored_reward:Mean" in capsys.readouterr().out
    assert (folder / "scores/scored_reward~Mean.parquet").exists()


def test_a_folder_of_samples_need_not_be_in_a_run(store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_reward(store.folder.parent)
    monkeypatch.chdir(store.folder.parent)
    main(ScoreConfig(images=[store.folder], rewards=["scored_reward:Mean"], device="cpu"))
    assert (store.folder / "scores/scored_reward~Mean.parquet").exists()
    assert len(store.rows()) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ["sandbox-hsp"]}, "Nearest names: sandbox-hps"),
        ({"images": [Path("nowhere")]}, "There is nothing called nowhere"),
        ({"prompt": "a"}, "holds generated images, which have their prompts"),
    ],
    ids=["reward", "folder", "prompt"],
)
def test_bad_input_is_answered_before_the_work(store: SampleStore, changes: dict[str, Any], message: str) -> None:
    config = ScoreConfig(images=[store.folder], rewards=["sandbox-hps"], device="cpu").model_copy(update=changes)
    with pytest.raises(ValueError, match=message):
        main(config, dry_run=True)


def test_two_commands_do_not_score_into_one_file(store: SampleStore) -> None:
    class Nested(Colours):
        def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
            with pytest.raises(ValueError, match=r"Another command scores into .*my~Colours.parquet. Wait for it"):
                _score(store, Colours())
            _score(store, Colours(), name="other")
            return super().__call__(images, prompts)

    assert torch.equal(_score(store, Nested()), _score(store, Colours(), name="third"))
