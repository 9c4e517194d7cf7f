"""What is in a text before it is prepared: repeats, evaluation texts, what kind of text it is."""
