"""The `torch` backend: plain PyTorch, exact and readable."""
