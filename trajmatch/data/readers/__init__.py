"""Readers of data sets; the table ``SOURCES`` of each module maps source names to readers."""
