"""Define what the queries of a detector begin with, where they look, and whom they see.

Dimensions: B batch, H heads, h and w height and width of a map, M its places, Q queries, G groups of denoising queries,
T objects, L all queries, D model, V classes and "no object".
"""

import torch
import torch.nn.functional as F
from torch import nn

from .detection_parts import Corrections, Perceptron


class AnchorBoxes(nn.Embedding):
    """Hold a trained box a query: centre and size before the sigmoid. They start spread over the image."""


def tiled_boxes(number):
    """Return boxes that cover an image evenly, (number, 4): centre and size as shares of it.

    The centres are the R2 sequence (Roberts 2018), which is even for any number. Together the boxes have its area.
    """
    n = torch.arange(number, dtype=torch.float64)
    golden = 1.32471795724474602596  # g of the plane: g^3 = g + 1
    centres_N2 = torch.stack((0.5 + n / golden, 0.5 + n / golden**2), dim=-1) % 1
    return torch.cat((centres_N2, torch.full((number, 2), number**-0.5, dtype=torch.float64)), dim=-1).float()


def box_prior(boxes_BQ4, places_BM2):
    """Return a Gaussian of each box at each place, as a logarithm: (batch, queries, places), 0 at the centre.

    Half of the width and of the height are its standard deviations, as in SMCA (Gao et al. 2021, eq. 1, with a size per
    axis). boxes_BQ4: centre and size as shares of the image. places_BM2: row and column.
    """
    x, y, width, height = boxes_BQ4[:, :, None].unbind(-1)
    least = 0.05  # a box that vanishes still sees its surroundings
    rows_B1M, columns_B1M = places_BM2[:, None].unbind(-1)
    across = (columns_B1M - x) / (0.5 * width.clamp(min=least))
    down = (rows_B1M - y) / (0.5 * height.clamp(min=least))
    return -0.5 * (across**2 + down**2)


class BoxBias(nn.Module):
    """Score each place by its distances to the four sides of a box, for each head: Lin et al. 2023, section 4.1.

    One perceptron reads how far a column is from left and right, another how far a row is from top and bottom, as
    logarithms (Swin v2: Liu et al. 2022, eq. 4). At first all scores are 0.
    """

    def __init__(self, config):
        super().__init__()
        sizes = 2, config.hidden_size, config.num_attention_heads
        self.across, self.down = (Perceptron(*sizes, last=Corrections) for _ in range(2))
        for each in (self.across, self.down):
            each.layers[0].initializer_gain = 8  # type: ignore[assignment]  # it reads two small numbers

    def forward(self, boxes_BQ4, places_Bhw2):
        """Return scores (batch, heads, queries, places). boxes_BQ4: centre and size as shares of the image."""
        centre_BQ2, half_BQ2 = boxes_BQ4[..., :2], boxes_BQ4[..., 2:] / 2
        sides_BQ22 = torch.stack((centre_BQ2 - half_BQ2, centre_BQ2 + half_BQ2), dim=-1)
        across_BHQw = self.scores(self.across, places_Bhw2[:, 0, :, 1], sides_BQ22[:, :, 0])
        down_BHQh = self.scores(self.down, places_Bhw2[:, :, 0, 0], sides_BQ22[:, :, 1])
        return (down_BHQh[..., None] + across_BHQw[..., None, :]).flatten(3)

    @staticmethod
    def scores(perceptron, shares_Bn, sides_BQ2):
        apart_BQn2 = shares_Bn[:, None, :, None] - sides_BQ2[:, :, None]
        inputs_BQn2 = apart_BQn2.sign() * (8 * apart_BQn2.abs()).log1p()
        return perceptron(inputs_BQn2.to(perceptron.layers[0].weight.dtype)).permute(0, 3, 1, 2)


def prior_mask(anchors_BQ4, places_Bhw2, seen_BM, dtype, bias=None):
    """Return what is added to the scores of cross-attention: (batch, 1 or heads, queries, places).

    anchors_BQ4: boxes before the sigmoid, without a gradient: they learn from their own losses. places_Bhw2: row and
    column. seen_BM: None, or False for padding. bias: a `BoxBias`.
    """
    boxes_BQ4 = anchors_BQ4.detach().float().sigmoid()
    scores_BHQM = box_prior(boxes_BQ4, places_Bhw2.flatten(1, 2))[:, None]
    if bias is not None:
        scores_BHQM = scores_BHQM + bias(boxes_BQ4, places_Bhw2)
    if seen_BM is not None:
        scores_BHQM = scores_BHQM.masked_fill(~seen_BM[:, None, None], torch.finfo(dtype).min)
    return scores_BHQM.to(dtype)


class Proposals(nn.Module):
    """Say for each place which object is there, if any, and its box: two stages, Zhu et al. 2021, appendix A.4.

    A box begins around its place, with a quarter of the image's height and width.
    """

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.classifier = nn.Linear(D, config.num_labels + 1)
        self.bbox_predictor = Perceptron(D, D, D, 4, last=Corrections)

    def forward(self, memory_BMD, places_BM2, seen_BM=None):
        """Return logits (batch, places, labels + 1), the last for no object, and boxes before the sigmoid.

        places_BM2: row and column as shares of the image. Places of padding (False in `seen_BM`) hold no object.
        """
        logits_BMV = self.classifier(memory_BMD)
        around_BM4 = torch.cat((places_BM2.flip(-1), torch.full_like(places_BM2, 0.25)), dim=-1).logit(eps=1e-4)
        boxes_BM4 = around_BM4 + self.bbox_predictor(memory_BMD)
        if seen_BM is not None:
            nothing_V = torch.full_like(logits_BMV[0, 0], -20.0)
            nothing_V[-1] = 0
            logits_BMV = torch.where(seen_BM[..., None], logits_BMV, nothing_V)
            corner_4 = torch.full_like(boxes_BM4[0, 0], -20.0)  # a box without area, far from most objects
            boxes_BM4 = torch.where(seen_BM[..., None], boxes_BM4, corner_4)
        return logits_BMV, boxes_BM4


def denoising_mask(num_queries, real_BGT):
    """Return who sees whom, bool (batch, 1, queries, queries): DN-DETR, Li et al. 2022, section 4.3.

    Nobody sees a denoising query but those of its own group, so no answer leaks. Those see all that look for objects.
    real_BGT: False for padding.
    """
    _, G, T = real_BGT.shape
    group_N = torch.arange(1, G + 1, device=real_BGT.device).repeat_interleave(T)
    group_L = F.pad(group_N, (num_queries, 0))  # 0: the queries that look for objects
    sees_LL = (group_L[None, :] == 0) | (group_L[None, :] == group_L[:, None])
    real_BL = F.pad(real_BGT.flatten(1), (num_queries, 0), value=True)
    return (sees_LL & real_BL[:, None, :]).unsqueeze(1)
