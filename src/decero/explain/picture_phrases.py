"""Every word about pictures in a page, in English and Spanish: `phrases` gives them with the others."""

# name -> (English, Spanish); {names} in braces are filled in
PICTURE_PHRASES: dict[str, tuple[str, str]] = {
    "picture": ("picture", "imagen"),
    "picture_attention": ("Attention over the picture", "Atención sobre la imagen"),
    "picture_attention_about": (
        "Each small picture shows how much the class token looks at each patch (a model without one: the mean of all "
        "patches). Bright patches get more weight. With several layers, each picture is the mean of all heads.",
        "Cada imagen pequeña muestra cuánto mira el token de clase a cada parche (en un modelo sin él: la media de "
        "todos los parches). Los parches claros reciben más peso. Con varias capas, cada imagen es la media de todas "
        "las cabezas.",
    ),
    "picture_attention_caution": (
        "A weight says how much is mixed in one layer. It does not say that this patch decided the answer. After some "
        "layers, a token holds parts of many patches, not only of its own.",
        "Un peso dice cuánto se mezcla en una capa. No dice que ese parche haya decidido la respuesta. Después de "
        "algunas capas, un token contiene partes de muchos parches, no solo del suyo.",
    ),
    "picture_rollout": ("Rollout over the picture", "Rollout sobre la imagen"),
    "picture_rollout_about": (
        "The mean of all heads and layers, and attention rollout: the layers multiplied, half attention and half "
        "residual connection (Abnar and Zuidema 2020). Bright patches have a larger share in the class token.",
        "La media de todas las cabezas y capas, y el rollout de la atención: las capas multiplicadas, mitad atención "
        "y mitad conexión residual (Abnar y Zuidema 2020). Los parches claros tienen más parte en el token de clase.",
    ),
    "picture_rollout_caution": (
        "Rollout ignores values and the feed-forward layers. It was not compared with the effect of hiding patches.",
        "El rollout ignora los valores y las capas feed-forward. No se ha comparado con el efecto de ocultar parches.",
    ),
    "picture_dream": ("Dream", "Sueño"),
    "picture_dream_about": (
        "The picture is changed in {steps} small steps, each along the gradient of {goal}. The last picture shows what "
        "makes this number large for this model (Mordvintsev et al. 2015). Each step shifts the picture by up to "
        "{jitter} pixels at random and prefers smooth pictures (total variation).",
        "La imagen cambia en {steps} pasos pequeños, cada uno según el gradiente de {goal}. La última imagen muestra "
        "qué hace grande ese número en este modelo (Mordvintsev et al. 2015). Cada paso desplaza la imagen hasta "
        "{jitter} píxeles al azar y prefiere imágenes suaves (variación total).",
    ),
    "picture_dream_caution": (
        "The model has not seen this picture, and it is not a typical picture of the class. A classifier can be sure "
        "of pictures that mean nothing to people. Another seed gives another picture.",
        "El modelo no ha visto esta imagen, y no es una imagen típica de la clase. Un clasificador puede estar seguro "
        "ante imágenes que no significan nada para las personas. Otra semilla da otra imagen.",
    ),
    "dream_class": ("the logit of {name}", "el logit de {name}"),
    "dream_head": ("the output of layer {layer}, head {head}", "la salida de la capa {layer}, cabeza {head}"),
    "dream_layer": ("the output of the heads of layer {layer}", "la salida de las cabezas de la capa {layer}"),
    "dream_step": ("step {step}", "paso {step}"),
    "dream_steps": ("step", "paso"),
    "dream_rise": ("{goal}, step by step", "{goal}, paso a paso"),
    "dream_answers": ("What the model says", "Qué dice el modelo"),
    "dream_label": ("class", "clase"),
    "dream_before": ("before", "antes"),
    "dream_after": ("after", "después"),
}
