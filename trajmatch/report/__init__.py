"""The report of a run: one HTML file that needs nothing else, not even a network.

What a run left is read (`run`, `history`, `scores`), drawn (`charts`, `images`) and put in sections
(`sections`) of a page (`page`). All markup is made by `html`, which escapes every text.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajmatch.report.config import ReportConfig
    from trajmatch.report.page import write_report

__all__ = ["ReportConfig", "write_report"]

# Loaded when first used: the configuration is read by command lines that should not wait for torch.
_MODULES = {"ReportConfig": "config", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
