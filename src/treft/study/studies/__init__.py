"""One study a file: a claim of the paper, its steps, and how their results are read."""
