"""The parts of compare_methods.py: methods, the choice of real images, the run, and its table."""
