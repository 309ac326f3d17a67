"""`python -m bench gpu`: everything measured on one GPU within ten minutes, each figure behind its gate; or tried in the interpreter."""
