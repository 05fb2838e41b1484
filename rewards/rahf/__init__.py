"""RAHF: scores, defect heatmaps and misaligned words of an image (Liang et al., arXiv 2312.10240)."""
