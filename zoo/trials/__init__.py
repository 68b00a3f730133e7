"""Grids of trials: designs, checks, the store of results, and their execution."""
