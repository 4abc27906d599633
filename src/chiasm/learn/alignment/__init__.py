"""Spaces that grow and change: a further modality, a newer model, without touching what is there. One room a method."""
