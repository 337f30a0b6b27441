"""The embedded control plane: a development server in memory that speaks the real server's wire."""
