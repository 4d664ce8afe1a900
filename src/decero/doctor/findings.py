"""Define the findings that checks report."""

from dataclasses import dataclass
from typing import Literal

from decero.errors import UserError


class NotExaminedError(UserError):
    """Refuse what is no run, and what the doctor must not open."""


Severity = Literal["ok", "note", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """Hold one finding of a check.

    check: name of the check. what: the finding, with numbers. where: split, row, layer or setting.
    mend: how to fix it; empty if nothing is wrong.
    severity: `note` is worth knowing, `warn` costs quality or time, `bad` means that the run cannot work or that its
    results are wrong.
    """

    check: str
    severity: Severity
    what: str
    where: str = ""
    mend: str = ""

    def line(self) -> str:
        """Return the finding as one line, even if its parts contain line breaks."""
        message = "; ".join(part for part in (self.what, self.mend) if part)
        whole = f"{self.severity:<5} {self.check:<11} {f'{self.where}: ' if self.where else ''}{message}"
        return " ".join(whole.splitlines())


def percent(share: float) -> str:
    """Format 0.031 as `3.1 %`. A small share above zero gives `under 0.1 %`, not 0.0 %."""
    return "under 0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")
