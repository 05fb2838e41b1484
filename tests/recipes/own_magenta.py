"""A critic of a user's own whose truth is known, as text: magenta is implausible, wherever it is."""

CRITIC = """
import torch
from rewards.base import Critic, Critique, join_maps
def heat_of(image):
    return ((image[0] > 0.9) & (image[1] < 0.1) & (image[2] > 0.9)).float()
class Magenta(Critic):
    dimensions = ("plausibility", "brightness")
    heatmaps = ("implausibility", "nothing")
    differentiable = False
    def preprocess(self, image):
        return image
    def __call__(self, images, prompts):
        return torch.stack([torch.stack([1 - heat_of(one).mean(), one.mean()]) for one in images])
    def critique(self, images, prompts):
        heat = [heat_of(one) for one in images]
        nothing = [torch.zeros_like(one) for one in heat]
        words = [prompt.split() for prompt in prompts]
        maps = {"implausibility": join_maps(heat), "nothing": join_maps(nothing)}
        return Critique(self(images, prompts), maps, words, [[True] + [False] * (len(row) - 1) for row in words])
"""
MAGENTA = (255, 0, 255)
