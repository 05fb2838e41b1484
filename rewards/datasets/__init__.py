"""Readers of what people said of images, and how their remarks become one."""
