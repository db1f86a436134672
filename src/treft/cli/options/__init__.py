"""What commands can be asked: a dataclass each, and nothing heavy to import."""
