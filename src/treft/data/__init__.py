"""Rows of `messages`, and the published sets as such rows."""
