"""What a run will need before it is launched: memory, time and cost, from its own config."""
