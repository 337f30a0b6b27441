"""What can go wrong with the bundle; every text is a sentence for the person who runs the node."""

from __future__ import annotations


class BundleError(Exception):
    """The bundle cannot be made, found or used."""


class BundleDamaged(BundleError):
    """A bundle is there, but it is not what its name says: a file was changed, added, lost, or is open to others."""


class PlaceRefused(BundleError):
    """The directory is no place for files that run as root in every sandbox."""


class UnknownFormat(BundleError):
    """A sound bundle of a version of this program that lays it out differently."""
