"""Dataset distillation: learn a small synthetic set that replaces the real training images."""

from trajmatch.importing import lazily

# Lazy: the command line reads the configuration and should not wait for the import of torch.
_MODULES = {"trajmatch.distill.config": "DistillConfig", "trajmatch.distill.loop": "distill"}
__all__ = " ".join(_MODULES.values()).split()
__getattr__ = lazily(__name__, _MODULES)
