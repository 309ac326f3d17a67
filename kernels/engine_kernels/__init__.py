"""The ops of Headcount: a contract (`ops`), a reference in plain PyTorch, and the native implementations. Knows tensors, never a model."""
