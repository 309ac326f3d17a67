"""Ranking heads by what they contribute, and pruning those that contribute least (arXiv 2108.08375)."""
