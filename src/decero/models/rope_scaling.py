"""Stretch rotary positions to longer texts: `rope_parameters` of a configuration, with the names of transformers.

linear: positions are divided by `factor` (Chen et al. 2023). dynamic: the base grows with the text, beyond
`max_position_embeddings` (NTK-aware). yarn: fast waves stay, slow ones are divided (Peng et al. 2023, section 3).
llama3: the same with other borders (Grattafiori et al. 2024). The formulas are those of transformers.
"""

import math
from difflib import get_close_matches

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

YARN = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
KEYS = {  # rope_type -> what it needs, and what it may have
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": ({"factor", "original_max_position_embeddings"}, YARN),
    "llama3": ({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}, set()),
}
COUNTS = ("original_max_position_embeddings",)
SWITCHES = ("truncate",)


class RopeSettings:
    """Hold what transformers' formulas read of a configuration. They would write into ours."""

    def __init__(self, config):
        self.hidden_size, self.num_attention_heads = config.hidden_size, config.num_attention_heads
        self.head_dim, self.max_position_embeddings = config.head_dim, config.max_position_embeddings
        self.rope_parameters = {**config.rope_parameters, "rope_theta": config.rope_theta}

    def standardize_rope_params(self):
        """Do nothing: our configuration has only the new format."""


def scaled_rotary_positions(position_ids_BL, config):
    """Return cosines and sines with the frequencies of `rope_parameters`, (batch, 1, length, head size) each.

    Dynamic frequencies are a function of the longest text of the batch. Stock models also remember longer ones.
    """
    formula = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    frequency_K, factor = formula(RopeSettings(config), position_ids_BL.device, seq_len=position_ids_BL.max() + 1)
    angle_B1LK = (position_ids_BL[..., None].float() * frequency_K).repeat(1, 1, 2).unsqueeze(1)
    return angle_B1LK.cos() * factor, angle_B1LK.sin() * factor


def one_rope(parameters, theta, default):
    """Return `rope_parameters` without its base, or None if they scale nothing; and the base.

    theta: `rope_theta` of the configuration. Raises ValueError if both state a base, and not the same.
    """
    parameters = dict(parameters or {})
    stated = parameters.pop("rope_theta", None)
    if stated is not None and stated != theta and theta != default:
        raise ValueError(f"rope_theta {theta} and rope_parameters.rope_theta {stated} differ; set only rope_theta")
    plain = {**parameters, "rope_type": parameters.get("rope_type", parameters.get("type", "default"))}
    scaling = None if plain.items() <= {"rope_type": "default", "type": "default"}.items() else parameters
    return scaling, theta if stated is None else stated


def check_rope(config):
    """Raise ValueError for `rope_parameters` that cannot be computed; transformers would only warn, or fail later."""
    parameters = config.rope_parameters
    if not parameters:
        return
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        names = ", ".join(sorted(parameters.keys() - {"rope_type", "type"}))
        raise ValueError(f"rope_parameters: rope_type default does not read {names}; set it to {' or '.join(KEYS)}")
    if kind not in KEYS:
        raise ValueError(f"rope_parameters: unknown rope_type {kind}{nearest(kind, tuple(KEYS))}")
    if config.position_embedding_type != "rotary":
        raise ValueError(
            f"rope_parameters scale rotary positions, and position_embedding_type is {config.position_embedding_type}; "
            "set it to rotary, or remove rope_parameters"
        )
    needed, possible = KEYS[kind]
    for name in sorted(needed - parameters.keys()):
        raise ValueError(f"rope_parameters: rope_type {kind} needs {name}; add it")
    for name in sorted(parameters.keys() - needed - possible - {"rope_type", "type"}):
        known = sorted(needed | possible)
        told = "; set rope_theta of the model instead" if name == "rope_theta" else nearest(name, known)
        raise ValueError(f"rope_parameters: rope_type {kind} does not read {name}{told}")
    for name in sorted(needed | (possible & parameters.keys())):
        check_value(name, parameters[name], name in possible)
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        pair = parameters.get(low) or 1, parameters.get(high) or 32
        if pair[0] >= pair[1]:
            raise ValueError(f"rope_parameters: {high} {pair[1]} must be larger than {low} {pair[0]}")
    if kind == "dynamic" and config.head_dim <= 2:
        raise ValueError(f"rope_parameters: rope_type dynamic needs a head_dim above 2, and it is {config.head_dim}")


def check_value(name, value, optional):
    """Raise ValueError for a value that is no positive number; `factor` is at least 1."""
    if (optional and value is None) or (name in SWITCHES and isinstance(value, bool)):
        return
    number = isinstance(value, int if name in COUNTS else (int, float)) and not isinstance(value, bool)
    least = 1 if name == "factor" or name in COUNTS else 0
    if name in SWITCHES or not number or not math.isfinite(value) or value < least or value == 0:
        wanted = "true or false" if name in SWITCHES else "a whole number from 1" if name in COUNTS else "a number"
        wanted += " from 1" if name == "factor" else " above 0" if wanted == "a number" else ""
        raise ValueError(f"rope_parameters: {name} is {value!r}; give {wanted}")


def nearest(name, known):
    """Return the nearest known name for an error message, or all of them."""
    near = get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; it is one of {', '.join(known)}"
