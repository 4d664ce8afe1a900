"""The model tests of transformers, run on our classes: every kind of mixer, and the networks from before."""

import copy
import unittest

import pytest
import torch
from tests.conformance.library import load_common

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderForMaskedLM,
    DeceroDecoderForSequenceClassification,
    DeceroDecoderModel,
    DeceroDetectionConfig,
    DeceroDetectionForObjectDetection,
    DeceroDetectionModel,
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderForConditionalGeneration,
    DeceroEncoderDecoderModel,
    DeceroEncoderForMaskedLM,
    DeceroEncoderForMultipleChoice,
    DeceroEncoderForPreTraining,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
    DeceroEncoderModel,
    DeceroRecurrentConfig,
    DeceroRecurrentForCausalLM,
    DeceroRecurrentForSequenceClassification,
    DeceroRecurrentForTokenClassification,
    DeceroRecurrentModel,
    DeceroRecurrentSeq2SeqConfig,
    DeceroRecurrentSeq2SeqForConditionalGeneration,
    DeceroRecurrentSeq2SeqModel,
    DeceroTextCNNConfig,
    DeceroTextCNNForSequenceClassification,
    DeceroTextCNNModel,
    DeceroVisionBackbone,
    DeceroVisionConfig,
    DeceroVisionForImageClassification,
    DeceroVisionForMaskedImageModeling,
    DeceroVisionForSemanticSegmentation,
    DeceroVisionModel,
)

pytestmark = pytest.mark.slow
common = load_common()
# The tests find models without a head by these names.
BASES = ("Encoder", "Decoder", "EncoderDecoder", "Recurrent", "RecurrentSeq2Seq", "TextCNN", "Vision", "Detection")
common.MODEL_MAPPING_NAMES.update({f"decero {base}": f"Decero{base}Model" for base in BASES})
common.MODEL_FOR_BACKBONE_MAPPING_NAMES["decero"] = "DeceroVisionBackbone"

PICTURED = ("decero_vision", "decero_detection")
BATCH, LENGTH, VOCABULARY, WIDTH, LAYERS, HEADS = 3, 7, 41, 36, 2, 3
IDS = {"eos_token_id": 2, "bos_token_id": 1}
TEXT = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS} | IDS
STACK = TEXT | {"num_attention_heads": HEADS, "intermediate_size": 37, "max_position_embeddings": 64}
PICTURE = {
    "image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "intermediate_size": 37,
}  # fmt: skip
ENCODERS = (
    DeceroEncoderModel,
    DeceroEncoderForMaskedLM,
    DeceroEncoderForPreTraining,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForMultipleChoice,
)
DECODERS = (DeceroDecoderModel, DeceroDecoderForCausalLM, DeceroDecoderForSequenceClassification)
TRANSLATORS = (DeceroEncoderDecoderModel, DeceroEncoderDecoderForConditionalGeneration)
VISION = (
    DeceroVisionModel,
    DeceroVisionForImageClassification,
    DeceroVisionForMaskedImageModeling,
    DeceroVisionForSemanticSegmentation,
    DeceroVisionBackbone,
)
CASES = {
    "encoder": (DeceroEncoderConfig(**STACK), ENCODERS),
    "decoder": (DeceroDecoderConfig(**STACK), (*DECODERS, DeceroDecoderForMaskedLM)),
    "encoder-decoder": (DeceroEncoderDecoderConfig(**STACK), TRANSLATORS),
    "vision": (DeceroVisionConfig(**PICTURE), VISION),
    "detection": (
        DeceroDetectionConfig(**PICTURE | {"patch_size": 2, "num_queries": LENGTH}),
        (DeceroDetectionModel, DeceroDetectionForObjectDetection),
    ),
    "lstm language model": (
        DeceroRecurrentConfig(**TEXT),
        (DeceroRecurrentModel, DeceroRecurrentForCausalLM, DeceroRecurrentForSequenceClassification),
    ),
    "bilstm": (
        DeceroRecurrentConfig(**TEXT, bidirectional=True),
        (DeceroRecurrentModel, DeceroRecurrentForSequenceClassification, DeceroRecurrentForTokenClassification),
    ),
    "lstm seq2seq": (
        DeceroRecurrentSeq2SeqConfig(**TEXT),
        (DeceroRecurrentSeq2SeqModel, DeceroRecurrentSeq2SeqForConditionalGeneration),
    ),
    "textcnn": (
        DeceroTextCNNConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_filters=5),
        (DeceroTextCNNModel, DeceroTextCNNForSequenceClassification),
    ),
}
for mixer in ("lstm", "gru", "rnn", "min_gru", "conv"):
    fields = STACK | {"mixer_type": mixer, "position_embedding_type": "none"}
    CASES[f"{mixer} encoder"] = (DeceroEncoderConfig(**fields), ENCODERS[:2] + ENCODERS[3:])
    CASES[f"{mixer} decoder"] = (DeceroDecoderConfig(**fields), DECODERS)


