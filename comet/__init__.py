"""Stage 2 of comet: students from a cache. Never loads a teacher."""

from comet.distill import Distilled, StudentConfig, distill, open_for_training
from comet.trainer import DistillationTrainer

__all__ = ["Distilled", "DistillationTrainer", "StudentConfig", "distill", "open_for_training"]
