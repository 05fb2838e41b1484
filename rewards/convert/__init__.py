"""From the authors' checkpoints to the folders that `rewards` reads: other names, safetensors, a configuration."""
