"""What a check has to say."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """check: which one found it. what: in figures. where: split, row, layer, setting. mend: nothing when all is well.

    note: worth knowing. warn: costs quality or time. bad: the run cannot do what it is for, or its figures are untrue.
    """

    check: str
    severity: Severity
    what: str
    where: str = ""
    mend: str = ""

    def line(self) -> str:
        """One line of text, whatever the parts hold."""
        said = "; ".join(part for part in (self.what, self.mend) if part)
        whole = f"{self.severity:<5} {self.check:<11} {f'{self.where}: ' if self.where else ''}{said}"
        return " ".join(whole.splitlines())


def percent(share: float) -> str:
    """0.031 -> `3.1 %`; a share that is not zero never reads as 0.0 %."""
    return "under 0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")
