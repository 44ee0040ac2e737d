"""Stage 2 of comet: students from a cache. Never loads a teacher."""

from comet.distillation import distill, open_for_training
from comet.settings import Distilled, StudentConfig
from comet.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Distilled", "StudentConfig", "distill", "open_for_training"]
