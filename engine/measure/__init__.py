"""What a user measures on their own model."""
