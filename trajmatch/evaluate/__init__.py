"""Evaluation of a set of images: train fresh networks on it by a fixed protocol and test them."""

from trajmatch.importing import lazily

_MODULES = {
    "trajmatch.evaluate.baselines": "TrainingSets herding k_center random_subset",
    "trajmatch.evaluate.config": "EvalConfig",
    "trajmatch.evaluate.distilled": "evaluate_artifact",
    "trajmatch.evaluate.scores": "Score evaluate_set robust_score",
    "trajmatch.inference": "accuracy",
    "trajmatch.protocol": "PROTOCOLS Protocol",
    "trajmatch.training": "Outcome train train_fresh",
}
__all__ = " ".join(_MODULES.values()).split()
__getattr__ = lazily(__name__, _MODULES)
