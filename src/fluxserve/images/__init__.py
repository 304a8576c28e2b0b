"""Bytes and pixels: reading, checking, fetching and writing pictures."""
