"""Train the models that ship with the sandbox, from nothing: `python -m sandbox.build NAME`."""
