"""Distillation: learn synthetic images, by default so that students reproduce expert trajectories.

`loop` runs a distillation. Its parts are modules of their own, such as `objectives` and `guard`.
"""

from trajmatch.importing import lazily

# Lazy: the command line reads the configuration and should not wait for the import of torch.
_MODULES = {"trajmatch.distill.config": "DistillConfig", "trajmatch.distill.loop": "distill"}
__all__ = " ".join(_MODULES.values()).split()
__getattr__ = lazily(__name__, _MODULES)
