"""Media -> vectors."""
