"""What a checkpoint is worth on given texts, and on tasks."""
