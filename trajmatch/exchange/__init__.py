"""Import and export: files of the papers' scripts, and common formats."""
