"""Pages that need nothing else: what all of them have in common."""
