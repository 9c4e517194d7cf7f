"""Preparing text: from documents in files to shards of tokens."""
