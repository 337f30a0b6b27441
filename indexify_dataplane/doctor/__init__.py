"""Checks whether this host has what the configuration asks for, and says what to do where it has not."""

from .examination import examine
from .finding import Finding, Grade
from .report import as_json, as_table, sound

__all__ = ["Finding", "Grade", "as_json", "as_table", "examine", "sound"]
