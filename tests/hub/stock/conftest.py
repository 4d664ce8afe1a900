"""Tiny stock models of every family and head: prime sizes, no dropout, weights large enough to show errors."""

from dataclasses import dataclass

import pytest
import torch
import transformers as hf

from decero.execution.saving import untie
from decero.hub.families import FAMILIES
from decero.hub.families.vision import DEIT_DISTILLED

TOKENS = {"pad_token_id": 0, "bos_token_id": 35, "eos_token_id": 36}
# Prime or odd sizes, so that swapped axes never match; even head sizes where rotary positions need pairs.
# No value equals its class's default, so that tests see an option that was not converted.
BERT = {
    "vocab_size": 37, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41,
    "max_position_embeddings": 17, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **TOKENS,
    "classifier_dropout": 0.0, "hidden_act": "relu", "layer_norm_eps": 1e-3, "initializer_range": 0.03,
    "type_vocab_size": 3,
}  # fmt: skip
T5 = {
    "vocab_size": 37, "d_model": 33, "d_kv": 7, "d_ff": 41, "num_layers": 2, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 11, "dropout_rate": 0.0,
    "layer_norm_epsilon": 1e-3, "pad_token_id": 2, "eos_token_id": 36,
}  # fmt: skip
VIT = {
    "image_size": 12, "patch_size": 3, "num_channels": 2, "encoder_stride": 3, "hidden_size": 33,
    "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41, "hidden_act": "relu",
    "layer_norm_eps": 1e-3, "initializer_range": 0.03,
}  # fmt: skip
DETR = {
    "backbone_config": {"model_type": "resnet", "embedding_size": 5, "hidden_sizes": [5, 7], "depths": [1, 1],
                        "layer_type": "basic", "num_channels": 2, "out_features": ["stage2"]},
    "d_model": 36, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
    "encoder_ffn_dim": 41, "decoder_ffn_dim": 41, "num_queries": 5, "dropout": 0.0, "activation_function": "gelu",
    "init_std": 0.03, "class_cost": 3, "eos_coefficient": 0.2,
}  # fmt: skip
SCALED = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}
OPTIONS = {
    "bert": BERT,
    "roberta": {
        **BERT, "pad_token_id": 2, "max_position_embeddings": 20, "type_vocab_size": 1, "hidden_act": "gelu",
    },
    "distilbert": {
        "vocab_size": 37, "dim": 33, "n_layers": 2, "n_heads": 3, "hidden_dim": 41, "max_position_embeddings": 17,
        "dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0, **TOKENS,
        "activation": "relu", "initializer_range": 0.03,
    },
    "electra": {**BERT, "embedding_size": 23, "hidden_act": "gelu"},
    "electra of one width": {"embedding_size": 33},
    "modernbert": {
        "vocab_size": 37, "hidden_size": 42, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 41,
        "max_position_embeddings": 17, "local_attention": 4, "cls_token_id": 35, "sep_token_id": 36, **TOKENS,
        "hidden_activation": "silu", "classifier_activation": "silu", "classifier_pooling": "mean", "norm_eps": 1e-3,
        "initializer_range": 0.03,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "modernbert with biases": {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
    "gpt2": {
        "vocab_size": 37, "n_embd": 33, "n_layer": 2, "n_head": 3, "n_inner": 41, "n_positions": 17, **TOKENS,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "silu",
        "layer_norm_epsilon": 1e-3, "initializer_range": 0.03, "classifier_dropout": 0.0,
    },
    "gpt2 unscaled, untied": {"scale_attn_weights": False, "tie_word_embeddings": False, "n_inner": None},
    "llama": {
        "vocab_size": 37, "hidden_size": 42, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 10,
        "num_key_value_heads": 1, "intermediate_size": 41, "max_position_embeddings": 17, **TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3, "hidden_act": "relu",
        "initializer_range": 0.03, "classifier_dropout": 0.0,
    },
    "stablelm": {
        "vocab_size": 37, "hidden_size": 42, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1,
        "intermediate_size": 41, "max_position_embeddings": 17, **TOKENS, "layer_norm_eps": 1e-3, "hidden_act": "relu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
        "initializer_range": 0.03,
    },
    "stablelm tied": {"tie_word_embeddings": True},
    "stablelm scaled": {"rope_parameters": {**SCALED, "partial_rotary_factor": 1.0}},
    "eurobert": {
        "vocab_size": 37, "hidden_size": 42, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 10,
        "num_key_value_heads": 1, "intermediate_size": 41, "max_position_embeddings": 17, **TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3, "hidden_act": "relu",
        "initializer_range": 0.03, "mask_token_id": 3,
    },
    "eurobert tied, with biases": {
        "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "classifier_pooling": "mean",
    },
    "eurobert of the first token": {"classifier_pooling": "bos"},
    "eurobert scaled": {"rope_parameters": SCALED},
    "llama tied, with biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "t5": {**T5, "num_decoder_layers": 3, "decoder_start_token_id": 35},
    "t5 encoder": {**T5, "feed_forward_proj": "gated-silu"},
    "t5 1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5 tied, unscaled": {"feed_forward_proj": "gated-silu", "scale_decoder_outputs": False},
    "t5 untied, scaled": {"scale_decoder_outputs": True},
    "marian": {
        "vocab_size": 37, "d_model": 33, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3,
        "decoder_attention_heads": 3, "encoder_ffn_dim": 41, "decoder_ffn_dim": 47, "max_position_embeddings": 17,
        "dropout": 0.0, "scale_embedding": True, "activation_function": "swish", "init_std": 0.03, **TOKENS,
        "forced_eos_token_id": 36, "decoder_start_token_id": 0,
    },
    "vit": VIT,
    "deit": VIT,
    "deit distilled": {},
    "detr": DETR,
    "detr auxiliary": {"auxiliary_loss": True},
}  # fmt: skip


FROZEN = ("final_logits_bias", "model.backbone", "model.stem")  # buffers: DETR's are its batch norms


@torch.no_grad()
def redraw(model):
    """Draw all parameters again, norms around 1. With std 0.02 the residual would hide a wrong layer."""
    scaled = getattr(model.config, "scale_attn_weights", model.config.model_type != "t5")
    std = 0.25 if scaled else 0.2  # larger unscaled scores would saturate the softmax
    generator = torch.Generator().manual_seed(11)
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.startswith(FROZEN)]
    for name, tensor in [*model.named_parameters(), *buffers]:
        if tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter):  # all but Marian's table of waves
            centre = 1.0 if any(n in name.lower() for n in ("norm", "ln_")) and name.endswith("weight") else 0.0
            tensor.copy_(centre + std * torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model


@dataclass(frozen=True)
class Case:
    variant: str  # a key of OPTIONS
    head: str

    @property
    def family(self):
        if self.variant == "deit distilled":
            return DEIT_DISTILLED
        ours = {"t5 encoder": "DeceroEncoder"}
        known = [family for family in FAMILIES if family.name == self.variant.split(" ")[0]]
        return next(family for family in known if ours.get(self.variant, family.ours) == family.ours)

    def config(self, **options):
        base = {} if self.variant == "t5 encoder" else OPTIONS[self.family.name]
        options = {**base, **OPTIONS[self.variant], **options}
        labels = 2 if self.head == "ForQuestionAnswering" else 5
        return hf.CONFIG_MAPPING[self.family.name](**options, num_labels=labels)

    def stock(self, **options):
        """The stock model with random parameters."""
        model = self.family.stock_class(self.head)(self.config(**options))
        if self.family.name == "detr":
            model.requires_grad_(True)  # it freezes its backbone
        if self.variant in ("t5 1.1", "t5 untied, scaled") and self.head == "ForConditionalGeneration":
            untie(model)
        return redraw(model)

    def ours(self):
        """A decero model with the configuration of the stock model and random parameters."""
        stock = self.config()
        config = self.family.our_config(stock, self.head)
        if "pooling_layer" in self.family.by_tensors and self.head == "Model":
            config.pooling_layer = True
        return redraw(self.family.our_class(self.head)(config))


CASES = [Case(variant, head) for variant in OPTIONS for head in Case(variant, "").family.heads]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.variant} {case.head}")
def case(request):
    """Every family, variant and head."""
    return request.param


