"""Blob stores: where arguments, results, request state, application code and snapshots lie."""
