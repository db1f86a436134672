"""treft: keep a narrow finetune narrow."""

__version__ = "0.1.0"
