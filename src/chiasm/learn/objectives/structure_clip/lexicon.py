"""The words that the caption parser knows: closed classes in full, frequent verbs and adjectives; everything else is a noun.

Made for captions of pictures. Extend it for another domain with ``parse(text, adjectives={...}, verbs={...})``.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    """Phrases between bars, with single spaces."""
    return [" ".join(phrase.split()) for phrase in text.split("|")]


DETERMINERS = frozenset(
    _words("""a an the this that these those some any another each every no his her its their my your our both all one
    two three four five six seven eight nine ten eleven twelve several many few various multiple numerous
    other more most""")
)
# "a group of people" is one mention whose head is "people".
GROUPS = frozenset(
    _words("""group groups couple pair pairs bunch number lot lots set sets row rows herd flock crowd pile piles piece
    pieces slice slices bowl bowls plate plates glass glasses cup cups bottle bottles variety series line
    stack team pack bit kind kinds type types sort assortment collection""")
)
AUXILIARIES = frozenset(
    _words("""is are was were be been being am has have had can could will would may might do does did gets get""")
)
ADVERBS = frozenset(
    _words("""very really quite almost just also still already again always not n't only even too so together well
    away apart alone aside there here then now slowly quickly happily closely carefully outside outdoors
    indoors half partially currently ready upside""")
)
# After these a verb belongs to the subject of the sentence, not to the noun before it.
JOINS = frozenset(_words("""and or but while as when then"""))
# A relative pronoun passes the noun before it on to the verb.
RELATIVES = frozenset(["that", "which", "who", "whom"])
# Words that stand for something outside of the sentence's nouns: no mention, and nothing attaches across them.
BREAKS = frozenset(
    _words("""he she it they him them himself herself itself themselves someone something everyone everything nothing
    i you we me us what where how why if because""")
)
FILLERS = (("each", "other"), ("one", "another"), ("there", "is"), ("there", "are"))

_SIMPLE = _words("""in on at of with under beneath below above over behind beside besides near by to from into onto inside
    outside around through across along against between among toward towards upon underneath within without past beyond off
    up down like for about atop amid alongside amongst opposite during before after""")
_COMPLEX = _phrases("""next to|close to|in front of|on top of|on the top of|on the side of|on the edge of|on the back of|
    at the end of|at the top of|at the bottom of|at the edge of|in the middle of|in the center of|in the back of|
    in the corner of|in between|inside of|outside of|out of|on the left of|on the right of|to the left of|to the right of|
    left of|right of|off of|along with|together with|adjacent to|across from|away from|attached to|connected to|full of|
    such as|as well as|on the other side of|side by side with""")
PREPOSITIONS = frozenset(tuple(phrase.split()) for phrase in (*_SIMPLE, *_COMPLEX))
LONGEST_PREPOSITION = max(map(len, PREPOSITIONS))
# Relations that say the same when their ends change places; swapping them makes no false sentence.
SYMMETRIC = frozenset(
    _phrases("""near|next to|with|without|beside|besides|by|close to|alongside|along with|together with|adjacent to|
    across from|between|in between|among|amongst|amid|opposite|and|as well as|connected to|attached to|like|such as|
    side by side with""")
)
SYMMETRIC_VERBS = frozenset(
    _words("""touch face meet kiss hug embrace marry resemble match be equal join border fight""")
)

ADJECTIVES = frozenset(
    _words("""red green blue yellow purple orange gray grey brown black white pink golden gold silver beige tan maroon
    turquoise teal violet navy colorful colored multicolored dark light bright pale big small large little
    tiny huge giant tall short long wide narrow thick thin high low deep heavy enormous massive mini young
    old elderly new ancient modern antique vintage older younger adult baby wooden metal metallic plastic
    glass brick stone concrete leather rubber woolen cotton paper marble ceramic steel striped spotted
    floral plaid checkered patterned furry fluffy hairy shiny smooth rough soft hard fuzzy round square
    circular rectangular triangular curved straight flat pointy oval wet dry clean dirty dusty muddy sandy
    snowy snow-covered rocky grassy icy rusty messy neat tidy empty full open closed broken folded wrinkled
    parked stuffed fried baked cooked raw fresh ripe sliced chopped grilled toasted frosted frozen hot cold
    warm cool sunny cloudy rainy foggy clear sharp bare naked bald blonde blond brunette bearded shirtless
    barefoot happy sad angry smiling sleeping tired hungry cute pretty beautiful ugly handsome lovely nice
    fancy plain strange funny busy crowded quiet calm loud fast slow strong weak wild tame asleep awake
    alive dead male female asian african american chinese japanese indian european urban rural public
    private sweet sour tasty delicious healthy cheesy crusty leafy lush dense sparse green-eyed upside-down
    tropical residential commercial parallel winding deserted overgrown electric digital double single whole
    different same similar unripe polka-dotted tattooed decorated oriental foreign military royal gothic
    rustic ornate elegant formal casual""")
)
# -ing and -ed words that make a compound with the noun after them rather than say what it does.
COMPOUND = frozenset(
    _words("""dining living parking cutting washing shopping swimming fishing baking frying skating playing landing
    sewing rocking tennis traffic stop fire street""")
)
NOUNS_IN_ING = frozenset(
    _words("""building buildings ceiling railing clothing painting evening morning wedding king ring string wing thing
    spring swing sling clearing crossing opening sibling pudding frosting icing topping stuffing dressing
    earring awning drawing covering lighting flooring tubing paneling outing ping viking wings rings""")
)
NOUNS_IN_LY = frozenset(
    _words("""family butterfly assembly supply lily belly jelly bully reply dragonfly firefly only""")
)
PLURALS = frozenset(_words("""people men women children sheep geese mice feet fish cattle police deer oxen"""))

_REGULAR = _words("""admire attach attack balance bat beg board border bounce brandish brush call carry celebrate chase check
    cheer chew circle clap clean climb close collect color compete connect contain cook cover cradle cross
    crouch crowd decorate dine display dock dress dribble drop embrace enjoy examine exercise exit eye face
    fetch fill film float follow gallop gather grab grasp graze greet groom guard guide hand handle help
    herd hitch hop hover huddle hug hunt ignite illuminate inspect iron join juggle jump kick kiss knock
    land lick lift line listen load locate look lounge march mark match mount move observe open order pack
    paint parade park pass pat peek peel perch perform pet photograph pick place plant play plug point pop
    pose position pour practice preach prepare present press pretend puff pull push race raise reach relax
    repair resemble rest roll row rub rush sail scoop score search season serve share shave shower signal
    situate skate skateboard slice smell smile smoke snack sniff snowboard soar splash spray stack stamp
    stare step stir stretch stroll stuff support surf surround swat tackle talk taste tend tie tilt top toss
    touch tow train travel trim trot tug turn twirl type unload unveil use view visit wait walk wander warm
    wash watch water wave welcome wheel whip wipe work wrap wrestle yawn zoom""")
_IRREGULAR = """ride rode ridden|hold held held|eat ate eaten|drive drove driven|throw threw thrown|catch caught caught|
    sit sat sat|stand stood stood|lie lay lain|run ran run|swim swam swum|fly flew flown|drink drank drunk|
    wear wore worn|take took taken|make made made|give gave given|get got gotten|see saw seen|feed fed fed|
    hit hit hit|read read read|write wrote written|draw drew drawn|hang hung hung|lead led led|sleep slept slept|
    cut cut cut|bite bit bitten|build built built|buy bought bought|sell sold sold|bring brought brought|
    swing swung swung|put put put|show showed shown|sing sang sung|ring rang rung|fall fell fallen|grow grew grown|
    fight fought fought|meet met met|leave left left|go went gone|come came come|shoot shot shot|tell told told|
    teach taught taught|speak spoke spoken|slide slid slid|spread spread spread|set set set|dig dug dug|sweep swept swept|
    kneel knelt knelt|lean leant leant|steal stole stolen|break broke broken|hide hid hidden|win won won|
    say said said|have had had|do did done|keep kept kept|find found found|blow blew blown|ski skied skied|
    shake shook shaken|stick stuck stuck|overlook overlooked overlooked|lay laid laid|seat seated seated"""


def _gerund(base: str) -> str:
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    return _doubled(base) + "ing"


def _doubled(base: str) -> str:
    """The last consonant doubles after one short vowel in words of one syllable: pet, petting."""
    short = len(base) >= 3 and base[-1] not in "aeiouwxy" and base[-2] in "aeiou" and base[-3] not in "aeiou"
    return base + base[-1] if short and sum(c in "aeiou" for c in base) == 1 else base


def _third(base: str) -> str:
    if base.endswith(("s", "sh", "ch", "x", "z", "o")):
        return base + "es"
    return base[:-1] + "ies" if base.endswith("y") and base[-2] not in "aeiou" else base + "s"


def _past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    return base[:-1] + "ied" if base.endswith("y") and base[-2] not in "aeiou" else _doubled(base) + "ed"


def verb_forms(bases: list[str]) -> dict[str, tuple[str, str]]:
    """Forms of regular verbs: form -> (base, one of ``"base"``, ``"third"``, ``"ing"``, ``"past"``)."""
    forms: dict[str, tuple[str, str]] = {}
    for base in bases:
        forms |= {base: (base, "base"), _third(base): (base, "third")}
        forms |= {_gerund(base): (base, "ing"), _past(base): (base, "past")}
    return forms


VERBS = verb_forms(_REGULAR)
for _entry in _IRREGULAR.replace("\n", " ").split("|"):
    _base, *_pasts = _entry.split()
    VERBS |= {_base: (_base, "base"), _third(_base): (_base, "third"), _gerund(_base): (_base, "ing")}
    VERBS |= {_form: (_base, "past") for _form in _pasts if _form != _base}
