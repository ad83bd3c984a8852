"""Labelled image sets by URI, their statistics, and the differentiable augmentation DSA."""

from trajmatch.data.dataset import Dataset
from trajmatch.data.dsa import DSA
from trajmatch.data.preprocessing import ChannelNormalisation, Preprocessing, channel_statistics
from trajmatch.data.sources import SHIPPED, load_dataset, resolve_uri
from trajmatch.data.zca import ZCA

__all__ = [
    "DSA",
    "SHIPPED",
    "ZCA",
    "ChannelNormalisation",
    "Dataset",
    "Preprocessing",
    "channel_statistics",
    "load_dataset",
    "resolve_uri",
]
