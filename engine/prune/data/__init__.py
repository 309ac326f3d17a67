"""Labelled sentences: readers of real formats, labels, pieces of words and scores."""
