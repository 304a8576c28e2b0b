"""What computes: each engine turns jobs into images."""
