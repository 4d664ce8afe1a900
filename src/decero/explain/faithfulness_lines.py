"""Say in plain sentences what `measure_faithfulness` found, in English and Spanish."""

import math

from decero.explain.estimates import MIN_TEXTS
from decero.explain.faithfulness import MIN_TOKENS, Faithfulness

METHODS = {
    "last_layer": ("raw attention, last layer", "atención sin ponderar, última capa"),
    "all_layers": ("raw attention, mean of the layers", "atención sin ponderar, media de las capas"),
    "rollout": ("attention rollout", "atención acumulada (rollout)"),
    "value_weighted": ("attention weighted by values", "atención ponderada por los valores"),
    "gradient": ("gradient x input", "gradiente x entrada"),
    "integrated": ("integrated gradients", "gradientes integrados"),
}
PROBABILITY = ("the log probability of", "la probabilidad logarítmica de")
ANSWERS = {
    "label": (f"{PROBABILITY[0]} the model's own label", f"{PROBABILITY[1]} la etiqueta que da el modelo"),
    "next": (f"{PROBABILITY[0]} the model's own next token", f"{PROBABILITY[1]}l token siguiente que da el modelo"),
    "masked": (
        f"{PROBABILITY[0]} the model's own token in the hole",
        f"{PROBABILITY[1]}l token que el modelo pone en el hueco",
    ),
    "target": (f"{PROBABILITY[0]} the target", f"{PROBABILITY[1]} la traducción"),
    "vector": ("the direction of the text's vector (cosine)", "la dirección del vector del texto (coseno)"),
}
REMOVALS = {
    "mask": ("the mask token replaces one token at a time", "el token de máscara sustituye un token cada vez"),
    "remove": ("one token at a time is removed", "se quita un token cada vez"),
}
ROWS = {
    "first": ("the row of the first token", "la fila del primer token"),
    "last": ("the row of the last token", "la fila del último token"),
    "mean": ("the mean of all rows", "la media de todas las filas"),
    "hole": ("the row of the hole", "la fila del hueco"),
    "target": ("the mean of the rows that predict the target", "la media de las filas que predicen la traducción"),
}
SENTENCES = {
    "scale": (
        "Rank correlation with leave-one-out{interval}: 1 is the same order of tokens, 0 is no relation, -1 is the "
        "opposite order.",
        "Correlación de rangos con la exclusión de un token{interval}: 1 es el mismo orden, 0 es ninguna relación, -1 "
        "es el orden contrario.",
    ),
    "one": (" on one text", " en un texto"),
    "several": (", mean over {texts} texts", ", media de {texts} textos"),
    "interval": (" with a 95 % bootstrap interval", " con un intervalo de confianza del 95 % (bootstrap)"),
    "leave_one_out": (
        "Leave-one-out: {removal}, and the change of {answer} is the token's importance.",
        "Exclusión de un token: {removal}, y el cambio de {answer} es la importancia del token.",
    ),
    "row": (
        "Attention is read from {row}, as the mean over heads.",
        "La atención se lee en {row}, como media de las cabezas.",
    ),
    "few": (
        "Fewer than {least} texts: no interval.",
        "Menos de {least} textos: sin intervalo.",
    ),
    "short": (
        "Texts with fewer than {least} tokens to leave out, not counted: {number}.",
        "Textos con menos de {least} tokens que excluir, no contados: {number}.",
    ),
    "none": (
        "No text is long enough, so nothing was measured.",
        "Ningún texto es lo bastante largo; no se midió nada.",
    ),
    "unmeasured": ("not measured", "sin medir"),
}
LANGUAGES = ("en", "es")


def faithfulness_lines(found: Faithfulness, language: str) -> list[str]:
    """Return a sentence a line: a line for each method, such as `raw attention, last layer: 0.21 [0.15, 0.27]`.

    The lines after it say what was measured, on how many texts, and what was left out. language: `en` or `es`.
    """
    at = LANGUAGES.index(language)
    counted = len(found.texts) - found.short
    lines = []
    if counted:
        for name, value in found.methods.items():
            shown = SENTENCES["unmeasured"][at] if math.isnan(value.mean) else str(value)
            lines.append(f"{METHODS[name][at]}: {shown}")
        interval = SENTENCES["one" if counted == 1 else "several"][at].format(texts=counted)
        interval += SENTENCES["interval"][at] if counted >= MIN_TEXTS else ""
        lines.append(SENTENCES["scale"][at].format(interval=interval))
        removal, answer = REMOVALS[found.removal][at], ANSWERS[found.texts[0].explained.what][at]
        lines.append(SENTENCES["leave_one_out"][at].format(removal=removal, answer=answer))
        lines.append(SENTENCES["row"][at].format(row=ROWS[found.row][at]))
        if counted < MIN_TEXTS:
            lines.append(SENTENCES["few"][at].format(least=MIN_TEXTS))
    if found.short:
        lines.append(SENTENCES["short"][at].format(least=MIN_TOKENS, number=found.short))
    return lines if counted else [*lines, SENTENCES["none"][at]]
