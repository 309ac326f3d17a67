"""The `triton` backend's operations: kernels for every GPU Triton knows, and under TRITON_INTERPRET=1 for tests without one."""
