"""Define what heads over texts and tokens share.

Dimensions: B batch, L length, D model.
"""

from torch import nn

from .layers import build_activation, build_norm


def pool(hidden_BLD, attention_mask, how):
    """Pool a sequence to (batch, model): first token, or mean over tokens without padding."""
    if how == "cls":
        return hidden_BLD[:, 0]
    if attention_mask is None or attention_mask.dim() != 2:
        return hidden_BLD.mean(dim=1)
    weight_BL1 = attention_mask.unsqueeze(-1).to(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1).clamp(min=1)


def prediction_head(config, width=None):
    """Build dense, activation and norm; the dense layer makes `width` features, as many as it reads by default."""
    width = width or config.hidden_size
    dense = nn.Linear(config.hidden_size, width, bias=config.lm_head_transform_bias)
    return nn.Sequential(dense, build_activation(config.hidden_act), build_norm(config, width))


def token_head(config):
    """Build what a head over tokens reads them through: nothing (BERT), or a prediction head (ModernBERT)."""
    return prediction_head(config) if config.classifier_head == "prediction" else nn.Identity()


class Pooler(nn.Module):
    """Apply dense and an activation (tanh) to the pooled vector, (batch, model); with `late` first, and then pool.

    This is in the code of BERT; the paper only names the vector C. ModernBERT has a prediction head in its place.
    """

    def __init__(self, config, how):
        super().__init__()
        self.how = how
        if config.classifier_head == "prediction":
            self.dense, self.act = prediction_head(config), nn.Identity()
        else:
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
            self.act = build_activation(config.pooler_act)

    def forward(self, hidden_BLD, attention_mask=None):
        if self.how == "late":
            return pool(self.act(self.dense(hidden_BLD)), attention_mask, "mean")
        return self.act(self.dense(pool(hidden_BLD, attention_mask, self.how)))


def classifier_dropout(config):
    """Build dropout with `classifier_dropout`, or `hidden_dropout_prob` if it is not set."""
    probability = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if probability is None else probability)
