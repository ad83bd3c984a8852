"""Import and export of files of the papers' scripts, and export to common formats."""
