"""Every word of a page and of a picture, in English and Spanish."""

from decero.explain.picture_phrases import PICTURE_PHRASES

LANGUAGES = ("en", "es")
# name -> (English, Spanish); {names} in braces are filled in, here or in page.js
PHRASES: dict[str, tuple[str, str]] = PICTURE_PHRASES | {
    # the page
    "title": ("Inside {model}", "{model} por dentro"),
    "family": ("family", "familia"),
    "text": ("text", "texto"),
    "text_b": ("second text", "segundo texto"),
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
        "Each small picture is one head. A row is the token that looks (the query), a column the token that it looks "
        "at (the key). Each row sums to 1. The stronger the colour, the more of that token's value is mixed in.",
        "Cada imagen pequeña es una cabeza. La fila es el token que mira (la consulta) y la columna el token mirado "
        "(la clave). Cada fila suma 1. Cuanto más fuerte es el color, más entra del valor de ese token.",
    ),
    "attention_caution": (
        "A weight says how much is mixed in one layer. It does not say how important a token is for the answer: later "
        "layers, residual connections and the size of the values decide too. The lines under the picture say how well "
        "weights and importance agree on your text.",
        "Un peso dice cuánto se mezcla en una capa. No dice cuánto importa un token para la respuesta: también "
        "deciden las capas siguientes, las conexiones residuales y el tamaño de los valores. Las líneas bajo la imagen "
        "dicen cuánto coinciden pesos e importancia en su texto.",
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
        "Without sinks: the columns {sinks} are left out and each row is renormalised, so it sums to 1 over the "
        "others. These are not the model's weights; two digits are right. A row with less than 0.5 % left is empty.",
        "Sin sumideros: se quitan las columnas {sinks} y cada fila se renormaliza, de modo que suma 1 sobre las "
        "demás. No son los pesos del modelo; dos cifras son correctas. Una fila a la que queda menos de 0,5 % está "
        "vacía.",
    ),
    "show_map": ("map", "mapa"),
    "show_lines": ("lines", "líneas"),
    "picture_as": ("Picture", "Imagen"),
    "lines_note": (
        "A line joins a query (left) with a key (right); the thicker, the larger the weight. Weights below 0.01 have "
        "no line. Choose a token to see its lines alone.",
        "Una línea une una consulta (izquierda) con una clave (derecha); más gruesa cuanto mayor es el peso. Los "
        "pesos menores de 0,01 no tienen línea. Elija un token para ver solo sus líneas.",
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
    "faithfulness": ("How faithful is attention here?", "¿Es fiel aquí la atención?"),
    "passages": (
        "Measured on {passages} passages of at most {words} words.",
        "Medido en {passages} pasajes de {words} palabras como máximo.",
    ),
    "unmeasured": (
        "How faithful attention is was not measured: {reason}.",
        "No se midió cuán fiel es la atención: {reason}.",
    ),
    # the other views
    "lens": ("Layer by layer", "Capa por capa"),
    "lens_about": (
        "The hidden state of each token after each layer. The logit lens gives it to the model's own final norm and "
        "head: the token in a cell is what the model would answer if it stopped there (nostalgebraist 2020). The last "
        "row is the model's answer.",
        "El estado oculto de cada token tras cada capa. La lente de logits lo pasa por la norma final y la cabeza del "
        "modelo: el token de una celda es lo que el modelo respondería si parase ahí (nostalgebraist 2020). La última "
        "fila es la respuesta del modelo.",
    ),
    "lens_caution": (
        "Early layers were never trained to be read by the head. A strange token there does not mean that the layer "
        "knows nothing.",
        "Las primeras capas no se entrenaron para que la cabeza las lea. Un token extraño ahí no significa que la "
        "capa no sepa nada.",
    ),
    "rollout": ("Rollout and values", "Rollout y valores"),
    "rollout_about": (
        "All layers in one picture, in three ways. The mean of the heads ignores residual connections. Rollout "
        "multiplies the layers, half attention and half residual connection (Abnar and Zuidema 2020). Value-weighted "
        "attention is the length of the vector that is mixed in (Kobayashi et al. 2020); each row is divided by its "
        "sum.",
        "Todas las capas en una imagen, de tres formas. La media de las cabezas ignora las conexiones residuales. El "
        "rollout multiplica las capas, mitad atención y mitad conexión residual (Abnar y Zuidema 2020). La atención "
        "ponderada por los valores es la longitud del vector que se mezcla (Kobayashi et al. 2020); cada fila se "
        "divide por su suma.",
    ),
    "rollout_caution": (
        "All three ignore the feed-forward parts. None is a measure of cause: the line under each picture says how "
        "well they agree with leaving tokens out.",
        "Las tres ignoran las partes feed-forward. Ninguna mide causas: la línea bajo cada imagen dice cuánto "
        "coinciden con quitar tokens.",
    ),
    "of_all_layers": ("Mean of all layers and heads", "Media de todas las capas y cabezas"),
    "of_rollout": ("Attention rollout", "Rollout de la atención"),
    "of_value_weighted": ("Weighted by values", "Ponderada por los valores"),
    "ablation": ("Ablation of heads", "Ablación de cabezas"),
    "ablation_about": (
        "Each head is switched off alone: its output becomes 0. The number is how much the loss rises, mean over "
        "{texts} text(s). Red: the model needs the head. Blue: it does better without. Loss: {loss}.",
        "Cada cabeza se apaga sola: su salida pasa a ser 0. El número es cuánto sube la pérdida, media de {texts} "
        "texto(s). Rojo: el modelo necesita la cabeza. Azul: sin ella mejora. Pérdida: {loss}.",
    ),
    "ablation_caution": (
        "A head with no effect may have a twin that does the same. Intervals are for one head at a time; among many "
        "heads some differ from 0 by chance.",
        "Una cabeza sin efecto puede tener una gemela que hace lo mismo. Cada intervalo es de una sola cabeza; entre "
        "muchas, algunas se alejan de 0 por azar.",
    ),
    "loss_change": ("Change of the loss without the head", "Cambio de la pérdida sin la cabeza"),
    "most_missed": ("The heads that are missed most", "Las cabezas que más falta hacen"),
    "few_texts": (
        "Fewer than {least} texts: no interval. Give a file of lines.",
        "Menos de {least} textos: sin intervalo. Dé un archivo de líneas.",
    ),
    "positions": ("Positions", "Posiciones"),
    "positions_about": (
        "How the model knows the order of tokens. These pictures belong to the model, not to the text.",
        "Cómo sabe el modelo el orden de los tokens. Estas imágenes son del modelo, no del texto.",
    ),
    "positions_caution": (
        "They show what the model is given. What its heads do with it is under Attention.",
        "Muestran lo que recibe el modelo. Lo que sus cabezas hacen con ello está en Atención.",
    ),
    "attribution": ("Attribution", "Atribución"),
    "attribution_about": (
        "Integrated gradients (Sundararajan et al. 2017): how much each token adds to the model's own answer, "
        "compared with {baseline}. Red tokens speak for it, blue ones against it.",
        "Gradientes integrados (Sundararajan et al. 2017): cuánto suma cada token a la respuesta del modelo, "
        "comparado con {baseline}. Los rojos hablan a favor y los azules en contra.",
    ),
    "attribution_caution": (
        "The scores depend on the text of comparison. Tokens that act only together share a score in an arbitrary way.",
        "Las puntuaciones dependen del texto de comparación. Los tokens que solo actúan juntos se reparten la "
        "puntuación de forma arbitraria.",
    ),
    "explains_label": ("For the label {answer}", "A favor de la etiqueta {answer}"),
    "explains_token": ("For the token {answer}", "A favor del token {answer}"),
    "explains_target": ("For the whole target", "A favor de todo el destino"),
    "explains_vector": ("For the direction of the text's vector", "A favor de la dirección del vector del texto"),
    "complete": (
        "The scores sum to {sum}, as they should: the answers for the two texts differ by {difference}.",
        "Las puntuaciones suman {sum}, como deben: las respuestas para los dos textos difieren en {difference}.",
    ),
    "incomplete": (
        "Do not trust these scores. They sum to {sum}, but the answers for the two texts differ by {difference}. The "
        "answer changes too fast between the texts, so even the signs may be wrong.",
        "No se fíe de estas puntuaciones. Suman {sum}, pero las respuestas para los dos textos difieren en "
        "{difference}. La respuesta cambia demasiado rápido entre los textos; hasta los signos pueden ser falsos.",
    ),
    "alignment": ("Words of target and source", "Palabras del destino y de la fuente"),
    "source_word": ("source", "fuente"),
    "target_word": ("target", "destino"),
    "state_norm": ("Length of the hidden state", "Longitud del estado oculto"),
    "to_next": ("Cosine with the next layer", "Coseno con la capa siguiente"),
    "to_last": ("Cosine with the last layer", "Coseno con la última capa"),
    "rank_of_answer": ("Rank of the answer by layer", "Rango de la respuesta por capa"),
    "lens_next": ("Each cell: the likeliest next token.", "Cada celda: el token siguiente más probable."),
    "lens_same": (
        "Each cell: the likeliest token at this position.",
        "Cada celda: el token más probable en esa posición.",
    ),
    "rank_note": (
        "1: the layer already gives the final answer of the model.",
        "1: la capa ya da la respuesta final del modelo.",
    ),
    "norm_note": (
        "A very long state often belongs to a sink: a token that many heads look at when they find nothing.",
        "Un estado muy largo suele ser de un sumidero: un token que muchas cabezas miran cuando no encuentran nada.",
    ),
    "lens_of": ("Logit lens", "Lente de logits"),
    "encoder": ("encoder", "codificador"),
    "decoder": ("decoder", "descodificador"),
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
