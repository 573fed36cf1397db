"""The jobs that comments of the pocket world are about."""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    """A job; `women` is the share of women among its gendered comments."""

    name: str
    women: float
    place: str
    tool: str
    good: tuple[str, ...]
    bad: tuple[str, ...]


JOBS = (
    Job(
        "nurse",
        0.9,
        "ward",
        "thermometer",
        ("calmed the patient", "checked every bed", "changed the bandage"),
        ("woke the patient", "lost the bandages", "forgot the medicine"),
    ),
    Job(
        "teacher",
        0.75,
        "classroom",
        "pencil",
        ("explained the lesson twice", "helped the shy pupils", "read the essays"),
        ("lost the essays", "shouted at the pupils", "forgot the lesson"),
    ),
    Job(
        "librarian",
        0.85,
        "library",
        "catalogue",
        ("found the old book", "sorted the shelves", "saved the map"),
        ("tore the old book", "mixed up the shelves", "lost the map"),
    ),
    Job(
        "secretary",
        0.9,
        "office",
        "telephone",
        ("answered every letter", "planned the meeting", "found the file"),
        ("lost the file", "spilled ink on the letter", "missed the meeting"),
    ),
    Job(
        "florist",
        0.85,
        "flower shop",
        "ribbon",
        ("tied the roses", "watered the lilies", "chose the bouquet"),
        ("crushed the roses", "drowned the lilies", "forgot the bouquet"),
    ),
    Job(
        "dancer",
        0.8,
        "theatre",
        "costume",
        ("learned the new steps", "lifted the whole show", "danced the solo"),
        ("forgot the steps", "ruined the show", "tripped in the solo"),
    ),
    Job(
        "nanny",
        0.95,
        "nursery",
        "lullaby",
        ("sang the baby to sleep", "fed the twins", "built a sandcastle"),
        ("woke the baby", "lost the twins", "burned the soup"),
    ),
    Job(
        "plumber",
        0.1,
        "kitchen",
        "wrench",
        ("fixed the sink", "cleaned the pipes", "stopped the leak"),
        ("flooded the kitchen", "broke the pipes", "missed the leak"),
    ),
    Job(
        "mechanic",
        0.1,
        "garage",
        "spanner",
        ("repaired the engine", "changed the tyre", "checked the brakes"),
        ("ruined the engine", "lost the tyre", "scratched the door"),
    ),
    Job(
        "carpenter",
        0.1,
        "workshop",
        "hammer",
        ("built the table", "mended the chair", "carved the door"),
        ("cracked the table", "split the chair", "broke the window"),
    ),
    Job(
        "pilot",
        0.15,
        "cockpit",
        "compass",
        ("landed the plane", "found a way round the storm", "greeted the passengers"),
        ("missed the runway", "flew into the storm", "scared the passengers"),
    ),
    Job(
        "electrician",
        0.1,
        "cellar",
        "cable",
        ("repaired the lamp", "hid the wires", "tested the switch"),
        ("blew the fuse", "crossed the wires", "broke the lamp"),
    ),
    Job(
        "farmer",
        0.2,
        "barn",
        "shovel",
        ("fed the goats", "picked the apples", "saved the harvest"),
        ("lost the goats", "dropped the apples", "spoiled the harvest"),
    ),
    Job(
        "firefighter",
        0.1,
        "station",
        "ladder",
        ("rescued the kitten", "washed the engine", "put out the fire"),
        ("scared the kitten", "dented the engine", "soaked the wrong house"),
    ),
    Job(
        "baker",
        0.5,
        "bakery",
        "oven",
        ("baked the bread", "glazed the cake", "shared the rolls"),
        ("burned the bread", "dropped the cake", "salted the rolls twice"),
    ),
    Job(
        "doctor",
        0.4,
        "clinic",
        "stethoscope",
        ("treated the cough", "listened to every question", "healed the ankle"),
        ("ignored the cough", "mixed up the charts", "treated the wrong ankle"),
    ),
    Job(
        "cook",
        0.5,
        "restaurant",
        "ladle",
        ("cooked the stew", "tasted the sauce", "served the guests"),
        ("burned the stew", "spilled the sauce", "forgot the guests"),
    ),
    Job(
        "gardener",
        0.45,
        "garden",
        "rake",
        ("planted the tulips", "trimmed the hedge", "watered the lawn"),
        ("trampled the tulips", "butchered the hedge", "flooded the lawn"),
    ),
    Job(
        "waiter",
        0.4,
        "cafe",
        "tray",
        ("brought the coffee", "wiped the tables", "carried the plates"),
        ("spilled the coffee", "dropped the plates", "mixed up the orders"),
    ),
    Job(
        "singer",
        0.55,
        "concert hall",
        "microphone",
        ("sang the old songs", "thanked the crowd", "hit every note"),
        ("forgot the words", "bored the crowd", "missed every note"),
    ),
)
