"""Store, index, query, calibrated relevance."""
