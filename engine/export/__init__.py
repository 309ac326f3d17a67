"""Checkpoint → files of other programs."""
