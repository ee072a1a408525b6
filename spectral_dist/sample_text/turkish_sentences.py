"""Turkish sentences with people, places and things that fit their verbs.

Owns which verb takes which objects in which case, agreement of person, and the joining of clauses.
It must not know how words are spelled (turkish.py) or how a document is laid out
(turkish_documents.py). Read `sentences` first, then `Scene`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random

from spectral_dist.sample_text.turkish import capitalise, inflect, number_words
from spectral_dist.sample_text.turkish_lexicon import Root, noun, roots, verb

# verb: its objects as group:case (`obj` is a direct object: definite, "bir ..." or counted), then
# after @ the kind of place where it happens.
_ACTIONS = """
oku: text:obj @quiet | yaz: text:obj @quiet | dinle: sound:bare @quiet | izle: show:obj @quiet
pişir: dish:obj @kitchen | hazırla: dish:obj @kitchen | ye: food:obj @kitchen
iç: drink:bare @quiet | kes: food:acc @kitchen | yıka: tableware:acc @kitchen
topla: food:acc @outdoors | al: thing:obj @shop | al: food:obj @shop
al: clothing:obj @shop | sat: thing:obj @shop
bak: shop:dat | git: place:dat | dön: place:dat | gel: place:dat | çık: place:abl | gir: place:dat
ulaş: place:dat | uğra: shop:dat | yürü: place:dat | koş: place:dat | ayrıl: place:abl
çalış: @work | dolaş: @outdoors | bekle: people:acc @work | bekle: vehicle:acc @place
bin: vehicle:dat | in: vehicle:abl | sür: vehicle:acc @place | tamir et: vehicle:acc @work
konuş: people:ins @quiet | tanış: people:ins @place | buluş: people:ins @place
yardım et: people:dat | teşekkür et: people:dat | güven: people:dat | inan: people:dat
ara: people:acc | özle: people:acc | karşıla: people:acc @place | ziyaret et: people:acc
sor: people:dat abstract:acc | anlat: people:dat abstract:acc | anlat: people:dat text:obj
ver: people:dat thing:obj | gönder: people:dat text:obj | göster: people:dat thing:acc
getir: people:dat food:obj | götür: people:dat dish:obj | söyle: people:dat abstract:acc
düşün: abstract:acc @quiet | hatırla: abstract:acc | unut: abstract:acc | anla: abstract:acc
sakla: thing:acc @quiet | bul: thing:obj @place | kaybet: thing:acc @place | ara: thing:acc @quiet
boya: openable:acc | aç: openable:acc | kapat: openable:acc | onar: openable:acc
temizle: quiet:acc | süpür: quiet:acc | giy: clothing:acc | seç: clothing:obj @shop
besle: animal:acc @outdoors | gör: animal:obj @outdoors | kork: wild:abl | sev: animal:acc
sula: plant:acc @outdoors | ek: crop:bare @outdoors | yetiştir: crop:bare @outdoors
öğren: lesson:bare @quiet | çalış: lesson:dat @quiet | öğret: people:dat lesson:bare @work
başla: activity:dat @work | katıl: activity:dat @work | hazırlan: activity:dat @quiet
otur: @quiet | uyu: @quiet | dinlen: @outdoors | oyna: @outdoors | yüz: @water
"""
_WATER = ("deniz", "göl", "nehir")
_ADJECTIVES = {
    "thing": "of_thing",
    "clothing": "of_thing",
    "openable": "of_thing",
    "vehicle": "of_thing",
    "tableware": "of_thing",
    "place": "of_place",
    "quiet": "of_place",
    "outdoors": "of_place",
    "food": "of_food",
    "dish": "of_food",
    "abstract": "of_abstract",
    "text": "of_abstract",
    "animal": "of_animal",
    "wild": "of_animal",
}
_TIMES = (
    *("o gün", "ertesi gün", "sabah", "akşam", "öğleden sonra", "gece yarısı", "iki gün sonra"),
    *("bir hafta sonra", "o sabah", "cumartesi günü", "pazar sabahı", "yaz başında", "kışın"),
    *("biraz sonra", "saat üçte", "geçen yıl", "o akşam", "birkaç gün sonra", "ilkbaharda"),
    *("öğle vakti",),
)
_JOINS = ("ve", "ama", "fakat", "çünkü", "oysa", "bu yüzden", "üstelik", "ancak", "sonra da")
_WEATHER = (  # what went on around the people
    *("yağmur yağ", "kar yağ", "güneş doğ", "hava yavaş yavaş karar"),
    *("gökyüzünde yıldızlar görün", "sert bir rüzgar es", "fırtına din", "sis dağıl"),
    *("bulutlar uzaklaş", "ağaçların yaprakları dökül"),
)
_FEELINGS = ("sevin", "üzül", "şaşır", "kız")
# Endings that hang one clause on the next, p being the possessive of the subject.
_LINKS = (
    *(("ip", ""), ("erek", ""), ("ince", ","), ("meden", " önce"), ("dik abl", " sonra")),
    *(("dik p", " için"), ("dik p loc", ","), ("ecek p", " için")),
)
_WISHES = (
    *(("inf", "iste"), ("ma dat", "başla"), ("ma dat", "karar ver"), ("ma acc", "unut")),
    *(("inf abl", "hoşlan"), ("inf", "kal")),
)
_DEEDS = (
    *(("al", "thing"), ("oku", "text"), ("pişir", "dish"), ("gör", "animal"), ("giy", "clothing")),
    *(("sat", "vehicle"), ("temizle", "quiet"), ("git", "place")),
)
_PERSONS = {"1s": "ben", "2s": "sen", "1p": "biz"}
_POSSESSIVE = {"1s": "p1s", "2s": "p2s", "3s": "p3s", "1p": "p1p", "3p": "p3p"}


@dataclass(frozen=True)
class _Action:
    """A verb with its objects as (group, case) and the kind of place, or ""."""

    verb: Root
    objects: tuple[tuple[str, str], ...]
    place: str


@cache
def _actions() -> tuple[_Action, ...]:
    """Return the actions of the table above."""
    actions = []
    for entry in _ACTIONS.replace("\n", "|").split("|"):
        if not entry.strip():
            continue
        stem, _, rest = entry.strip().partition(":")
        words = rest.split()
        place = words.pop()[1:] if words and words[-1].startswith("@") else ""
        pairs = [(group, case) for group, _, case in (word.partition(":") for word in words)]
        actions.append(_Action(verb(stem), tuple(pairs), place))
    return tuple(actions)


def _conjugate(root: Root, codes: tuple[str, ...], person: str) -> str:
    """Return a finite verb; the plural stands before a copula: geliyorlardı, gelirlerse."""
    if person == "3p" and codes[-1] in ("cpast", "ccond"):
        return inflect(root, *codes[:-1], "3p", codes[-1])
    return inflect(root, *codes, person)


@dataclass
class Scene:
    """The people, places and things of one document.

    Attributes:
      rng: the document's own random numbers.
      cast: the names that come back through the document.
      tense: suffix codes of the narrative tense.
      narrator: person of the main figure, 3s, or 1s where the figure tells.
      known: group -> the few words of it that this document uses.
    """

    rng: Random
    cast: list[Root]
    tense: tuple[str, ...]
    narrator: str = "3s"
    known: dict[str, tuple[Root, ...]] = field(default_factory=dict)

    def word(self, group: str) -> Root:
        """Draw a word of a group, from this document's own few words of it."""
        words = self.known.get(group)
        if words is None:
            choice = [noun(w) for w in _WATER] if group == "water" else list(roots(group))
            words = tuple(self.rng.sample(choice, min(len(choice), 5)))
            self.known[group] = words
        return self.rng.choice(words)

    def phrase(self, group: str, case: str) -> str:
        """Write a noun phrase of a group in a case (a suffix code, `obj` or `bare`)."""
        draw = self.rng.random()
        if group == "people":
            person = self.rng.choice(self.cast) if draw < 0.7 else self.word("person")
            return inflect(person, case)
        word = self.word(group)
        adjective = ""
        if draw < 0.3 and group in _ADJECTIVES:
            adjective = self.word(_ADJECTIVES[group]).text + " "
        if case == "bare":
            return adjective + word.text
        if case == "obj":
            form = self.rng.randrange(4)
            if form == 0:
                return f"{adjective}bir {word.text}"
            if form == 1:
                return f"{number_words(self.rng.randint(2, 9))} {adjective}{word.text}"
            return adjective + inflect(word, *(("pl",) if form == 2 else ()), "acc")
        return adjective + inflect(word, case)

    def complements(self, action: _Action, subject: str = "") -> str:
        """Write what stands between subject and verb, with a space behind it."""
        parts = []
        if not action.objects or (action.place and self.rng.random() < 0.5):
            parts.append(self.phrase(action.place, "loc"))
        for group, case in action.objects:
            text = self.phrase(group, case)
            # Nobody helps or telephones himself.
            while group == "people" and subject and text.startswith(tuple(subject.split(" ile "))):
                text = self.phrase(group, case)
            parts.append(text)
        if self.rng.random() < 0.2:
            parts.insert(0, self.word("adverb").text)
        return " ".join(parts) + " "

    def subject(self) -> tuple[str, str]:
        """Return a subject (perhaps "" where the ending says enough) and its person."""
        draw = self.rng.random()
        if self.narrator in _PERSONS and draw < 0.6:
            return ("" if draw < 0.45 else _PERSONS[self.narrator]), self.narrator
        if draw < 0.8:
            return self.rng.choice(self.cast).text, "3s"
        if draw < 0.9:
            return f"{self.word('of_person').text} {self.word('person').text}", "3s"
        first, second = self.rng.sample(self.cast, 2)
        return f"{first.text} ile {second.text}", "3p"

    def action(self) -> _Action:
        """Draw an action."""
        return self.rng.choice(_actions())

    def clause(self, *chain: str, of: tuple[str, str] | None = None) -> str:
        """Write subject, complements and verb; `chain` replaces the narrative tense."""
        subject, person = of or self.subject()
        action = self.action()
        codes = chain or self.finite()
        text = self.complements(action, subject) + _conjugate(action.verb, codes, person)
        return f"{subject} {text}" if subject else text

    def finite(self) -> tuple[str, ...]:
        """Return the narrative tense, sometimes denied, or with ability."""
        draw = self.rng.random()
        if draw < 0.08:
            return ("neg", *self.tense)
        if draw < 0.14:
            return (("able",) if draw < 0.1 else ("unable",)) + self.tense
        return self.tense

    def end(self, verb_root: Root, person: str) -> str:
        """Write a verb in the narrative tense."""
        return _conjugate(verb_root, self.tense, person)


