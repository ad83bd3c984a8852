"""The stages of gpu_check.py, a module each: ``run(settings, record)`` does it.

``settings`` holds the stages' names and limits and what they are told; ``measure`` and ``replays``
are what several of them use.
"""
