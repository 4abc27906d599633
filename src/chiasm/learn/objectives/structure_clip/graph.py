"""Captions as scene graphs, by rules and a lexicon: who does what to whom, and which attribute belongs to which thing.

    >>> graph = parse("A red cube on a blue ball")
    >>> graph.triples()
    [('red cube', 'on', 'blue ball'), ('cube', 'is', 'red'), ('ball', 'is', 'blue')]

A pass from left to right finds mentions ("the two red cubes"), relations (verbs, prepositions, or both: "is sitting on") and
what joins them. No tagger and no network: a word that is not in the lexicon is a noun. English only; in another language
hardly anything is found, which is the same as no graph.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from chiasm.learn.objectives.structure_clip import lexicon as lex

# Words as the vocabulary of `chiasm.learn.words` splits them, but with inner hyphens and apostrophes.
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.,;:!?]")
MOST_TRIPLES = 6


@dataclass(frozen=True)
class Span:
    """Characters ``start:end`` of the lower-case caption."""

    start: int
    end: int

    def of(self, text: str) -> str:
        return text[self.start : self.end]


@dataclass(frozen=True)
class Mention:
    """A thing that the caption speaks of.

    Args:
        span: all of it, with determiner and attributes: "the two big red cubes".
        head: its noun: "cubes" (or "tennis player").
        name: without the determiner: "big red cubes".
        attributes: the attributes one by one: ("big", "red").
        described: where the attributes stand (before the noun, or after "is"); None without attributes.
        inside: whether they stand within ``span``.
    """

    span: Span
    head: str
    name: str
    attributes: tuple[str, ...] = ()
    described: Span | None = None
    inside: bool = True


@dataclass(frozen=True)
class Relation:
    """``mentions[subject] text mentions[object]``; ``symmetric`` if it says the same the other way around."""

    subject: int
    text: str
    object: int
    symmetric: bool
    span: Span


@dataclass(frozen=True)
class SceneGraph:
    """What a caption says. ``text`` is the caption in lower case."""

    text: str
    mentions: tuple[Mention, ...] = ()
    relations: tuple[Relation, ...] = ()

    def triples(self, most: int = MOST_TRIPLES) -> list[tuple[str, str, str]]:
        """Relations as (subject, relation, object), then attributes as (thing, "is", attribute); at most ``most`` (6, paper)."""
        found = [(self.mentions[r.subject].name, r.text, self.mentions[r.object].name) for r in self.relations]
        found += [(mention.head, "is", attribute) for mention in self.mentions for attribute in mention.attributes]
        return found[:most]


@dataclass
class _Token:
    text: str
    start: int
    end: int


@dataclass
class _State:
    """What the pass over the tokens knows so far."""

    mentions: list[Mention] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    # Mention -> (its subject, whether it hangs there by a mere preposition).
    parent: dict[int, tuple[int, bool]] = field(default_factory=dict)
    last: int | None = None
    subject: int | None = None
    relative: int | None = None
    joined: bool = False
    pending: list[tuple[str, int, int, str]] = field(default_factory=list)

    def forget(self) -> None:
        self.pending, self.subject = [], None


def parse(
    text: str, *, adjectives: AbstractSet[str] = frozenset(), verbs: AbstractSet[str] = frozenset()
) -> SceneGraph:
    """The scene graph of a caption.

    Args:
        text: one English sentence or phrase.
        adjectives: further words that are attributes.
        verbs: further regular verbs, in their base form.
    """
    text = text.lower()
    tokens = [_Token(m.group(), *m.span()) for m in _TOKEN.finditer(text)]
    reader = _Reader(text, tokens, lex.ADJECTIVES | adjectives, lex.VERBS | lex.verb_forms(list(verbs)))
    return reader.read()


class _Reader:
    def __init__(
        self, text: str, tokens: list[_Token], adjectives: AbstractSet[str], verbs: dict[str, tuple[str, str]]
    ) -> None:
        self.text, self.tokens, self.adjectives, self.verbs = text, tokens, adjectives, verbs
        self.words = [token.text for token in tokens]
        self.state = _State()

    def read(self) -> SceneGraph:
        at = 0
        while at < len(self.tokens):
            at = self._step(at)
        return SceneGraph(self.text, tuple(self.state.mentions), tuple(self.state.relations))

    def _step(self, at: int) -> int:
        """Reads what begins at a token; returns where the next thing begins."""
        state, word = self.state, self.words[at]
        if tuple(self.words[at : at + 2]) in lex.FILLERS:
            state.forget()
            return at + 2
        if word in ".;:!?":
            state.forget()
            state.last, state.joined = None, False
            return at + 1
        if word == "," or word in lex.JOINS:
            state.forget()
            state.joined = True
            return at + 1
        if word in lex.RELATIVES and state.last is not None and not self._noun_follows(at):
            state.forget()
            state.relative, state.joined = state.last, False
            return at + 1
        if word in lex.BREAKS:
            state.forget()
            state.last, state.joined = None, False
            return at + 1
        if word in ("has", "have", "had") and state.last is not None and self._thing_follows(at + 1):
            return self._relation(at, at + 1, word, "third")
        if word in lex.AUXILIARIES:
            return self._predicate(at)
        if word == "to" and self._infinitive(at + 1):  # "ready to hit the ball"
            return self._relation(at + 1, at + 2, self.words[at + 1], "base")
        length = self._preposition(at)
        if length:
            return self._relation(at, at + length, " ".join(self.words[at : at + length]), "preposition")
        kind = self._verb(at)
        if kind:
            return self._relation(at, at + 1, word, kind)
        if self._adverb(at):
            return at + 1
        return self._mention(at)

    def _infinitive(self, at: int) -> bool:
        verb = at < len(self.words) and self.verbs.get(self.words[at], ("", ""))[1] == "base"
        return verb and self._starts_object(at + 1)

    def _adverb(self, at: int) -> bool:
        word = self.words[at] if at < len(self.words) else ""
        known = word in lex.NOUNS_IN_LY or word in self.adjectives
        return word in lex.ADVERBS or (word.endswith("ly") and len(word) > 4 and not known)

    def _thing_follows(self, at: int) -> bool:
        """Whether a mention begins here."""
        if at >= len(self.words) or self.words[at] in lex.AUXILIARIES | lex.ADVERBS:
            return False
        return self.words[at] in lex.DETERMINERS or self._adjective(at) or self._noun_at(at)

    def _noun_follows(self, at: int) -> bool:
        """Whether "that" is a determiner here."""
        return self.words[at] == "that" and (self.state.last is None or bool(self.state.pending))

    def _preposition(self, at: int) -> int:
        """How many tokens the longest preposition here has; 0 for none."""
        for length in range(lex.LONGEST_PREPOSITION, 0, -1):
            if tuple(self.words[at : at + length]) in lex.PREPOSITIONS:
                return length
        return 0

    def _verb(self, at: int) -> str | None:
        """``"past"``, ``"ing"``, ... if the word is used as a verb here, which needs a thing before it."""
        word, state = self.words[at], self.state
        before = self.words[at - 1] if at else ""
        auxiliary = before in lex.AUXILIARIES
        if state.last is None or state.pending or (word in lex.NOUNS_IN_ING and not auxiliary):
            return None
        kind = self.verbs.get(word, ("", ""))[1]
        if not kind and word.endswith("ing") and len(word) > 5:
            kind = "ing"
        if kind in ("ing", "past"):
            described = self._adjective(at) and (state.joined or self._noun_at(at + 1) or self._adjective(at + 1))
            return None if described and not auxiliary else kind
        number = "base" if self._plural(state.last) else "third"
        if kind == number and not (state.joined and not self._starts_object(at + 1)):
            return kind
        return None

    def _starts_object(self, at: int) -> bool:
        """Whether a determiner, an attribute or a preposition follows, as it does after a verb."""
        if at >= len(self.words):
            return False
        return self.words[at] in lex.DETERMINERS or self._adjective(at) or self._preposition(at) > 0

    def _plural(self, mention: int) -> bool:
        head = self.state.mentions[mention].head.split()[-1]
        several = mention > 0 and re.search(r"\band\b", self.text[: self.state.mentions[mention].span.start][-5:])
        return bool(several) or head in lex.PLURALS or (head.endswith("s") and not head.endswith("ss"))

    def _adjective(self, at: int) -> bool:
        word = self.words[at] if at < len(self.words) else ""
        return word in self.adjectives or word.endswith(("ful", "ous", "less", "-colored", "-shaped"))

    def _predicate(self, at: int) -> int:
        """ "... is red": an attribute of the thing before; else the auxiliary says nothing."""
        end = at + 1
        while end < len(self.words) and (self.words[end] in lex.AUXILIARIES or self._adverb(end)):
            end += 1
        state = self.state
        run = self._attributes(end)
        verb = end < len(self.words) and self.verbs.get(self.words[end], ("", ""))[1] in ("ing", "past")
        if state.last is None or state.pending or run == end or verb or self._noun_at(run):
            return max(at + 1, end)
        mention = self._root(state.last)
        if not state.mentions[mention].attributes:
            state.mentions[mention] = self._described(state.mentions[mention], end, run)
        return run

    def _described(self, mention: Mention, start: int, end: int) -> Mention:
        names = self._names(start, end)
        span = Span(self.tokens[start].start, self.tokens[end - 1].end)
        return Mention(mention.span, mention.head, mention.name, names, span, inside=False)

    def _attributes(self, at: int) -> int:
        """The end of a run of attributes ("big red", "black and white") that begins here."""
        end = at
        while end < len(self.words):
            if self._adjective(end):
                end += 1
            elif end > at and self.words[end] in ("and", ",") and self._adjective(end + 1) and not self._ends(end + 1):
                end += 2
            else:
                break
        return end

    def _ends(self, at: int) -> bool:
        """Whether an attribute at ``at`` is really the noun: nothing follows that it could belong to."""
        return self.words[at - 1] == "," and not self._noun_at(at + 1)

    def _names(self, start: int, end: int) -> tuple[str, ...]:
        if "and" in self.words[start:end]:
            return (self.text[self.tokens[start].start : self.tokens[end - 1].end],)
        return tuple(word for word in self.words[start:end] if word != ",")

    def _noun_at(self, at: int) -> bool:
        """Whether a noun can stand here."""
        if at >= len(self.words):
            return False
        word = self.words[at]
        closed = (
            word in lex.DETERMINERS | lex.AUXILIARIES | lex.JOINS | lex.RELATIVES | lex.BREAKS
            or self._adverb(at)
            or word in ".,;:!?"
            or self._preposition(at) > 0
        )
        if closed:
            return False
        kind = self.verbs.get(word, ("", ""))[1]
        participle = kind in ("ing", "past") or (word.endswith("ing") and len(word) > 5)
        return not participle or word in lex.NOUNS_IN_ING or word in lex.COMPOUND

    def _mention(self, at: int) -> int:
        """A determiner, attributes, nouns; "of" goes on after words like "group"."""
        start = at
        while at < len(self.words) and self.words[at] in lex.DETERMINERS:
            at += 1
        first = at
        while at < len(self.words) and self._adverb(at) and (self._adjective(at + 1) or self._participle(at + 1)):
            at += 1
        begin = at
        at = self._attributes(at)
        # A participle right before a noun is an attribute, too: "a parked car".
        while at < len(self.words) and self._participle(at) and (self._noun_at(at + 1) or self._adjective(at + 1)):
            at = max(at + 1, self._attributes(at + 1))
        noun = at
        while self._noun_at(at) and not (at > noun and (self._closes(noun, at) or self._adjective(at))):
            at += 1
        if at == noun:
            if at == begin:  # a determiner and nothing that it belongs to
                return max(at, start + 1)
            noun -= 1  # "an orange": the last attribute is the noun
        if self.words[at - 1] in lex.GROUPS and self.words[at : at + 1] == ["of"] and at + 1 < len(self.words):
            inner = self._inner(at + 1)
            if inner is not None:
                return self._keep(start, first, *inner)
        return self._keep(start, first, begin, noun, at)

    def _inner(self, at: int) -> tuple[int, int, int] | None:
        """Attributes and nouns of what a group consists of."""
        while at < len(self.words) and self.words[at] in lex.DETERMINERS:
            at += 1
        begin, noun = at, self._attributes(at)
        end = noun
        while self._noun_at(end) and not (end > noun and (self._closes(noun, end) or self._adjective(end))):
            end += 1
        if end == begin:
            return None
        return begin, (noun if end > noun else noun - 1), end

    def _participle(self, at: int) -> bool:
        word = self.words[at] if at < len(self.words) else ""
        kind = self.verbs.get(word, ("", ""))[1]
        return (kind in ("ing", "past") or (word.endswith("ing") and len(word) > 5)) and not (
            word in lex.NOUNS_IN_ING or word in lex.COMPOUND
        )

    def _closes(self, noun: int, at: int) -> bool:
        """Whether the word at ``at`` is the verb of the nouns since ``noun`` rather than one more of them."""
        kind = self.verbs.get(self.words[at], ("", ""))[1]
        head = self.words[at - 1]
        plural = head in lex.PLURALS or (head.endswith("s") and not head.endswith("ss"))
        if kind in ("ing", "past") and self.words[at] not in lex.NOUNS_IN_ING:
            return True
        if self.state.pending and not self.state.joined and not self._starts_object(at + 1):
            return False
        if kind != ("base" if plural else "third"):
            return False
        # "dog chases cat", "girls ride horses": what follows must be able to be an object, or the sentence ends.
        ends = at + 1 >= len(self.words) or self.words[at + 1] in lex.JOINS or self.words[at + 1] in ".,;"
        return ends or self._starts_object(at + 1) or self._noun_at(at + 1) or kind == "base"

    def _keep(self, start: int, first: int, begin: int, noun: int, end: int) -> int:
        state, tokens = self.state, self.tokens
        names, described = (), None
        if noun > begin:
            names, described = self._names(begin, noun), Span(tokens[begin].start, tokens[noun - 1].end)
        span = Span(tokens[start].start, tokens[end - 1].end)
        head = self.text[tokens[noun].start : tokens[end - 1].end]
        state.mentions.append(Mention(span, head, self.text[tokens[first].start : span.end], names, described))
        new = len(state.mentions) - 1
        if state.pending and state.subject is not None:
            text = " ".join(part[0] for part in state.pending)
            where = Span(tokens[state.pending[0][1]].start, tokens[state.pending[-1][2] - 1].end)
            state.relations.append(Relation(state.subject, text, new, self._symmetric(state.pending), where))
            state.parent[new] = (state.subject, state.pending[0][3] == "preposition")
        state.last, state.joined = new, False
        state.forget()
        return end

    def _symmetric(self, parts: list[tuple[str, int, int, str]]) -> bool:
        """By its last preposition, if it has one ("standing next to"); a passive ("held by") is not; else by its verb."""
        text, *_, kind = parts[-1]
        if kind == "preposition":
            return text in lex.SYMMETRIC and not (text == "by" and parts[0][3] == "past")
        return self.verbs.get(text, ("", ""))[0] in lex.SYMMETRIC_VERBS

    def _relation(self, start: int, end: int, text: str, kind: str) -> int:
        state = self.state
        if state.last is None:
            return end
        if not state.pending:
            state.subject = state.last if kind == "preposition" else self._root(state.last)
            if kind in ("third", "base") and state.relative not in (None, state.last):
                # "a man who wears a hat holds ...": the clause is over.
                state.subject, state.relative = state.relative, None
        elif kind != "preposition" and state.pending[-1][3] == "preposition":
            state.forget()  # "before riding": a new relation of the same subject
            state.subject = self._root(state.last)
        state.pending.append((text, start, end, kind))
        return end

    def _root(self, mention: int) -> int:
        """Who a verb after ``mention`` speaks of: not what stands there by a preposition; after "and" the first subject."""
        parent = self.state.parent
        while mention in parent and (parent[mention][1] or self.state.joined):
            mention = parent[mention][0]
        return mention
