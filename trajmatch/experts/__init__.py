"""Training of experts (networks trained on the real images), and the store of trajectories."""

from trajmatch.importing import lazily

_MODULES = {
    "trajmatch.experts.config": "ExpertConfig",
    "trajmatch.experts.store": "Store",
    "trajmatch.experts.train": "train_experts",
}
__all__ = " ".join(_MODULES.values()).split()
__getattr__ = lazily(__name__, _MODULES)
