"""decero: pretrain a Transformer from zero, compare it fairly, publish it.

Importing decero makes its models known to transformers' Auto classes. transformers takes seconds to import, and
`--help` does not need it: the models are registered when transformers is imported, before or after decero. In the same
way, peft learns which layers LoRA adapts.
"""

import wrapt

__version__ = "0.1.0"


@wrapt.when_imported("transformers")
def _register_models(_module) -> None:
    import decero.models  # noqa: F401


@wrapt.when_imported("peft")
def _name_lora_targets(peft) -> None:
    """Adapt queries and values where no target_modules are given, as peft does for Llama (Hu et al. 2021, table 5)."""
    for kind in ("decero_encoder", "decero_decoder", "decero_encoder_decoder"):
        peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(kind, ["q_proj", "v_proj"])
