"""The Indexify Dataplane: runs sandboxes and function executors on one worker node."""

__version__ = "0.3.0"
