"""Work in steps whose results are kept: what decides them, where they lie, what runs them."""
