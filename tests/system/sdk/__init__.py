"""What every release of the SDK is put through: child processes in an environment of its own, with nothing patched."""
