"""A needle in a haystack: whether a model finds in a long text what it is asked for."""
