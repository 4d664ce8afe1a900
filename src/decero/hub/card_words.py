"""Every word of a model card, in English and Spanish."""

LANGUAGES = ("en", "es")
# name -> (English, Spanish); {names} in braces are filled in
WORDS: dict[str, tuple[str, str]] = {
    "a_tokenizer": ("A tokenizer, made with decero.", "Un tokenizador, hecho con decero."),
    "a_model": ("A {kind}", "Un modelo {kind}"),
    "adapts": (": a LoRA adapter for {base}", ": un adaptador LoRA para {base}"),
    "from_base": (", fine-tuned from {base}", ", ajustado a partir de {base}"),
    "from_preset": (
        ", trained from random weights ({preset})", ", entrenado desde pesos aleatorios ({preset})",
    ),
    "load": ("How to load it", "Cómo se carga"),
    "registers": ("registers its classes", "registra sus clases"),
    "needs_decero": (
        "Its classes come with the package decero, which is not part of this repository:",
        "Sus clases vienen con el paquete decero, que no está en este repositorio:",
    ),
    "own_code": (
        "This repository carries the code of the model, so decero is not needed. `trust_remote_code=True` runs these "
        "Python files; read them, and pin a commit with `revision=`.",
        "Este repositorio lleva el código del modelo, así que no hace falta decero. `trust_remote_code=True` ejecuta "
        "estos archivos de Python; léalos, y fije un commit con `revision=`.",
    ),
    "measured": ("What was measured", "Qué se midió"),
    "metric": ("metric", "métrica"),
    "value": ("value", "valor"),
    "seeds": ("Seeds: {seeds}.", "Semillas: {seeds}."),
    "one_seed": (
        "One run, seed {seed}: the variation between seeds was not measured.",
        "Una ejecución, semilla {seed}: la variación entre semillas no se midió.",
    ),
    "of_compared": (
        "This is the run with seed {seed}. A comparison trained it with the seeds {seeds} and chose it {by}. "
        "Over these seeds, {metric} is {mean}.",
        "Esta es la ejecución con la semilla {seed}. Una comparación lo entrenó con las semillas {seeds} y la eligió "
        "{by}. Con estas semillas, {metric} es {mean}.",
    ),
    "by_validation": ("by its score on validation", "por su puntuación en validación"),
    "by_order": ("as the first, because there is no validation split", "por ser la primera, porque no hay validación"),
    "no_results": ("No results were recorded with this model.", "No se registraron resultados de este modelo."),
    "picture vectors": (
        "Turning pictures into vectors, and being fine-tuned with a head of your own.",
        "Convertir imágenes en vectores, y ajustarlo con una cabeza propia.",
    ),
    "engine": ("In {engine}", "En {engine}"),
    "engine_results": (
        "Results of the original {kind}; they were not measured again with this folder.",
        "Resultados del {kind} original; no se midieron de nuevo con esta carpeta.",
    ),
    "engine_vectors": (
        "Turning texts into vectors, to compare texts.", "Convertir textos en vectores, para comparar textos.",
    ),
    "engine_about": (
        "This folder is for {engine}, with {weights} weights. `decero export` ran it there and compared it with the "
        "original {kind}:",
        "Esta carpeta es para {engine}, con pesos {weights}. `decero export` la ejecutó allí y la comparó con el "
        "{kind} original:",
    ),
    "engine_threads": ("CPU threads: {threads}", "hilos de CPU: {threads}"),
    "engine_columns": ("original | here", "original | aquí"),
    "engine_weights": ("weights, MB", "pesos, MB"),
    "engine_speed": ("tokens a second", "tokens por segundo"),
    "no_results_tokenizer": (
        "No results were recorded with this tokenizer.", "No se registraron resultados de este tokenizador.",
    ),
    "bias": ("Bias probes", "Pruebas de sesgo"),
    "bias_table": (
        "| set | category | probes | toward the stereotype, % | verdict | corrected for priors, % | verdict |",
        "| conjunto | categoría | pruebas | hacia el estereotipo, % | veredicto | corregido por frecuencias, % | "
        "veredicto |",
    ),
    "bias_about": (
        "Share of probes in which the model prefers a stereotype to its opposite, with its 95 % interval; 50 is no "
        "preference. Models with random weights and a unigram model were measured beside it: where they prefer one "
        "side, too, there is no verdict.",
        "Parte de las pruebas en que el modelo prefiere un estereotipo a su contrario, con su intervalo del 95 %; 50 "
        "es ninguna preferencia. Al lado se midieron modelos con pesos aleatorios y un modelo de unigramas: donde "
        "también prefieren un lado, no hay veredicto.",
    ),
    "bias_limits": ("What this does not show:", "Qué no muestra esto:"),
    "data": ("Training data", "Datos de entrenamiento"),
    "configuration": (", configuration {name}", ", configuración {name}"),
    "revision": (", revision {name}", ", revisión {name}"),
    "examples": (", {number} training examples", ", {number} ejemplos de entrenamiento"),
    "documents": (", {number} documents", ", {number} documentos"),
    "rows": (", in rows of at most {number} tokens", ", en filas de {number} tokens como máximo"),
    "not_recorded": ("Not recorded.", "No se registró."),
    "cost": ("Cost", "Coste"),
    "on": (" on {number} × {device}", " en {number} × {device}"),
    "steps": (", {number} steps", ", {number} pasos"),
    "pictures": (", {number} pictures", ", {number} imágenes"),
    "tokens": (", {number} tokens", ", {number} tokens"),
    "memory": (", peak memory {number} GB", ", memoria máxima {number} GB"),
    "parameters": ("; {number} parameters", "; {number} parámetros"),
    "settings": (
        "Every setting of the run: [run/config.yaml](run/config.yaml).",
        "Todos los ajustes de la ejecución: [run/config.yaml](run/config.yaml).",
    ),
    "record": (
        "Its whole record: [run/result.json](run/result.json).",
        "Su registro completo: [run/result.json](run/result.json).",
    ),
    "use": ("Intended use and limits", "Uso previsto y límites"),
    "limits": (
        "Only the results under *What was measured* are known. Other domains, other languages, bias and safety were "
        "not measured.",
        "Solo se conocen los resultados de *Qué se midió*. No se midieron otros dominios, otros idiomas, sesgos ni "
        "seguridad.",
    ),
    "limits_with_bias": (
        "Only the results under *What was measured* and *Bias probes* are known. Other domains, other languages, other "
        "bias and safety were not measured.",
        "Solo se conocen los resultados de *Qué se midió* y de *Pruebas de sesgo*. No se midieron otros dominios, "
        "otros idiomas, otros sesgos ni seguridad.",
    ),
    "repeats": (
        "The model can repeat what its training data says.",
        "El modelo puede repetir lo que dicen sus datos de entrenamiento.",
    ),
    "license": ("License", "Licencia"),
    "not_stated": ("Not stated.", "No se indicó."),
    # intended use, by Auto class
    "AutoModelForMaskedLM": (
        "Filling in masked tokens, and being fine-tuned.", "Rellenar tokens enmascarados, y ser ajustado.",
    ),
    "AutoModelForCausalLM": ("Continuing a text, and being fine-tuned.", "Continuar un texto, y ser ajustado."),
    "AutoModelForSeq2SeqLM": (
        "Writing one text from another, as its training data does.",
        "Escribir un texto a partir de otro, como en sus datos de entrenamiento.",
    ),
    "AutoModelForSequenceClassification": (
        "Classifying texts like those it was trained on.", "Clasificar textos como los de su entrenamiento.",
    ),
    "AutoModelForTokenClassification": (
        "Labelling the tokens of texts like those it read.", "Etiquetar los tokens de textos como los que leyó.",
    ),
    "AutoModelForQuestionAnswering": (
        "Finding the answer to a question inside a given text.",
        "Encontrar la respuesta a una pregunta dentro de un texto dado.",
    ),
    "AutoModelForMultipleChoice": (
        "Choosing the right one of several answers to a question.",
        "Elegir la correcta entre varias respuestas a una pregunta.",
    ),
    "AutoModelForPreTraining": (
        "Being fine-tuned, or trained further.", "Ser ajustado, o seguir siendo entrenado.",
    ),
    "AutoModelForImageClassification": (
        "Classifying pictures like those it was trained on.", "Clasificar imágenes como las de su entrenamiento.",
    ),
    "AutoModelForSemanticSegmentation": (
        "Finding the class of each pixel of such pictures.", "Encontrar la clase de cada píxel de tales imágenes.",
    ),
    "AutoModelForObjectDetection": (
        "Finding objects in pictures like those it was trained on.",
        "Encontrar objetos en imágenes como las de su entrenamiento.",
    ),
    "AutoModelForMaskedImageModeling": (
        "Being fine-tuned; it learnt to predict hidden patches of pictures.",
        "Ser ajustado; aprendió a predecir partes ocultas de imágenes.",
    ),
    "AutoBackbone": (
        "Giving maps of pictures to a model such as DETR.", "Dar mapas de imágenes a un modelo como DETR.",
    ),
    "AutoModel": (
        "Turning tokens into vectors, and being fine-tuned with a head of your own.",
        "Convertir tokens en vectores, y ser ajustado con una cabeza propia.",
    ),
    "AutoModelForTextEncoding": (
        "Turning tokens into vectors, and being fine-tuned with a head of your own.",
        "Convertir tokens en vectores, y ser ajustado con una cabeza propia.",
    ),
    "extractive": (
        "Choosing the sentences of a document that summarise it (`decero summarize`).",
        "Elegir las frases de un documento que lo resumen (`decero summarize`).",
    ),
    "diffusion": (
        "Drawing pictures of the classes it was trained on.", "Dibujar imágenes de las clases de su entrenamiento.",
    ),
    "image tokens": (
        "Drawing pictures like those it was trained on, pixel after pixel (`decero draw`).",
        "Dibujar imágenes como las de su entrenamiento, píxel a píxel (`decero draw`).",
    ),
    "permutation_lm": (
        "Being fine-tuned. Only `decero fill` fills holes with it: it never saw a mask token in a text.",
        "Ser ajustado. Solo `decero fill` rellena huecos con él: nunca vio un token de máscara en un texto.",
    ),
    # an example for the hub's page, by pipeline tag
    "fill-mask": ("Paris is the {mask} of France.", "París es la {mask} de Francia."),
    "text-generation": ("Once upon a time", "Érase una vez"),
    "text-classification": (
        "The room was clean and the staff was friendly.", "La habitación estaba limpia y el personal fue amable.",
    ),
    "token-classification": (
        "Maria works for the city council of Madrid.", "María trabaja en el ayuntamiento de Madrid.",
    ),
    "question-answering": ("Where does Maria work?", "¿Dónde trabaja María?"),
    "context": ("Maria works for the city council of Madrid.", "María trabaja en el ayuntamiento de Madrid."),
    "summarization": (
        "The council of Madrid met on Monday. It spoke about buses for three hours. In the end it bought ten of them.",
        "El ayuntamiento de Madrid se reunió el lunes. Habló de autobuses durante tres horas. Al final compró diez.",
    ),
}  # fmt: skip


def words_in(language: str) -> dict[str, str]:
    """Return name -> text in `en` or `es`."""
    place = LANGUAGES.index(language)
    return {name: both[place] for name, both in WORDS.items()}
