"""Synthetic OCT volumes."""
