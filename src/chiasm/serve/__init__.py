"""HTTP API and gallery page."""
