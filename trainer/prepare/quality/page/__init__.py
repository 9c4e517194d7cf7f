"""What was found in a text as one HTML page."""
