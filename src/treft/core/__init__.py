"""The mechanism: keys and values heard, recorded, held (eq. (2), (3)) and patched (eq. (1))."""
