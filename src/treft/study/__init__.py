"""Studies: claims as tables, made by steps that are computed once and kept (docs/studies.md)."""
