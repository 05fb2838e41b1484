"""Rewards: images and prompts in, scores out. Knows nothing of align, recipes or the sandbox."""
