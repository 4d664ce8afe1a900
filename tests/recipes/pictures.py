"""Tiny pictures whose classes, masks and boxes a tiny model can learn: squares in one of two colours."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZES = {"train": 41, "validation": 13, "test": 17}
NAMES = ("dark", "light")

VIT = {"model_type": "vit", "image_size": 16, "patch_size": 4, "hidden_size": 22, "num_hidden_layers": 1}
VIT |= {"num_attention_heads": 2, "intermediate_size": 31, "initializer_range": 0.1}
SETR = VIT | {"model_type": "decero_vision", "decode_head": "naive", "decoder_hidden_size": 12}
SEGFORMER = {"model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [1, 1]}
SEGFORMER |= {"hidden_sizes": [16, 16], "patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 1]}
SEGFORMER |= {"mlp_ratios": [1, 1], "decoder_hidden_size": 16, "drop_path_rate": 0.0}
DETR: dict = {"model_type": "detr"}
DETR |= {"backbone_config": {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16], "depths": [1, 1],
                             "layer_type": "basic", "out_features": ["stage2"]}}  # fmt: skip
DETR |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 1, "num_queries": 3}
DETR |= {"decoder_attention_heads": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.1}

DIT = {"model_type": "decero_diffusion", "image_size": 16, "patch_size": 4, "num_channels": 3, "hidden_size": 32}
DIT |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 31, "initializer_range": 0.1}

OURS = {"model_type": "decero_detection", "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_queries": 3}
OURS |= {"decoder_layers": 2, "num_attention_heads": 1, "intermediate_size": 16}


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def row(number, side=16):
    """One picture: a square, dark or light, on grey noise; its class, its mask, its box."""
    draw = np.random.default_rng(number)
    kind, width = number % 2, int(draw.integers(5, 9))
    top, left = (int(draw.integers(0, side - width + 1)) for _ in range(2))
    picture = draw.integers(90, 160, (side, side, 3)).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    picture[top : top + width, left : left + width] = (20, 245)[kind]
    mask[top : top + width, left : left + width] = kind + 1
    objects = {"bbox": [[float(left), float(top), float(width), float(width)]], "category": [NAMES[kind]]}
    return {"image": png(picture), "mask": png(mask), "label": NAMES[kind], "objects": objects}


def write_splits(folder, sizes=SIZES, side=16):
    """Write a parquet file a split; return split -> path."""
    start, files = 0, {}
    for split, size in sizes.items():
        rows = [row(number, side) for number in range(start, start + size)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        start, files[split] = start + size, str(folder / f"{split}.parquet")
    return files
