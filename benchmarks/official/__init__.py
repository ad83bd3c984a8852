"""The published programs of MTT and DATM, run unchanged beside trajmatch."""
