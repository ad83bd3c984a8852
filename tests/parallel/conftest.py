"""The tiny data set and store of the distillation's tests, and programs started by torchrun."""
