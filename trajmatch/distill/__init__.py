"""Distillation: synthetic images on which a student follows the experts' trajectories.

A run is put together from parts, each in its own module: what the set is learned for
(`objectives`, with the `terms` of the matching loss), the first images (`initialise`), what is
learned and how (`parameters`), one outer iteration (`iteration`), the guard against what is not
finite (`guard`), the choice of the result (`selection`), and the `loop` that calls them.
"""

from trajmatch.lazy import lazily

# Loaded when first used: the configuration is read by command lines that should not wait for torch.
_MODULES = {"trajmatch.distill.config": "DistillConfig", "trajmatch.distill.loop": "distill"}
__all__ = " ".join(_MODULES.values()).split()
__getattr__ = lazily(__name__, _MODULES)
