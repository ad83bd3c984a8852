"""The parts of reproduce.py: recipes, the clock that keeps the budget, and the run itself."""
