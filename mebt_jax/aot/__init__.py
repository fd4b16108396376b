"""Compiles the programs of a config for TPUs that need not be there: memory, work, least time."""
