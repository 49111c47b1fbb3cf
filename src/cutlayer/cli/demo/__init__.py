"""`cutlayer demo`: everything real but the hospitals."""

from cutlayer.cli.demo.command import demo

__all__ = ["demo"]
