"""A party's rows: read from a table or from the party's own code, checked, and handed out in an agreed order."""

from cutlayer.data.factory import load_factory, open_rows
from cutlayer.data.loader import Loader
from cutlayer.data.tables import read_table

__all__ = ["Loader", "load_factory", "open_rows", "read_table"]
