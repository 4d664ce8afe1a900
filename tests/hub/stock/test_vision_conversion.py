"""Models of images go in and out as folders; what the tables alone do not show: sizes, losses, hidden states."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    DetrImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
)
from transformers import ViTImageProcessorPil as Processor

from decero.errors import UserError
from decero.hub.convert import export_model, import_model
from decero.hub.stock import from_stock
from decero.models import DeceroVisionConfig, DeceroVisionForImageClassification


@pytest.mark.parametrize(
    ("variant", "head"),
    [("vit", "ForImageClassification"), ("deit", "Model"), ("deit distilled", "ForImageClassification")],
)
def test_hidden_states_and_other_sizes_equal_the_stock_class(variant, head, find_case):
    stock = find_case(variant, head).stock().eval()
    ours = from_stock(stock)
    images = torch.randn(2, 2, 12, 12)
    theirs, mine = (model(images, output_hidden_states=True).hidden_states for model in (stock, ours))
    assert len(mine) == len(theirs) == 3
    for one, other in zip(mine, theirs, strict=True):
        assert_close(one, other, atol=3e-5, rtol=0)
    larger = torch.randn(2, 2, 18, 9)
    theirs, mine = (model(larger, interpolate_pos_encoding=True)[0] for model in (stock, ours))
    assert_close(mine, theirs, atol=3e-5, rtol=0)


def test_images_without_square_and_losses_equal_the_stock_class(find_case):
    stock = find_case("vit", "ForImageClassification").stock(image_size=[9, 15]).eval()
    images, labels = torch.randn(2, 2, 9, 15), torch.tensor([4, 0])
    theirs, mine = (model(images, labels=labels) for model in (stock, from_stock(stock)))
    assert_close(mine.logits, theirs.logits, atol=3e-5, rtol=0)
    assert_close(mine.loss, theirs.loss, atol=3e-5, rtol=0)
    case = find_case("vit", "ForMaskedImageModeling")
    stock, images, mask = case.stock().eval(), torch.randn(2, 2, 12, 12), torch.arange(32).view(2, 16) % 3 == 0
    theirs, mine = (model(images, bool_masked_pos=mask) for model in (stock, from_stock(stock)))
    assert_close(mine.loss, theirs.loss, atol=3e-5, rtol=0)


@pytest.mark.parametrize("variant", ["vit", "deit", "deit distilled"])
def test_a_folder_goes_in_and_out_with_its_processor(variant, find_case, tmp_path, capsys):
    stock = find_case(variant, "ForImageClassification").stock()
    stock.save_pretrained(tmp_path / "stock")
    Processor(size={"height": 12, "width": 12}, image_mean=[0.4], image_std=[0.3]).save_pretrained(tmp_path / "stock")
    import_model(tmp_path / "stock", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    assert type(again) is type(stock)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    for folder in ("ours", "again"):
        assert AutoImageProcessor.from_pretrained(tmp_path / folder).image_mean[0] == 0.4
    assert f"is now {variant.split()[0]} {type(stock).__name__}" in capsys.readouterr().out


def test_our_own_stem_leaves_as_remote_code(tmp_path, capsys):
    config = DeceroVisionConfig(
        image_size=8, patch_size=4, hidden_size=6, num_attention_heads=2, num_hidden_layers=1, intermediate_size=5,
        stem="conv",
    )  # fmt: skip
    DeceroVisionForImageClassification(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match="stem='conv' has no counterpart in vit, which has 'patch'"):
        export_model(tmp_path / "ours", tmp_path / "out", to="vit")
    with pytest.raises(
        UserError, match=r"family vot cannot hold a DeceroVision; did you mean vit\? \(use: vit, deit\)"
    ):
        export_model(tmp_path / "ours", tmp_path / "out", to="vot")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["segformer", "swin", "dinov2", "beit"])
def test_other_models_of_images_are_refused_by_name(model_type, tmp_path):
    config = ViTConfig(hidden_size=6, num_attention_heads=2, num_hidden_layers=1, intermediate_size=5, image_size=16)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": model_type}))
    with pytest.raises(UserError, match=f"model_type {model_type} has no counterpart in decero") as refusal:
        import_model(tmp_path, tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_a_detr_goes_in_and_out_as_a_folder(find_case, tmp_path, capsys):
    stock = find_case("detr", "ForObjectDetection").stock(encoder_layerdrop=0.25)
    stock.save_pretrained(tmp_path / "stock")
    DetrImageProcessorPil(size={"height": 24, "width": 40}, do_pad=False).save_pretrained(tmp_path / "stock")
    ours = import_model(tmp_path / "stock", tmp_path / "ours")
    assert "dropped: encoder_layerdrop=0.25 (only acts in training)" in capsys.readouterr().out
    back = export_model(ours, tmp_path / "back")  # finds the family by itself
    again, mine = (AutoModelForObjectDetection.from_pretrained(folder).eval() for folder in (back, ours))
    images, labels = torch.randn(2, 2, 24, 40), [{"class_labels": torch.tensor([4]), "boxes": torch.rand(1, 4)}] * 2
    found = [model(images, labels=labels) for model in (stock.eval(), mine, again)]
    for one in found[1:]:
        assert_close(one.loss, found[0].loss, atol=3e-5, rtol=1e-5)
        assert_close(one.pred_boxes, found[0].pred_boxes, atol=3e-5, rtol=0)
    assert type(again) is type(stock)
    assert AutoImageProcessor.from_pretrained(ours).size == {"height": 24, "width": 40}
    edit = json.loads((tmp_path / "stock" / "config.json").read_text()) | {"position_embedding_type": "learned"}
    (tmp_path / "stock" / "config.json").write_text(json.dumps(edit))
    with pytest.raises(UserError, match="option position_embedding_type='learned' has no counterpart in decero"):
        import_model(tmp_path / "stock", tmp_path / "none")
