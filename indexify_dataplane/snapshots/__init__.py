"""Snapshots of file systems: a tar of the root, compressed with zstd, as one stream in either direction."""
