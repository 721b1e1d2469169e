"""Breaks a running pipeline in every way there is, and holds what came of it against the oracle."""
