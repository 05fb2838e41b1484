"""A model that reads the same words before every prompt: the model itself, asked for longer prompts."""

import torch

from align.model import Sampling, TextToImage
from align.prefixed import Prefixed

PROMPTS, SEEDS, SAMPLING = ["a cat", "two dogs"], [1, 2], Sampling(2, 3.0, "a cow")


def test_it_draws_and_reads_what_the_model_does_with_the_words_before_the_prompt(tiny_model: TextToImage) -> None:
    odd, longer = Prefixed(tiny_model, "odd "), ["odd a cat", "odd two dogs"]
    assert torch.equal(odd.encode_prompts(PROMPTS), tiny_model.encode_prompts(longer))
    images = odd.sample(PROMPTS, SEEDS, SAMPLING)
    assert torch.equal(images, tiny_model.sample(longer, SEEDS, SAMPLING))
    assert not torch.equal(images, tiny_model.sample(PROMPTS, SEEDS, SAMPLING))
    masks = torch.ones(2, 16, 16)
    assert torch.equal(
        odd.inpaint(images, masks, PROMPTS, SEEDS, 1.0, SAMPLING),
        tiny_model.inpaint(images, masks, longer, SEEDS, 1.0, SAMPLING),
    )
    assert odd.count_truncated(["x" * 20]) == 1 and tiny_model.count_truncated(["x" * 20]) == 0


def test_all_else_is_the_models(tiny_model: TextToImage) -> None:
    odd, images = Prefixed(tiny_model, "odd "), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents, t = tiny_model.encode_images(images), torch.tensor([3, 900])
    noise, words = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)), odd.encode_prompts(PROMPTS)
    assert torch.equal(odd.encode_images(images), latents)
    assert torch.equal(odd.decode_latents(latents), tiny_model.decode_latents(latents))
    assert torch.equal(odd.add_noise(latents, noise, t), tiny_model.add_noise(latents, noise, t))
    assert torch.equal(odd.predict(latents, t, words), tiny_model.predict(latents, t, words))
    assert torch.equal(odd.target(latents, noise, t), tiny_model.target(latents, noise, t))
    assert torch.equal(odd.snr(t), tiny_model.snr(t))
    assert odd.denoiser is tiny_model.denoiser


def test_pictures_of_other_words_are_of_another_model(tiny_model: TextToImage) -> None:
    prints = {Prefixed(tiny_model, words).fingerprint for words in ("odd ", "even ")}
    assert len(prints | {tiny_model.fingerprint}) == 3
