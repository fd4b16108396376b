"""Compiles the programs of a config for TPUs that are not there, and says what they would need and
take.
"""
