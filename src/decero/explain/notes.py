"""Say the notes of a recording, which are English sentences, in the language of a page."""

import re

from decero.explain.pieces import NO_OFFSETS

# English sentence, as a regular expression -> Spanish sentence
SPANISH = {
    r"The head that scores choices is left out: one text alone has none\.": (
        "Se deja fuera la cabeza que puntúa opciones: un solo texto no las tiene."
    ),
    r"No value norms of (\w+) attention: .*": "Sin normas de valores de la atención {0}: esta familia no las muestra.",
    r"No hidden states: .*": "Sin estados ocultos: no se encontró la lista de capas de esta familia.",
    r"The weights are stored in (\w+), recorded in float32\.": (
        "Los pesos del modelo están guardados en {0}; se registran en float32."
    ),
    r"This head writes no text: the decoder reads the same text as the encoder\.": (
        "Esta cabeza no escribe texto: el descodificador lee el mismo texto que el codificador."
    ),
    r"The model wrote the target itself, one likeliest token at a time\.": (
        "El propio modelo escribió el destino, cada vez con el token más probable."
    ),
    r"Layers? ([\d, ]+) sees? a window of (\d+) tokens only\.": "Capas con una ventana de solo {1} tokens: {0}.",
    r"Every layer sees a window of (\d+) tokens only\.": "Cada capa ve solo una ventana de {0} tokens.",
    re.escape(NO_OFFSETS): (
        "Este tokenizador no da posiciones de caracteres: cada pieza es lo que el texto crece con su token."
    ),
}


def in_language(note: str, language: str) -> str:
    """Return a note in `en` or `es`; a note that is not known stays English."""
    for english, spanish in SPANISH.items() if language == "es" else ():
        if found := re.fullmatch(english, note):
            return spanish.format(*found.groups())
    return note
