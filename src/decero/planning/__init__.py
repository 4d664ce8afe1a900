"""Estimate the cost of a run (operations, memory, time) and choose settings that fit a time budget."""
