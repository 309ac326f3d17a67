"""The `triton` and `cuda` backends: one runner over two sets of kernels."""