def _simple(scene: Scene) -> str:
    if scene.rng.random() < 0.4:
        return f"{scene.rng.choice(_TIMES)} {scene.clause()}"
    return scene.clause()


def _joined(scene: Scene) -> str:
    join = scene.rng.choice(_JOINS)
    return f"{scene.clause()}{'' if join == 've' else ','} {join} {scene.clause()}"


def _converb(scene: Scene) -> str:
    subject, person = scene.subject()
    code, link = scene.rng.choice(_LINKS)
    first, second = scene.action(), scene.action()
    chain = [_POSSESSIVE[person] if part == "p" else part for part in code.split()]
    text = f"{scene.complements(first, subject)}{inflect(first.verb, *chain)}{link} "
    text += scene.complements(second, subject) + scene.end(second.verb, person)
    return f"{subject} {text}" if subject else text


def _while(scene: Scene) -> str:
    first, second = scene.rng.sample(scene.cast, 2)
    action = scene.action()
    text = scene.complements(action, first.text) + inflect(action.verb, "aor", "ken")
    return f"{first.text} {text} {scene.clause(of=(second.text, '3s'))}"


def _reported(scene: Scene) -> str:
    first, second = scene.rng.sample(scene.cast, 2)
    action, code = scene.action(), scene.rng.choice(("dik", "ecek"))
    knows = ("anla", "söyle", "öğren", "duy", "hatırla") if code == "dik" else ("söyle", "um")
    text = scene.complements(action, second.text)
    fact = f"{inflect(second, 'gen')} {text}{inflect(action.verb, code, 'p3s', 'acc')}"
    return f"{first.text}, {fact} {scene.end(verb(scene.rng.choice(knows)), '3s')}"


