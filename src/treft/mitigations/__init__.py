"""Methods against over-generalisation, beside the key/value penalty (docs/mitigations.md)."""
