"""The measuring code of ``trajmatch bench`` and of ``benchmarks/``.

Every figure is a ratio of times taken in one process in alternating rounds, of variants whose
results were compared in the same run.
"""
