"""Scores and masks to better images and better models. Knows no reward, no recipe and no sandbox."""
