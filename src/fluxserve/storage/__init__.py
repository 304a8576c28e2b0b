"""The store and the blobs, made real: what was accepted is still there after a crash."""
