"""The truth test: the executor, on real processes whose stages sleep, beside its simulation."""
