"""What `unival.evaluate` is made of: answers, predictions on disk, provenance, official result files."""
