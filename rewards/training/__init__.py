"""What training a reward needs beyond a loop: its losses and batches."""
