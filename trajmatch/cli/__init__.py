"""Command line: parse arguments into a configuration, run the command, show its progress."""
