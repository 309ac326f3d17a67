"""`python -m bench cpu`."""
