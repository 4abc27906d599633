"""Pairs -> a space: objectives, fusion, alignment, and the shared core that they train on."""
