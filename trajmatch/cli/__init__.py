"""The command line: arguments to configuration, configuration to calls, progress."""
