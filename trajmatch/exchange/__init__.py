"""Files of other programs: the papers' scripts in and out, and formats that anything can read."""
