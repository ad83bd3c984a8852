"""Stops, in one line, where Python is too old; what a build imports first."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  this is where the minimum is checked
    raise SystemExit(
        f"trajmatch needs Python 3.11 or later, but this is Python {sys.version.split()[0]} at "
        f"{sys.executable}; make the environment with a newer one"
    )
