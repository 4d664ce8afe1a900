"""Change a folder, and check that its import is refused."""

import json

import pytest

from decero.errors import UserError
from decero.hub.convert import import_model


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))


def refused(source, out, said):
    """Check that an import is refused with this message and leaves no files; return the message."""
    before = set(out.parent.iterdir())
    with pytest.raises(UserError, match=said) as refusal:
        import_model(source, out)
    assert set(out.parent.iterdir()) == before
    return str(refusal.value)
