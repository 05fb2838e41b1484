"""The families of text-to-image models, one file each: within align, the only doors to diffusers' pipelines."""
