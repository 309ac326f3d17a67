"""Directories of Hugging Face transformers, read without their library."""
