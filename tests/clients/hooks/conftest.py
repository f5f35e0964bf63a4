"""What the tests of hooks share."""

from tests.clients.hooks.small import recorder

__all__ = ["recorder"]
