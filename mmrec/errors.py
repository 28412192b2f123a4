"""The errors of mmrec: each says what is wrong, where, and the command or edit that mends it."""


class MmrecError(Exception):
    """What is wrong and where, with `mend`, the command or edit that puts it right.

    >>> print(CatalogError("items.csv has no column 'id'.", mend="Rename the column that names the items to 'id'."))
    items.csv has no column 'id'.
    To mend it: Rename the column that names the items to 'id'.
    """

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}\nTo mend it: {self.mend}" if self.mend else self.message


class CatalogError(MmrecError):
    """The source of a catalog cannot be read at all; single bad items are quarantined instead."""


class InteractionsError(MmrecError):
    """A log cannot be read at all, or is used in a way it does not support; single bad rows are rejected instead."""


class StaleArtifact(MmrecError):
    """An artifact was made from other inputs or options than those now in the workspace."""


class DatasetMissing(MmrecError):
    """The files of a named dataset are not where they were looked for."""
