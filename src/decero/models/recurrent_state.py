"""Remember in a cache what a recurrent layer or a convolution needs of the tokens before."""

from transformers import Cache, StaticCache
from transformers.cache_utils import DynamicLayer


class StateLayer(DynamicLayer):
    """Hold the state of one layer as `keys` and `values`, (batch, ...), so that transformers moves and reorders it.

    Unlike keys and values of attention, it does not grow with the text, and no token can be taken back.
    """

    is_croppable = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.length = 0

    def update(self, key_states, value_states, length, **kwargs):
        """Replace the state, after `length` more tokens. Returns it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values, self.length = key_states, value_states, self.length + length
        return self.keys, self.values

    def get_seq_length(self):
        return self.length

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def reset(self):
        self.keys = self.values = None
        self.is_initialized, self.length = False, 0

    def crop(self, tokens_to_remove):
        raise ValueError("a recurrent state cannot take back tokens; read the text again")


def hold_states(cache, num_layers):
    """Have an empty cache hold states. `generate` of transformers hands caches for keys and values to every model.

    Raises ValueError for a cache of fixed size, and for one that holds keys and values.
    """
    if isinstance(cache, StaticCache):
        raise ValueError("a recurrent state has no static cache; set cache_implementation to dynamic")
    if all(type(layer) is StateLayer for layer in cache.layers) and cache.layers:
        return cache
    if any(layer.is_initialized for layer in cache.layers):
        raise ValueError("this cache holds keys and values of attention, not the states of a recurrent model")
    cache.layers = [StateLayer() for _ in range(num_layers)]
    return cache


def new_states(num_layers):
    """Return an empty cache for states."""
    return Cache(layers=[StateLayer() for _ in range(num_layers)])


def state_of(cache, layer_idx):
    """Return the state after the tokens before, a pair of tensors, or None at the first token."""
    layer = None if cache is None else cache.layers[layer_idx]
    return (layer.keys, layer.values) if layer is not None and layer.is_initialized else None
