"""A small world where the truth is known: scenes, gold measurements, simulated annotators and the models that ship."""
