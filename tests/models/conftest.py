"""Share prime sizes, a padded batch and large weights, which make errors visible."""

import itertools

import pytest
import torch

from decero.models import DeceroEncoderConfig

# Prime, or odd times odd: a swapped axis meets another size. The head size is even because rotary turns pairs.
SIZES = {
    "vocab_size": 37,
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "head_dim": 14,
    "intermediate_size": 41,
    "max_position_embeddings": 17,
}

# Stock BERT's names -> ours, applied in this order to each parameter's name.
BERT_NAMES = {
    "bert.pooler.dense": "model.pooler.dense",
    "bert.": "model.",
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions.embed_positions",
    "embeddings.token_type_embeddings": "embed_token_types",
    "embeddings.LayerNorm": "embed_norm",
    "encoder.layer.": "layers.",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.o_proj",
    "attention.output.LayerNorm": "post_attn_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "post_mlp_norm",
    "cls.predictions.transform.dense": "lm_head.transform.0",
    "cls.predictions.transform.LayerNorm": "lm_head.transform.2",
    "cls.predictions.decoder": "lm_head.decoder",
    "cls.predictions.bias": "lm_head.decoder.bias",
}


def in_pairs(every):
    """Return all combinations of slots as cases: slow ones, and few in which any two values of two slots meet."""
    pairs = [set(itertools.combinations(combination.items(), 2)) for combination in every]
    missing, few = set().union(*pairs), set()
    while missing:
        best = max(range(len(every)), key=lambda number: len(pairs[number] & missing))
        few.add(best)
        missing -= pairs[best]
    return [
        pytest.param(
            combination, id="-".join(map(str, combination.values())), marks=[] if n in few else pytest.mark.slow
        )
        for n, combination in enumerate(every)
    ]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Use one thread: small matrices are slower on two, ten times if the second core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed():
    torch.default_generator.manual_seed(7)


@pytest.fixture
def make_config():
    """Make a configuration with prime sizes; fields and class can be replaced."""
    return lambda config_class=DeceroEncoderConfig, **fields: config_class(**{**SIZES, **fields})


@pytest.fixture
def randomize():
    """Redraw every parameter with std 0.3; at 0.02 the residual hides a wrong layer."""

    @torch.no_grad()
    def redraw(model, std=0.3, seed=11):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))
        return model

    return redraw


@pytest.fixture
def batch():
    """Three texts of 7, 5 and 2 tokens, padded on the right with 0."""
    input_ids = torch.randint(1, 37, (3, 7))
    attention_mask = (torch.arange(7) < torch.tensor([[7], [5], [2]])).long()
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


@pytest.fixture
def gradients():
    """Return name -> gradient after `backward`, for parameters that the loss reaches."""
    return lambda model: {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def rename():
    """Translate a stock name by a table of prefixes."""

    def apply(name, table=BERT_NAMES):
        for old, new in table.items():
            name = name.replace(old, new)
        return name

    return apply


@pytest.fixture
def bert_names():
    return BERT_NAMES
