"""Every word of a page and of a picture, in English and Spanish."""

LANGUAGES = ("en", "es")
# name -> (English, Spanish); {names} in braces are filled in, here or in page.js
PHRASES: dict[str, tuple[str, str]] = {
    # the page
    "title": ("Inside {model}", "{model} por dentro"),
    "family": ("family", "familia"),
    "text": ("text", "texto"),
    "target": ("target", "destino"),
    "size": ("size", "tamaño"),
    "sizes": ("{layers} layers, {heads} heads, {tokens} tokens", "{layers} capas, {heads} cabezas, {tokens} tokens"),
    "how_to_read": ("What it means", "Qué significa"),
    "caution": ("What it does not mean", "Qué no significa"),
    "no_script": (
        "The pictures of this page need JavaScript. It comes with the page; nothing is loaded from the network.",
        "Las imágenes de esta página necesitan JavaScript. Está dentro de la página; no se carga nada de la red.",
    ),
    "made_by": ("Made by decero explain.", "Hecho con decero explain."),
    "index_title": ("Inside {model}: {count} texts", "{model} por dentro: {count} textos"),
    "line": ("line", "línea"),
    "tokens": ("tokens", "tokens"),
    "other_page": ("All texts", "Todos los textos"),
    # attention
    "attention": ("Attention", "Atención"),
    "attention_about": (
        "Each small picture is one head. A row is the token that looks (the query), a column the token that it looks at "
        "(the key). Each row sums to 1. The darker the cell, the more of that token's value is mixed in.",
        "Cada imagen pequeña es una cabeza. La fila es el token que mira (la consulta) y la columna el token mirado (la "
        "clave). Cada fila suma 1. Cuanto más oscura es la celda, más entra del valor de ese token.",
    ),
    "attention_caution": (
        "A weight says how much is mixed in one layer. It does not say how important a token is for the answer: later "
        "layers, residuals and the size of the values decide too. The line under the picture says how well weights and "
        "importance agree on your text.",
        "Un peso dice cuánto se mezcla en una capa. No dice cuánto importa un token para la respuesta: también deciden "
        "las capas siguientes, los residuos y el tamaño de los valores. La línea bajo la imagen dice cuánto coinciden "
        "pesos e importancia en su texto.",
    ),
    "self": ("self-attention of the encoder", "autoatención del codificador"),
    "causal": ("causal self-attention of the decoder", "autoatención causal del descodificador"),
    "cross": ("cross-attention from decoder to source", "atención cruzada del descodificador a la fuente"),
    "kind": ("Kind", "Tipo"),
    "overview": ("All heads", "Todas las cabezas"),
    "overview_help": (
        "Arrow keys move over layers and heads; Enter opens a head.",
        "Las flechas recorren capas y cabezas; Intro abre una cabeza.",
    ),
    "map_help": (
        "Arrow keys move over the cells, Page Up and Page Down over the heads, + and − zoom, Escape goes back.",
        "Las flechas recorren las celdas; Re Pág y Av Pág, las cabezas; + y − amplían; Escape vuelve.",
    ),
    "table_help": (
        "Arrow keys move over the cells, + and − zoom.",
        "Las flechas recorren las celdas; + y − amplían.",
    ),
    "layer": ("layer", "capa"),
    "layers": ("layers", "capas"),
    "head": ("head", "cabeza"),
    "heads": ("heads", "cabezas"),
    "layer_head": ("Layer {layer}, head {head}", "Capa {layer}, cabeza {head}"),
    "open_head": (
        "Layer {layer}, head {head}. Strongest: {query} to {key}, {weight}",
        "Capa {layer}, cabeza {head}. Máximo: de {query} a {key}, {weight}",
    ),
    "query": ("query", "consulta"),
    "key": ("key", "clave"),
    "weight": ("weight", "peso"),
    "without_sinks": ("without sinks", "sin sumideros"),
    "sinks_note": (
        "Without sinks: the columns {sinks} are left out and each row is renormalised, so it sums to 1 over the others. "
        "These are not the model's weights; two digits are right. A row with less than 0.5 % left is empty.",
        "Sin sumideros: se quitan las columnas {sinks} y cada fila se renormaliza, de modo que suma 1 sobre las demás. "
        "No son los pesos del modelo; dos cifras son correctas. Una fila a la que queda menos de 0,5 % está vacía.",
    ),
    "show_map": ("map", "mapa"),
    "show_lines": ("lines", "líneas"),
    "picture_as": ("Picture", "Imagen"),
    "lines_note": (
        "A line joins a query (left) with a key (right); the thicker, the larger the weight. Weights below 0.01 have no "
        "line. Choose a token to see its lines alone.",
        "Una línea une una consulta (izquierda) con una clave (derecha); más gruesa cuanto mayor es el peso. Los pesos "
        "menores de 0,01 no tienen línea. Elija un token para ver solo sus líneas.",
    ),
    "cell": ("{query} → {key}: {weight}", "{query} → {key}: {weight}"),
    "choose_cell": ("Point at a cell.", "Señale una celda."),
    "empty": ("nothing left", "nada"),
    "strongest": ("Strongest weights", "Pesos más altos"),
    "mean_weight": ("Mean weight on", "Peso medio en"),
    "same": ("the same token", "el mismo token"),
    "previous": ("the previous", "el anterior"),
    "next": ("the next", "el siguiente"),
    "first": ("the first", "el primero"),
    "special_tokens": ("special tokens", "tokens especiales"),
    "numbers": ("Numbers", "Números"),
    "zoom_in": ("zoom in", "ampliar"),
    "zoom_out": ("zoom out", "reducir"),
    "zoom_fit": ("fit", "ajustar"),
    "scale_from": ("{low} to {high}", "de {low} a {high}"),
    "scale_sqrt": ("colour: square root of the weight", "color: raíz cuadrada del peso"),
    "scale_log": ("colour: logarithm", "color: logaritmo"),
    "no_attention": ("This model showed no attention.", "Este modelo no mostró atención."),
    "faithfulness": (
        "Faithfulness on {texts}: rank correlation with leaving each token out",
        "Fidelidad en {texts}: correlación de rangos con quitar cada token",
    ),
    # pictures
    "mean_of_heads": ("mean of the heads", "media de las cabezas"),
    "embeddings": ("embeddings", "embeddings"),
    "after_layer": ("after layer {layer}", "tras la capa {layer}"),
    "token": ("token", "token"),
    "value": ("value", "valor"),
    "name": ("name", "nombre"),
    "interval": ("95 % interval", "intervalo del 95 %"),
}


def phrases(language: str) -> dict[str, str]:
    """Return name -> phrase of one language, `en` or `es`."""
    i = LANGUAGES.index(language)
    return {name: both[i] for name, both in PHRASES.items()}
