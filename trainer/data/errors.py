"""The one error of the data: a line that says what is wrong, where, and what to set instead."""


class DataError(Exception):
    """The corpus cannot be read or used; the message is one line for the person at the console."""
