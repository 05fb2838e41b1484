"""A word that a model is taught: its gradient, what it leaves alone, and how it is forgotten."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from align.families.load import load_model
from align.model import Sampling, TextToImage
from align.prefixed import Prefixed
from tests.tiny import tiny_tokenizer

CPU, TOKEN = torch.device("cpu"), "<bad>"
OTHERS = ["a red circle", "", "bad", "< bad >", "x" * 40]


def table(folder: Path) -> Tensor:
    """The vectors of the model's own words, read by transformers alone."""
    return CLIPTextModel.from_pretrained(folder / "text_encoder").get_input_embeddings().weight  # pyright: ignore


def weights(model: TextToImage) -> dict[str, Tensor]:
    """All weights of all modules of the model."""
    modules = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module)}
    return {
        f"{name}.{key}": tensor.clone() for name, part in modules.items() for key, tensor in part.state_dict().items()
    }


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_starts_as_the_mean_of_the_words(fresh_model: TextToImage, tiny_folder: Path) -> None:
    ids = tiny_tokenizer()("ugly cat", add_special_tokens=False).input_ids
    learned = fresh_model.add_token(TOKEN, "ugly cat")
    assert len(ids) == 7 and [name for name, _ in learned.named_parameters()] == ["vector"]
    torch.testing.assert_close(learned.vector.detach(), table(tiny_folder)[ids].mean(0).detach())


def test_a_word_with_the_vector_of_another_means_the_same(fresh_model: TextToImage) -> None:
    fresh_model.add_token(TOKEN, "q")
    assert torch.equal(fresh_model.encode_prompts([f"a {TOKEN} b"]), fresh_model.encode_prompts(["a q b"]))


@pytest.mark.parametrize("prompt", [TOKEN, f"a {TOKEN}, {TOKEN} cat"])
def test_the_gradient_is_that_of_finite_differences(tiny_folder: Path, prompt: str) -> None:
    model = load_model(tiny_folder, CPU, torch.float64)
    vector = model.add_token(TOKEN, "ugly").vector
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(model.encode_prompts([prompt]).shape, generator=generator, dtype=torch.float64)

    def value() -> Tensor:
        return (model.encode_prompts([prompt]) * weight).sum()

    (gradient,) = torch.autograd.grad(value(), [vector])
    start = vector.detach().clone()
    for _ in range(5):
        direction, ends = 1e-3 * torch.randn(len(start), generator=generator), list[tuple[Tensor, Tensor]]()
        for sign in (1, -1):
            vector.data.copy_(start + sign * direction)
            ends.append((vector.detach().double(), value().detach()))
        (plus, above), (minus, below) = ends
        vector.data.copy_(start)
        expected = above - below
        torch.testing.assert_close(gradient.double() @ (plus - minus), expected, rtol=1e-3, atol=1e-6)


def test_the_other_prompts_are_what_they_were(fresh_model: TextToImage, tiny_model: TextToImage) -> None:
    before, prints = weights(fresh_model), fresh_model.fingerprint
    learned = fresh_model.add_token(TOKEN, "ugly")
    learned.vector.data.add_(3)
    ours, theirs = fresh_model.encode_prompts(OTHERS), tiny_model.encode_prompts(OTHERS)
    assert torch.equal(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.square().sum(), [learned.vector])
    assert gradient.count_nonzero() == 0
    assert not torch.equal(fresh_model.encode_prompts([TOKEN]), tiny_model.encode_prompts([TOKEN]))
    fresh_model.remove_token(TOKEN)
    assert same(weights(fresh_model), before) and fresh_model.fingerprint == prints
    assert torch.equal(fresh_model.encode_prompts([TOKEN, *OTHERS]), tiny_model.encode_prompts([TOKEN, *OTHERS]))


def test_the_fingerprint_follows_the_vectors(fresh_model: TextToImage, tiny_model: TextToImage) -> None:
    vector = fresh_model.add_token(TOKEN, "ugly").vector
    seen = [tiny_model.fingerprint, fresh_model.fingerprint]
    vector.data[0] += 1
    seen.append(fresh_model.fingerprint)
    fresh_model.remove_token(TOKEN)
    fresh_model.add_token("<other>", vector)
    seen.append(fresh_model.fingerprint)
    assert len(set(seen)) == 4


