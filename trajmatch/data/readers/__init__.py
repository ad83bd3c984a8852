"""Readers of data sets: every module here has a table ``SOURCES``, by the names of its sources."""