@pytest.fixture(scope="session")
def all_cases():
    return CASES


@pytest.fixture
def find_case():
    """One case by variant and head."""
    return Case


@pytest.fixture
def batch():
    """Three padded texts for each side of a case, and the mask where their outputs are compared."""

    def build(case, seed=5):
        generator = torch.Generator().manual_seed(seed)
        if case.family.ours == "DeceroDetection":
            inputs = {"pixel_values": torch.randn(3, 2, 24, 40, generator=generator)}
            seen = (torch.arange(40) < torch.tensor([40, 24, 31])[:, None]).long()
            return inputs | {"pixel_mask": seen[:, None].repeat(1, 24, 1)}, torch.ones(3, 1).bool()
        if case.family.ours == "DeceroVision":
            inputs = {"pixel_values": torch.randn(3, 2, 12, 12, generator=generator)}
            if case.head == "ForMaskedImageModeling":
                inputs["bool_masked_pos"] = torch.rand(3, 16, generator=generator) < 0.5
            return inputs, torch.ones(3, 1).bool()
        pad = case.config().pad_token_id

        def text(length, lengths):
            mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
            return torch.randint(3, 35, (3, length), generator=generator) * mask + pad * (1 - mask), mask

        ids, mask = text(11, [11, 7, 2])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if case.head == "ForSequenceClassification":  # T5 reads the state of the end token
            inputs["input_ids"] = ids.scatter(1, mask.sum(dim=1, keepdim=True) - 1, 36)
        if case.family.ours == "DeceroEncoderDecoder" and case.head in ("Model", "ForConditionalGeneration"):
            ids, mask = text(9, [4, 9, 5])
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        if case.family.name in ("bert", "electra"):
            inputs["token_type_ids"] = torch.randint(0, 3, (3, 11), generator=generator)
        if case.head == "ForMultipleChoice":  # two choices a row
            inputs = {name: torch.stack([tensor, tensor.roll(1, dims=0)], dim=1) for name, tensor in inputs.items()}
        return inputs, mask.bool()

    return build


@pytest.fixture
def stock_folder(find_case, tmp_path):
    """Write a stock model as a folder."""

    def write(variant="bert", head="ForMaskedLM", dtype=torch.float32, **options):
        folder = tmp_path / "stock"
        find_case(variant, head).stock(**options).to(dtype).save_pretrained(folder)
        return folder

    return write
