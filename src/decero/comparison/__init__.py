"""Contenders x seeds x label budgets under one recipe."""
