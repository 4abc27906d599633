"""Answers from a space: retrieval-augmented generation, graphs, language models."""
