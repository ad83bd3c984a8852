"""Runs of several processes, started by torchrun and connected by torch.distributed."""

from trajmatch.parallel.launch import is_launched, joined, local_device
from trajmatch.parallel.ranks import ALONE, Ranks

__all__ = ["ALONE", "Ranks", "is_launched", "joined", "local_device"]