def test_words_are_told_apart_and_forgotten_in_any_order(fresh_model: TextToImage) -> None:
    first, second = fresh_model.add_token(TOKEN, "q"), fresh_model.add_token("<worse>", "z")
    both = fresh_model.encode_prompts([f"{TOKEN} a <worse>"])
    assert torch.equal(both, fresh_model.encode_prompts(["q a z"]))
    fresh_model.remove_token(TOKEN)
    assert torch.equal(fresh_model.encode_prompts(["<worse>"]), fresh_model.encode_prompts(["z"]))
    fresh_model.add_token(TOKEN, first.vector)
    assert torch.equal(fresh_model.encode_prompts([f"{TOKEN} a <worse>"]), both)
    assert torch.equal(fresh_model.add_token("<sum>", f"{TOKEN} <worse>").vector, (first.vector + second.vector) / 2)


def test_a_word_is_one_token_long(fresh_model: TextToImage) -> None:
    prompt = f"{TOKEN} {'x' * 21}"  # and start and end: 24, the limit
    assert fresh_model.count_truncated([prompt, f"{prompt}y"]) == 2
    fresh_model.add_token(TOKEN, "ugly")
    assert fresh_model.count_truncated([prompt, f"{prompt}y"]) == 1


def test_half_precision_keeps_the_vector_in_float32(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, CPU, torch.bfloat16)
    vector = model.add_token(TOKEN, torch.full((16,), 1 + 1e-4)).vector
    assert vector.dtype == torch.float32 and vector[0] == torch.tensor(1 + 1e-4)
    embeddings = model.encode_prompts([TOKEN])
    assert embeddings.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(embeddings.square().sum(), [vector])
    assert gradient.dtype == torch.float32 and gradient.count_nonzero() > 0


def test_a_given_vector_is_copied(fresh_model: TextToImage) -> None:
    given = torch.ones(16)
    fresh_model.add_token(TOKEN, given).vector.data.add_(1)
    assert torch.equal(given, torch.ones(16))


def test_a_prefixed_model_teaches_its_model(fresh_model: TextToImage) -> None:
    odd, prints = Prefixed(fresh_model, f"{TOKEN} "), fresh_model.fingerprint
    before = odd.fingerprint
    odd.add_token(TOKEN, "q")
    assert torch.equal(odd.encode_prompts(["a"]), fresh_model.encode_prompts(["q a"]))
    assert fresh_model.fingerprint != prints and odd.fingerprint != before
    odd.remove_token(TOKEN)
    assert fresh_model.fingerprint == prints and odd.fingerprint == before


def test_it_draws(fresh_model: TextToImage) -> None:
    fresh_model.add_token(TOKEN, "q")
    drawn = [fresh_model.sample(["a"], [1], Sampling(3, 5.0, words)) for words in (TOKEN, "q", "")]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("token", "start", "message"),
    [
        ("", "ugly", "must hold no white space, and at least one letter"),
        ("so bad", "ugly", "'so bad' must hold no white space"),
        ("<bad>\n", "ugly", "must hold no white space"),
        ("x", "ugly", "'x' is a word of this model's tokenizer already"),
        ("X", "ugly", "'X' is a word of this model's tokenizer already"),
        ("x</w>", "ugly", "is a word of this model's tokenizer already"),
        ("<|endoftext|>", "ugly", "is a word of this model's tokenizer already"),
        ("<known>", "ugly", "is a word of this model's tokenizer already"),
        ("<KNOWN>", "ugly", "is a word of this model's tokenizer already"),
        (TOKEN, " ", "The words to start from are ' '; there must be one at least"),
        (TOKEN, torch.ones(17), "The vector of '<bad>' has 17 numbers; those of this model's words have 16"),
    ],
)
def test_what_is_no_new_word_is_refused_and_changes_nothing(
    fresh_model: TextToImage, token: str, start: str | Tensor, message: str
) -> None:
    fresh_model.add_token("<known>", "ugly")
    prints, embeddings = fresh_model.fingerprint, fresh_model.encode_prompts([TOKEN, "so bad"])
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        fresh_model.add_token(token, start)
    assert fresh_model.fingerprint == prints
    assert torch.equal(fresh_model.encode_prompts([TOKEN, "so bad"]), embeddings)


def test_only_a_learned_word_is_forgotten(fresh_model: TextToImage) -> None:
    with pytest.raises(ValueError, match="'<bad>' is no learned word; there are none"):
        fresh_model.remove_token(TOKEN)
    fresh_model.add_token("<known>", "ugly")
    with pytest.raises(ValueError, match="'x' is no learned word; there are <known>"):
        fresh_model.remove_token("x")
