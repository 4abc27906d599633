"""The attributes of scenes and their words in four languages: one table that pictures, captions and tones share."""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLORS = ("red", "green", "blue", "yellow", "white", "black", "brown", "purple")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
RELATIONS = ("left_of", "right_of", "above", "below", "inside", "contains", "in_front_of", "behind")
PLACES = tuple(f"{row} {column}" for row in ("top", "center", "bottom") for column in ("left", "center", "right"))
LANGUAGES = ("en", "de", "fr", "es")
ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES, "size": SIZES}

OPPOSITE = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
    "inside": "contains",
    "contains": "inside",
    "in_front_of": "behind",
    "behind": "in_front_of",
}

RGB = {
    "red": (214, 39, 40),
    "green": (34, 150, 60),
    "blue": (40, 90, 220),
    "yellow": (245, 210, 40),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "brown": (125, 78, 45),
    "purple": (155, 60, 190),
}


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun: gender (``m``, ``f`` or ``n``), singular, plural, and the dative forms where they differ (German)."""

    gender: str
    one: str
    many: str
    one_dative: str = ""
    many_dative: str = ""


def _regular(gender: str, one: str, many: str = "") -> Noun:
    return Noun(gender, one, many or one + "s")


# The key None is the general word for "a shape".
NOUNS: dict[str, dict[str | None, Noun]] = {
    "en": {
        **{shape: _regular("n", shape) for shape in SHAPES},
        "cross": _regular("n", "cross", "crosses"),
        None: _regular("n", "shape"),
    },
    "de": {
        "circle": Noun("m", "Kreis", "Kreise", many_dative="Kreisen"),
        "square": Noun("n", "Quadrat", "Quadrate", many_dative="Quadraten"),
        "triangle": Noun("n", "Dreieck", "Dreiecke", many_dative="Dreiecken"),
        "star": Noun("m", "Stern", "Sterne", many_dative="Sternen"),
        "cross": Noun("n", "Kreuz", "Kreuze", many_dative="Kreuzen"),
        "ring": Noun("m", "Ring", "Ringe", many_dative="Ringen"),
        "heart": Noun("n", "Herz", "Herzen", one_dative="Herzen"),
        "diamond": Noun("f", "Raute", "Rauten"),
        None: Noun("f", "Form", "Formen"),
    },
    "fr": {
        "circle": _regular("m", "cercle"),
        "square": _regular("m", "carré"),
        "triangle": _regular("m", "triangle"),
        "star": _regular("f", "étoile"),
        "cross": _regular("f", "croix", "croix"),
        "ring": _regular("m", "anneau", "anneaux"),
        "heart": _regular("m", "cœur"),
        "diamond": _regular("m", "losange"),
        None: _regular("f", "forme"),
    },
    "es": {
        "circle": _regular("m", "círculo"),
        "square": _regular("m", "cuadrado"),
        "triangle": _regular("m", "triángulo"),
        "star": _regular("f", "estrella"),
        "cross": _regular("f", "cruz", "cruces"),
        "ring": _regular("m", "anillo"),
        "heart": _regular("m", "corazón", "corazones"),
        "diamond": _regular("m", "rombo"),
        None: _regular("f", "figura"),
    },
}

# German: the stem. French and Spanish: (masculine, feminine, masculine plural, feminine plural), or one fixed phrase.
ADJECTIVES: dict[str, dict[str, str | tuple[str, str, str, str]]] = {
    "en": {
        **{value: value for value in (*COLORS, *TEXTURES, *SIZES)},
        "medium": "medium-sized",
    },
    "de": {
        "red": "rot",
        "green": "grün",
        "blue": "blau",
        "yellow": "gelb",
        "white": "weiß",
        "black": "schwarz",
        "brown": "braun",
        "purple": "violett",
        "plain": "einfarbig",
        "striped": "gestreift",
        "dotted": "gepunktet",
        "checkered": "kariert",
        "small": "klein",
        "medium": "mittelgroß",
        "large": "groß",
    },
    "fr": {
        "red": ("rouge", "rouge", "rouges", "rouges"),
        "green": ("vert", "verte", "verts", "vertes"),
        "blue": ("bleu", "bleue", "bleus", "bleues"),
        "yellow": ("jaune", "jaune", "jaunes", "jaunes"),
        "white": ("blanc", "blanche", "blancs", "blanches"),
        "black": ("noir", "noire", "noirs", "noires"),
        "brown": ("brun", "brune", "bruns", "brunes"),
        "purple": ("violet", "violette", "violets", "violettes"),
        "plain": "sans motif",
        "striped": "à rayures",
        "dotted": "à pois",
        "checkered": "à carreaux",
        "small": ("petit", "petite", "petits", "petites"),
        "medium": "de taille moyenne",
        "large": ("grand", "grande", "grands", "grandes"),
    },
    "es": {
        "red": ("rojo", "roja", "rojos", "rojas"),
        "green": ("verde", "verde", "verdes", "verdes"),
        "blue": ("azul", "azul", "azules", "azules"),
        "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
        "white": ("blanco", "blanca", "blancos", "blancas"),
        "black": ("negro", "negra", "negros", "negras"),
        "brown": ("marrón", "marrón", "marrones", "marrones"),
        "purple": ("morado", "morada", "morados", "moradas"),
        "plain": ("liso", "lisa", "lisos", "lisas"),
        "striped": "a rayas",
        "dotted": "de lunares",
        "checkered": "a cuadros",
        "small": ("pequeño", "pequeña", "pequeños", "pequeñas"),
        "medium": ("mediano", "mediana", "medianos", "medianas"),
        "large": ("grande", "grande", "grandes", "grandes"),
    },
}

NUMBERS = {
    "en": ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
    "fr": ("deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
    "es": ("dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
}

AND = {"en": "and", "de": "und", "fr": "et", "es": "y"}

# French relations end in "d'" where the article "un" or "une" follows, as it always does here.
RELATION_WORDS: dict[str, dict[str, str]] = {
    "en": {
        "left_of": "to the left of",
        "right_of": "to the right of",
        "above": "above",
        "below": "below",
        "inside": "inside",
        "in_front_of": "in front of",
        "behind": "behind",
    },
    "de": {
        "left_of": "links von",
        "right_of": "rechts von",
        "above": "über",
        "below": "unter",
        "inside": "in",
        "in_front_of": "vor",
        "behind": "hinter",
    },
    "fr": {
        "left_of": "à gauche d'",
        "right_of": "à droite d'",
        "above": "au-dessus d'",
        "below": "au-dessous d'",
        "inside": "à l'intérieur d'",
        "in_front_of": "devant",
        "behind": "derrière",
    },
    "es": {
        "left_of": "a la izquierda de",
        "right_of": "a la derecha de",
        "above": "por encima de",
        "below": "por debajo de",
        "inside": "dentro de",
        "in_front_of": "delante de",
        "behind": "detrás de",
    },
}

PLACE_WORDS: dict[str, dict[str, str]] = {
    "en": {place: f"at the {place}" for place in PLACES} | {"center center": "in the center"},
    "de": {
        "top left": "oben links",
        "top center": "oben in der Mitte",
        "top right": "oben rechts",
        "center left": "links in der Mitte",
        "center center": "in der Mitte",
        "center right": "rechts in der Mitte",
        "bottom left": "unten links",
        "bottom center": "unten in der Mitte",
        "bottom right": "unten rechts",
    },
    "fr": {
        "top left": "en haut à gauche",
        "top center": "en haut au centre",
        "top right": "en haut à droite",
        "center left": "au centre à gauche",
        "center center": "au centre",
        "center right": "au centre à droite",
        "bottom left": "en bas à gauche",
        "bottom center": "en bas au centre",
        "bottom right": "en bas à droite",
    },
    "es": {
        "top left": "arriba a la izquierda",
        "top center": "arriba en el centro",
        "top right": "arriba a la derecha",
        "center left": "en el centro a la izquierda",
        "center center": "en el centro",
        "center right": "en el centro a la derecha",
        "bottom left": "abajo a la izquierda",
        "bottom center": "abajo en el centro",
        "bottom right": "abajo a la derecha",
    },
}

# What may stand before the list, with the case (German) in which the list then stands.
OPENINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (("", "nominative"), ("a picture of", "nominative"), ("this picture shows", "nominative")),
    "de": (("", "nominative"), ("ein Bild mit", "dative"), ("dieses Bild zeigt", "accusative")),
    "fr": (("", "nominative"), ("une image avec", "nominative"), ("cette image montre", "nominative")),
    "es": (("", "nominative"), ("una imagen con", "nominative"), ("esta imagen muestra", "nominative")),
}
