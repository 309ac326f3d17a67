"""The independent oracle: the models' definitions in NumPy loops, sharing nothing with the engine but the spec's JSON form."""
