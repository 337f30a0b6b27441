"""Containers of a Docker engine. Imported only where the configuration names it: docker-py is not small."""
