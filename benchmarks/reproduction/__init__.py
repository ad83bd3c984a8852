"""The parts of reproduce.py: the plan, the clock that keeps the budget, and the run itself."""
