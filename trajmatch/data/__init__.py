"""Labelled image sets, their preprocessing, and DSA, a differentiable augmentation."""

from trajmatch.data.dataset import Dataset as Dataset
from trajmatch.data.dsa import DSA as DSA
from trajmatch.data.preprocessing import ChannelNormalisation as ChannelNormalisation
from trajmatch.data.preprocessing import Preprocessing as Preprocessing
from trajmatch.data.preprocessing import channel_statistics as channel_statistics
from trajmatch.data.sources import SHIPPED as SHIPPED
from trajmatch.data.sources import load_dataset as load_dataset
from trajmatch.data.sources import resolve_uri as resolve_uri
from trajmatch.data.zca import ZCA as ZCA
