"""What runs on the GPU, in the language of Triton; nothing here is called but through launch.py."""