def _wish(scene: Scene) -> str:
    subject, person = scene.subject()
    ending, following = scene.rng.choice(_WISHES)
    action = scene.action()
    last = scene.end(verb(following), person)
    if following == "kal":
        last = "zorunda " + last
    text = scene.complements(action, subject) + inflect(action.verb, *ending.split())
    return f"{subject} {text} {last}" if subject else f"{text} {last}"


def _relative(scene: Scene) -> str:
    action = scene.action()
    who = f"{scene.complements(action)}{inflect(action.verb, 'part')} {scene.word('person').text}"
    return scene.clause(of=(who, "3s"))


def _object_relative(scene: Scene) -> str:
    stem, group = scene.rng.choice(_DEEDS)
    owner = inflect(scene.rng.choice(scene.cast), "gen")
    quality = scene.word(_ADJECTIVES[group])
    head = f"{owner} {inflect(verb(stem), 'dik', 'p3s')} {scene.word(group).text}"
    return f"{head} çok {inflect(quality, 'cpast')}"


def _state(scene: Scene) -> str:
    draw = scene.rng.randrange(5)
    if draw == 0:
        return (
            f"{scene.rng.choice(scene.cast).text} çok {inflect(scene.word('of_person'), 'cpast')}"
        )
    if draw == 1:
        place = scene.phrase("quiet", "loc")
        count = number_words(scene.rng.randint(2, 20))
        return f"{place} {count} {scene.word('thing').text} vardı"
    if draw == 2:
        owner = inflect(scene.rng.choice(scene.cast), "gen")
        thing = inflect(scene.word("thing"), "p3s")
        return f"{owner} {scene.word('of_thing').text} bir {thing} vardı"
    if draw == 3:
        first, second = scene.rng.sample(scene.cast, 2)
        quality = inflect(scene.word("of_person"), "cpast")
        return f"{first.text}, {inflect(second, 'abl')} daha {quality}"
    return inflect(Root(scene.rng.choice(_WEATHER), "verb"), "prog", "cpast")


def _feeling(scene: Scene) -> str:
    subject, person = scene.subject()
    feeling = scene.end(verb(scene.rng.choice(_FEELINGS)), person)
    return f"{subject} buna çok {feeling}" if subject else f"buna çok {feeling}"


_FRAMES: tuple[Callable[[Scene], str], ...] = (
    *(_simple, _simple, _simple, _joined, _joined, _converb, _converb, _converb),
    *(_while, _reported, _wish, _wish, _relative, _object_relative, _state, _state, _feeling),
)


def sentences(scene: Scene, count: int) -> list[str]:
    """Write some sentences of narration."""
    frames = scene.rng.choices(_FRAMES, k=count)
    return [capitalise(frame(scene)) + "." for frame in frames]