class Tester:
    """What the tests of transformers ask of a model: sizes, a config, and a batch."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = BATCH, LENGTH, WIDTH, LAYERS, HEADS
    encoder_seq_length = decoder_seq_length = LENGTH
    num_choices, num_labels, num_masks, is_training = 2, 5, 2, True

    def __init__(self, config):
        self.config = config
        self.num_hidden_layers = config.num_hidden_layers
        config.num_labels = self.num_labels
        if config.model_type == "decero_detection":
            self.encoder_seq_length = (8 // config.patch_size) ** 2
        if config.model_type == "decero_vision":
            self.mask_length = (config.image_size // config.patch_size) ** 2
            self.seq_length = 1 + self.mask_length
            self.encoder_seq_length = self.seq_length

    def get_config(self):
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self):
        draw = torch.Generator().manual_seed(0)
        if self.config.model_type in PICTURED:
            batch = {"pixel_values": torch.rand(BATCH, 3, 8, 8, generator=draw)}
        else:
            batch = {"input_ids": torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=draw)}
            batch["attention_mask"] = torch.ones(BATCH, LENGTH, dtype=torch.long)
            if self.config.is_encoder_decoder:
                batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=draw)
                batch["decoder_attention_mask"] = torch.ones(BATCH, LENGTH, dtype=torch.long)
        return self.get_config(), batch


def labels_of(head, batch):
    """Return labels for a head by the end of its name."""
    rows = torch.zeros(BATCH, dtype=torch.long)
    some = batch.get("decoder_input_ids", batch.get("input_ids"))
    places = torch.zeros_like(some) if some is not None else None
    kinds = {
        "ForSequenceClassification": {"labels": rows},
        "ForImageClassification": {"labels": rows},
        "ForMultipleChoice": {"labels": rows},
        "ForQuestionAnswering": {"start_positions": rows, "end_positions": rows},
        "ForObjectDetection": {"labels": [{"class_labels": rows[:2], "boxes": torch.full((2, 4), 0.3)}] * BATCH},
        "ForSemanticSegmentation": {"labels": torch.zeros(BATCH, 8, 8, dtype=torch.long)},
        "ForMaskedImageModeling": {"bool_masked_pos": torch.arange(BATCH * 4).view(BATCH, 4) % 2 == 0},
        "ForPreTraining": {"labels": places},
        "ForMaskedLM": {"labels": places},
        "ForTokenClassification": {"labels": places},
        "ForCausalLM": {"labels": places},
        "ForConditionalGeneration": {"labels": places},
    }
    return next((labels for end, labels in kinds.items() if head.__name__.endswith(end)), {})


class Common(common.ModelTesterMixin):
    """Adapt the tests to our names; our heads are registered at run time, and the lists of transformers miss them."""

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        batch = copy.deepcopy(inputs_dict)
        if model_class is DeceroEncoderForMultipleChoice:
            for name in {"input_ids", "attention_mask"} & {name for name, given in batch.items() if given is not None}:
                batch[name] = batch[name].unsqueeze(1).expand(-1, 2, -1).contiguous()
        return batch | (labels_of(model_class, batch) if return_labels else {})

    def test_attention_outputs(self):
        if isinstance(self.model_tester.config, DeceroDetectionConfig):
            self.skipTest("counts the outputs of a decoder of text; tests/models/test_modeling_object_detection.py")
        super().test_attention_outputs()

    def test_capture_outputs_decorator(self):
        if not self.has_attentions:
            self.skipTest("asks for attentions, which this model has not")
        super().test_capture_outputs_decorator()

    def test_model_rope_with_partial_rotation(self):
        self.skipTest("expects a dict where nothing is scaled; tests/models/test_rope_scaling.py compares with Llama")

    test_model_rope_scaling_from_config_0_linear = test_model_rope_with_partial_rotation
    test_model_rope_scaling_from_config_1_dynamic = test_model_rope_with_partial_rotation
    test_model_rope_scaling_from_config_2_yarn = test_model_rope_with_partial_rotation

    def test_model_get_set_embeddings(self):
        if "input_ids" not in self.model_tester.prepare_config_and_inputs_for_common()[1]:
            self.skipTest("asks for a table of tokens, which a model of pictures has not")
        super().test_model_get_set_embeddings()


@unittest.skip("gives tokens to an encoder-decoder, also to a detector; tests/models/test_modeling_object_detection.py")
def with_tokens(self):
    pass


for name, (config, classes) in CASES.items():
    fields = {
        "all_model_classes": classes,
        "is_encoder_decoder": config.is_encoder_decoder,
        "has_attentions": config.model_type in PICTURED or getattr(config, "mixer_type", "") == "attention",
        "test_resize_embeddings": config.model_type not in PICTURED,
        "setUp": lambda self, config=config: setattr(self, "model_tester", Tester(copy.deepcopy(config))),
    }
    if config.model_type == "decero_detection":
        kernels = [test for test in dir(Common) if test.startswith("test_eager_matches_sdpa")]
        fields |= dict.fromkeys(kernels, with_tokens)
    title = "Test" + "".join(word.capitalize() for word in name.replace("-", " ").replace("_", " ").split())
    writes = (common.GenerationTesterMixin,) if any(head.can_generate() for head in classes) else ()
    globals()[title] = type(title, (Common, *writes, unittest.TestCase), fields)
