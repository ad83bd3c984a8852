"""The measuring code of the programs in ``benchmarks/``.

Every figure is a ratio of times taken in one process in alternating rounds, of variants whose
results were compared in the same run.
"""

import os

from trajmatch.cli.main import SPIN_COUNT

# As in the program trajmatch; OpenMP reads it when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
