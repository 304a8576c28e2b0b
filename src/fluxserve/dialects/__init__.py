"""The HTTP APIs this server speaks, one file or folder each; this is their list."""
