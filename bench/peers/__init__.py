"""Other ways to run the same weights, each a Runner, so that gate and clock treat them as they treat our own."""
