"""Finetuning with TReFT: TRL's SFT classes plus the key/value penalty (needs `treft[train]`)."""

from treft.training.config import TReFTConfig
from treft.training.trainer import TReFTTrainer

__all__ = ["TReFTConfig", "TReFTTrainer"]
