"""Figures of spaces and rankings: functions on arrays, no models."""
