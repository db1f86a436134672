"""Models loaded, asked and looked into."""
