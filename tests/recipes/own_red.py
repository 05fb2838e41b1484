"""A reward of a user's own, as text, and what a command says."""

REWARD = """
import torch
from rewards.base import PixelReward
class Red(PixelReward):
    dimensions = ("red", "blue")
    differentiable = True
    def preprocess(self, image):
        return image.mean((1, 2), keepdim=True)
    def score_pixels(self, pixels, prompts):
        scores = pixels[:, [0, 2], 0, 0]
        return scores.masked_fill(scores > 0.9, float("nan"))
"""
"""Two dimensions, one image's red and blue; a bright red is not a number."""

Said = tuple[int, str, str]
"""Exit code, output and errors."""
