"""Readers of data sets. Every module has a table ``SOURCES``: source name to reader."""
