"""Which tokens of a rendered conversation are prefix, query, postfix and response."""
