"""The sandbox's RAHF: a small ViT and T5 that learn from what simulated people said of generated pictures.

First they learn to name what rendered scenes show, as the paper's were pre-trained on captions; then, from there, the
paper's two forms, several heads or one that the prompt directs, learn from rich feedback (arXiv 2312.10240).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Sequence, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from align.log import Log
from align.state import write_json
from align.train import TrainSettings, Validation, train
from rewards.cards import FOLDER_CARD
from rewards.hub import sha256
from rewards.rahf.config import RahfConfig
from rewards.rahf.critic import Rahf
from rewards.rahf.network import HEATMAPS, SCORES, TIED, RahfNetwork
from rewards.rahf.tokens import Tokenize, padded
from rewards.rahf.words import MARK, mark_words
from rewards.training.rahf import LossWeights, RahfBatch, RahfLoss, caption_loss
from rewards.training.readout import fit_readouts, with_readouts
from rewards.weights import CONFIG as NETWORK
from rewards.weights import TOKENIZER, WEIGHTS, write_network
from sandbox.build.pictures import draw_pictures
from sandbox.build.rich import Rich, join
from sandbox.build.symmetry import Symmetry
from sandbox.build.tokenizer import words
from sandbox.rich_feedback import RATERS
from sandbox.world import SIZE_PX, caption, parse, split_of

BATCH = 64
MAPPED = 16
"""Of a batch of feedback, the pictures whose maps are learned, too: drawing them takes most of a step."""
MAP_STEPS = 1500
"""In which the heads of the maps are trained alone, at the end."""
FORMS = _, PROMPTED = ("multi-head", "augmented-prompt")
"""The paper's two forms: seven heads and one pass, or three heads and a task in front of the prompt."""
LOSS = LossWeights(heatmap=5.0, score=8.0, words=2.0)
"""Scores count for more than in the paper: there they learned least."""
CONFIG = RahfConfig(
    image_size=SIZE_PX,
    patch_size=8,
    vision_width=128,
    vision_layers=4,
    vision_heads=4,
    vision_hidden=256,
    text_width=96,
    text_layers=3,
    text_heads=4,
    text_head_width=24,
    text_hidden=192,
    vocabulary=80,
    heads="paper",
    heatmap_widths=(32, 24, 24, 16, 8),
    score_widths=(32, 8),
    score_hidden=(32,),
    reads_image=True,
    max_written=40,
)


@dataclass(frozen=True)
class Feedback:
    """What people said of pictures that the model drew, of rendered ones, and of drawn ones that are held out."""

    drawn: Rich
    rendered: Rich
    dev: Rich


def build_tokenizer() -> Tokenizer:
    """Every word of the grammar, of what a network can be asked for, and the mark of a misaligned word."""
    asked = ["<output>", "</output>", "SCORE:", "HEATMAP:", *SCORES, *HEATMAPS]
    tokens = ["<pad>", "</s>", "<unk>", MARK, *(f"\u2581{word}" for word in [*words(), *asked])]
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Metaspace(), Split(MARK, "isolated")])
    tokenizer.decoder = MetaspaceDecoder()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def pretrain(folder: Path, steps: int, accelerator: Accelerator) -> RahfNetwork:
    """Teach a new network (resumable) to write the captions of rendered scenes."""
    torch.manual_seed(0)
    network = RahfNetwork(CONFIG)
    loss = caption_loss(_tokenize(accelerator.device))
    train(network, _scenes(accelerator.device), loss, _settings(steps, 1), folder, Log(folder), accelerator)
    return network


def build(
    folder: Path, pretrained: RahfNetwork, people: Feedback, form: str, steps: int, accelerator: Accelerator
) -> RahfNetwork:
    """Teach a network (resumable) of one of `FORMS` what people said."""
    torch.manual_seed(1)
    prompted = form == PROMPTED
    network = RahfNetwork(replace(CONFIG, prompted=prompted))
    kept = {name: value for name, value in pretrained.state_dict().items() if "_heads." not in name}
    network.load_state_dict(network.state_dict() | kept)
    loss = RahfLoss(_tokenize(accelerator.device), LOSS)
    critic = Rahf.of(network, build_tokenizer())
    look = Validation(500, lambda step: _errors(critic, loss, people.dev))
    batches = _remarks([join([people.drawn, people.rendered])], [BATCH], MAPPED, accelerator.device)
    train(network, batches, loss, _settings(steps, 2), folder, Log(folder), accelerator, look)
    _finish_maps(network, folder / "maps", people, accelerator)
    if prompted:
        return network
    reading = with_readouts(network, build_tokenizer().get_vocab()[MARK]).to(accelerator.device)
    fit_readouts(reading, _unmoved(people.drawn, accelerator.device), _tokenize(accelerator.device))
    return reading


def _finish_maps(network: RahfNetwork, folder: Path, people: Feedback, accelerator: Accelerator) -> None:
    """Train the heads of the maps alone (resumable), on as many rendered pictures as drawn ones, with all their maps.

    In what came before, rendered pictures were few, and clean ones among them glowed.
    """
    network.requires_grad_(False)
    network.heatmap_heads.requires_grad_()
    half = BATCH // 4
    batches = _remarks([people.drawn, people.rendered], [half, half], 2 * half, accelerator.device)
    loss = RahfLoss(_tokenize(accelerator.device), LossWeights(heatmap=5.0, score=0.0, words=0.0))
    train(network, batches, loss, _settings(MAP_STEPS, 3), folder, Log(folder), accelerator)
    network.requires_grad_()


