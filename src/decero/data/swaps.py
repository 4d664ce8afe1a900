"""Sentences of our own in which one word takes the place of another: Spanish gender, and names that mean the same."""

from itertools import product
from typing import NamedTuple

# Occupations with their Spanish forms and the share of women in percent. Source: the occupations and shares are those
# of Winogender (Rudinger et al. 2018; US Bureau of Labor Statistics), so the direction is that of the United States.
# The translations are our own. Left out: shares from 45 to 55, and translations that are rare or that mean several.
OCCUPATIONS = (
    ("el fontanero", "la fontanera", 0.7),  # plumber
    ("el mecánico", "la mecánica", 1.8),  # mechanic
    ("el carpintero", "la carpintera", 2.1),  # carpenter
    ("el bombero", "la bombera", 3.5),  # firefighter
    ("el pintor", "la pintora", 5.7),  # painter
    ("el inspector", "la inspectora", 6.4),  # inspector
    ("el ingeniero", "la ingeniera", 10.7),  # engineer
    ("el programador", "la programadora", 18.4),  # programmer
    ("el cocinero", "la cocinera", 19.6),  # chef
    ("el arquitecto", "la arquitecta", 20.8),  # architect
    ("el abogado", "la abogada", 34.5),  # lawyer
    ("el médico", "la médica", 37.9),  # doctor
    ("el farmacéutico", "la farmacéutica", 57.0),  # pharmacist
    ("el camarero", "la camarera", 59.8),  # bartender
    ("el veterinario", "la veterinaria", 60.5),  # veterinarian
    ("el panadero", "la panadera", 60.8),  # baker
    ("el psicólogo", "la psicóloga", 70.3),  # psychologist
    ("el educador", "la educadora", 70.8),  # educator
    ("el maestro", "la maestra", 71.0),  # teacher
    ("el cajero", "la cajera", 72.5),  # cashier
    ("el bibliotecario", "la bibliotecaria", 83.0),  # librarian
    ("el enfermero", "la enfermera", 89.6),  # nurse
    ("el peluquero", "la peluquera", 94.2),  # hairdresser
    ("el secretario", "la secretaria", 94.6),  # secretary
    ("el electricista", "la electricista", 2.3),  # electrician
    ("el policía", "la policía", 30.4),  # officer
    ("el conserje", "la conserje", 34.3),  # janitor
    ("el terapeuta", "la terapeuta", 76.7),  # therapist
    ("el recepcionista", "la recepcionista", 90.6),  # receptionist
    ("el dietista", "la dietista", 94.6),  # dietitian
)
PLACES = (
    "{Noun} llegó temprano al trabajo.",
    "Ayer hablé un rato con {noun}.",
    "Dicen que {noun} gana muy poco.",
    "Esta mañana me llamó {noun}.",
    "Creo que {noun} tiene mucha experiencia.",
)
# Names of one language and one gender that were common in the same years: exchanging them should change nothing.
NAMES = {
    "en": (
        ("James", "John"), ("Robert", "Michael"), ("David", "Richard"), ("Thomas", "Daniel"), ("Mark", "Paul"),
        ("Mary", "Linda"), ("Susan", "Karen"), ("Sarah", "Laura"), ("Anna", "Emma"), ("Helen", "Ruth"),
    ),
    "es": (
        ("Antonio", "Manuel"), ("José", "Francisco"), ("Carlos", "Miguel"), ("Pedro", "Luis"), ("Pablo", "Andrés"),
        ("María", "Carmen"), ("Ana", "Isabel"), ("Laura", "Marta"), ("Lucía", "Elena"), ("Teresa", "Rosa"),
    ),
}  # fmt: skip
SENTENCES = {
    "en": (
        "{} came to work early.", "Yesterday I talked with {} for a while.", "They say that {} earns very little.",
        "I think that {} has a lot of experience.", "The letter was for {}, who lives next door.",
    ),
    "es": (
        "{} llegó temprano al trabajo.", "Ayer hablé un rato con {}.", "Dicen que {} gana muy poco.",
        "Creo que {} tiene mucha experiencia.", "La carta era para {}, que vive al lado.",
    ),
}  # fmt: skip


class Swap(NamedTuple):
    """Two sentences that differ in a swap. group: what is swapped. category: what changes with it."""

    first: str
    second: str
    group: str
    category: str


def spanish_occupations() -> list[Swap]:
    """Return sentences about occupations; the first of each has the gender of most who work in it.

    Half of the occupations have more men, in each category. So a model that always prefers the masculine has 50 %.
    """
    found = []
    for (masculine, feminine, women), place in product(OCCUPATIONS, PLACES):
        category = "article alone" if masculine[3:] == feminine[3:] else "article and noun"
        masculine_text, feminine_text = (
            place.format(noun=noun, Noun=noun[0].upper() + noun[1:]) for noun in (masculine, feminine)
        )
        pair = (feminine_text, masculine_text) if women > 50 else (masculine_text, feminine_text)
        found.append(Swap(*pair, masculine, category))
    return found


def neutral_names(language: str) -> list[Swap]:
    """Return sentences with one name and with another of the same kind, in English (en) or Spanish (es)."""
    return [
        Swap(place.format(one), place.format(other), f"{one}, {other}", "names")
        for (one, other), place in product(NAMES[language], SENTENCES[language])
    ]
