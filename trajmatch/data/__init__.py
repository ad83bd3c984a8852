"""Labelled image sets by URI, their statistics, and the differentiable augmentation DSA."""

from trajmatch.data.dataset import Dataset
from trajmatch.data.dsa import DSA
from trajmatch.data.sources import SHIPPED, load_dataset, resolve_uri
from trajmatch.data.statistics import channel_statistics, denormalise, normalise, normaliser

__all__ = [
    "DSA",
    "SHIPPED",
    "Dataset",
    "channel_statistics",
    "denormalise",
    "load_dataset",
    "normalise",
    "normaliser",
    "resolve_uri",
]