def _settings(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(
        max_train_steps=steps,
        learning_rate=1e-3,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        adam_beta2=0.98,
        adam_weight_decay=0.05,
        ema_decay=0.99,
        checkpointing_steps=100,
        checkpoints_total_limit=2,
        seed=seed,
    )


def _tokenize(device: torch.device) -> Tokenize:
    tokenizer = build_tokenizer()
    return lambda texts: padded(tokenizer, texts, device)


def _pixels(images: UInt8[Tensor, "batch 3 64 64"], device: torch.device) -> Float[Tensor, "batch 3 64 64"]:
    """What `Rahf.preprocess` makes of pictures of its own size."""
    return images.to(device).float() / 127.5 - 1


def _scenes(device: torch.device) -> Callable[[int], RahfBatch]:
    """Rendered scenes under a symmetry of the world, with nothing to say about them but their captions."""
    pictures = draw_pictures(12000, "train", 0.0, seed=31)

    def batch(step: int) -> RahfBatch:
        generator = np.random.default_rng((31, step))
        rows = generator.integers(len(pictures), size=BATCH)
        pixels = torch.from_numpy(pictures.pixels[rows]).permute(0, 3, 1, 2)
        moved = [_moved(pictures.captions[row], one, None, generator) for row, one in zip(rows, pixels, strict=True)]
        texts = [text for text, _, _ in moved]
        nothing = torch.zeros(BATCH, len(SCORES)), torch.zeros(BATCH, len(HEATMAPS), SIZE_PX, SIZE_PX)
        return RahfBatch(_pixels(torch.stack([one for _, one, _ in moved]), device), texts, texts, *nothing)

    return batch


def _remarks(parts: list[Rich], sizes: list[int], mapped: int, device: torch.device) -> Callable[[int], RahfBatch]:
    """Pictures of each part under a symmetry of the world, and what people said of them; maps of the first `mapped`."""
    rich, starts = join(parts), np.cumsum([0, *(len(part.captions) for part in parts)])

    def batch(step: int) -> RahfBatch:
        generator = np.random.default_rng((32, step))
        drawn = [generator.integers(*starts[i : i + 2], size=size) for i, size in enumerate(sizes)]
        rows = np.concatenate(drawn)
        moved = [_moved(rich.captions[row], rich.pixels[row], rich.marks[row], generator) for row in rows]
        whole = _batch(rich, rows, *zip(*moved, strict=True), device=device)
        whole.heatmaps[mapped:] = torch.nan
        return whole

    return batch


def _unmoved(rich: Rich, device: torch.device) -> Iterator[RahfBatch]:
    """All pictures once, as they are."""
    for rows in np.array_split(np.arange(len(rich.captions)), len(rich.captions) // BATCH):
        captions, pixels, marks = ([parts[row] for row in rows] for parts in (rich.captions, rich.pixels, rich.marks))
        yield _batch(rich, rows, captions, pixels, marks, device)


def _moved(
    text: str, pixels: Tensor, marks: Tensor | None, generator: np.random.Generator
) -> tuple[str, Tensor, Tensor | None]:
    """Picture, caption and marks under a random symmetry, unless that leads out of the training split."""
    symmetry = Symmetry.draw(generator)
    moved = caption(symmetry.spec(parse(text)))
    if split_of(moved) != "train":
        return text, pixels, marks
    mirrored = marks.flip(-1) if marks is not None and symmetry.mirror else marks
    return moved, symmetry.pixels(pixels), mirrored


def _batch(rich: Rich, rows: Any, texts: Any, pixels: Any, marks: Any, device: torch.device) -> RahfBatch:
    """The scores and the misaligned words stay what they were: a symmetry changes no word's place."""
    marked = [
        mark_words(text.split(), rich.misaligned[row][: len(text.split())].tolist())
        for row, text in zip(rows, texts, strict=True)
    ]
    heat = torch.stack(marks).float() / len(RATERS)
    return RahfBatch(_pixels(torch.stack(pixels), device), texts, marked, rich.scores[rows].to(device), heat.to(device))


def save(network: RahfNetwork, folder: Path) -> None:
    """Write a network as `rewards.rahf.critic.Rahf` reads it, in half precision."""
    state = {name: tensor.half() for name, tensor in network.state_dict().items() if name not in TIED}
    write_network(folder, {WEIGHTS: state}, {NETWORK: asdict(network.config)})
    build_tokenizer().save(str(folder / TOKENIZER))


def save_reward(network: RahfNetwork, folder: Path) -> None:
    """Write a network so that `--rewards FOLDER` loads it."""
    save(network, folder)
    card = {
        "reward": "rewards.rahf.critic:Rahf",
        "args": {},
        "dimensions": list(SCORES),
        "licence": "Apache-2.0",
        "paper": "arXiv 2312.10240",
        "commercial": "yes",
        "sha256": {WEIGHTS: sha256(folder / WEIGHTS)},
    }
    write_json(folder / FOLDER_CARD, card)


@torch.no_grad()
def quality(network: RahfNetwork, held_out: Rich) -> dict[str, float]:
    """Pearson's correlation of each score with what people said."""
    critic = Rahf.of(network, build_tokenizer())
    scores = critic(held_out.pixels.float() / 255, held_out.captions).cpu().numpy().T
    return {
        f"PLCC {name}": float(np.corrcoef(found, said)[0, 1])
        for name, found, said in zip(SCORES, scores, held_out.scores.numpy().T, strict=True)
    }


@torch.no_grad()
def _errors(critic: Rahf, loss: RahfLoss, dev: Rich) -> dict[str, float]:
    """The parts of the loss and the correlation of each score on pictures of captions that nobody trains on."""
    device = critic.network.projection.bias.device
    rows = np.arange(len(dev.captions))
    batch = _batch(dev, rows, dev.captions, list(dev.pixels), list(dev.marks), device)
    parts = loss.parts(critic.network, batch, torch.Generator().manual_seed(0))
    return {name: float(value) for name, value in parts.items()} | quality(critic.network, dev)
