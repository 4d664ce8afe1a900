"""decero: pretrain a Transformer from zero, compare it fairly, publish it.

Importing decero makes its models known to transformers' Auto classes. transformers takes seconds to import, and
`--help` does not need it: the models are registered when transformers is imported, before or after decero.
"""

import wrapt

__version__ = "0.1.0"


@wrapt.when_imported("transformers")
def _register_models(_module) -> None:
    import decero.models  # noqa: F401
