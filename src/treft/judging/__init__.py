"""Judges: what they are asked, how their output is read, whether they are to be trusted."""
