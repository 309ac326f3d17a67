"""Source formats: files that a training program wrote → Checkpoint."""
