"""`python -m bench encoder`."""
