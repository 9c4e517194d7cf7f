"""Prepared text: tokens in files of any size, written once and mapped into memory."""
