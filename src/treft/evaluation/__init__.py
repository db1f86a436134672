"""Evaluation: Inspect tasks, a provider that patches, judges, statistics, reports.

Needs the extra `treft[eval]`; the statistics need numpy and scipy alone.
"""
