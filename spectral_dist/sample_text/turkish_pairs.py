"""Turkish minimal pairs: two sentences that differ in one point of grammar, one of them wrong.

Ten phenomena: five of spelling and sound, five of agreement and government. Both sentences of most
pairs have as many letters; where a case is longer than another, each is the right one in about half
of the pairs, so that a liking for short sentences gains nothing. A pair is a pure function of the
phenomenon and its number. `evaluate --pairs turkish` scores them. Read `turkish_pairs`.
"""

import random
from collections.abc import Callable

from spectral_dist.sample_text.turkish import capitalise, inflect
from spectral_dist.sample_text.turkish_lexicon import Root, roots, verb

Pair = tuple[str, str]  # the right sentence, the wrong one

_VOWELS = "aeıioöuü"
_OTHER_ROW = dict(zip("aeıiuü", "eaiıüu", strict=True))  # of a suffix: the front and the back one
_HIGH = dict(zip("aıeioöuü", "ııiiuüuü", strict=True))  # after these vowels
_PERSONS = {"1s": "Ben", "2s": "Sen", "1p": "Biz", "2p": "Siz"}
_OWNERS = {"p1s": "benim", "p2s": "senin", "p1p": "bizim", "p2p": "sizin"}
_POSTPOSITIONS = {"doğru": "dat", "kadar": "dat", "göre": "dat"} | {
    **{"sonra": "abl", "önce": "abl", "dolayı": "abl"}
}
# Verbs and the case of what they act on.
_GOVERNED = {"bak": "dat", "inan": "dat", "güven": "dat", "yardım et": "dat", "ulaş": "dat"} | {
    **{"kork": "abl", "hoşlan": "abl", "uzaklaş": "abl", "ayrıl": "abl"}
}
_OF_PLACES = ("ulaş", "uzaklaş", "ayrıl")
_PAST = ("Dün", "Geçen hafta", "Geçen yıl", "Biraz önce")
_FUTURE = ("Yarın", "Gelecek hafta", "Gelecek yıl", "Biraz sonra")
_ACTS = ("oku", "yaz", "taşı", "temizle", "bul", "getir", "sat", "sakla", "ara", "unut")


def _one(draw: random.Random, group: str) -> Root:
    return draw.choice(roots(group))


def _frame(draw: random.Random, word: str, other: str, case: str) -> Pair:
    """Return a sentence around a word in the accusative, locative or ablative, and the other."""
    who = capitalise(_one(draw, "person").text)
    before, after = {
        "acc": (who, draw.choice(("gördü", "aldı", "sattı", "buldu", "unuttu", "sevdi"))),
        "loc": (f"{who} dün", draw.choice(("kaldı", "bekledi", "çalıştı", "uyudu", "oturdu"))),
        "abl": (f"{who} erkenden", draw.choice(("çıktı", "ayrıldı", "geldi", "döndü"))),
    }[case]
    return f"{before} {word} {after}.", f"{before} {other} {after}."


def _vowel_harmony(draw: random.Random) -> Pair:
    """Evleri and not evlari: the vowels of the last suffix are of the wrong row."""
    root = _one(draw, draw.choice(("thing", "text", "place")))
    stem, word = inflect(root, "pl"), inflect(root, "pl", "acc")
    first = len(stem) - 3
    return _frame(draw, word, word[:first] + "".join(map(_turned, word[first:])), "acc")


def _turned(letter: str) -> str:
    return _OTHER_ROW.get(letter, letter)


def _assimilation(draw: random.Random) -> Pair:
    """Kitapta and not kitapda: a suffix begins hard after a hard consonant alone."""
    case = draw.choice(("loc", "abl"))
    root = _one(draw, "place")
    word = inflect(root, case)
    at = max(i for i, letter in enumerate(word) if letter in "dt" and i >= len(root.text) - 1)
    return _frame(draw, word, word[:at] + {"d": "t", "t": "d"}[word[at]] + word[at + 1 :], case)


def _softening(draw: random.Random) -> Pair:
    """Kitabı and not kitapı."""
    hard = [r for g in ("thing", "text", "food", "clothing") for r in roots(g) if "*" in r.marks]
    root = draw.choice(hard)
    word = inflect(root, "acc")
    return _frame(draw, word, root.text + word[-1], "acc")


def _buffer(draw: random.Random) -> Pair:
    """Arabanın and not arabayın: the buffer of the genitive is n, that of the accusative y."""
    ends = [r for g in ("thing", "person", "place") for r in roots(g) if r.text[-1] in _VOWELS]
    root = draw.choice([r for r in ends if not set(r.marks) & set("%&")])
    owner, owned = inflect(root, "gen"), draw.choice(("yeri", "hali", "adı", "sonu", "durumu"))
    wrong = root.text + "y" + owner[len(root.text) + 1 :]
    after = draw.choice(("belli değil", "çok güzel", "önemli", "değişti", "soruldu"))
    return f"{capitalise(owner)} {owned} {after}.", f"{capitalise(wrong)} {owned} {after}."


def _question(draw: random.Random) -> Pair:
    """Geldi mi and not geldi mı: the particle follows the last vowel."""
    word = inflect(verb(draw.choice(_ACTS)), draw.choice(("past", "evid", "prog")))
    last = next(letter for letter in reversed(word) if letter in _VOWELS)
    particle = _HIGH[last]
    what = inflect(_one(draw, "thing"), "acc")
    start = f"{capitalise(_one(draw, 'person').text)} {what} {word} m"
    return f"{start}{particle}?", f"{start}{_OTHER_ROW[particle]}?"


def _subject(draw: random.Random) -> Pair:
    """Ben okudum and not ben okudun: the verb has the person of its subject."""
    who, other = draw.choice((("1s", "2s"), ("2s", "1s"), ("1p", "1s"), ("1s", "1p")))
    root, tense = verb(draw.choice(_ACTS)), draw.choice(("past", "cond"))
    what = inflect(_one(draw, draw.choice(("thing", "text"))), "acc")
    end = " iyi olur" if tense == "cond" else ""
    start = f"{_PERSONS[who]} {what} "
    return (
        f"{start}{inflect(root, tense, who)}{end}.",
        f"{start}{inflect(root, tense, other)}{end}.",
    )


def _possessor(draw: random.Random) -> Pair:
    """Benim kitabım and not benim kitabın: what is owned has the person of its owner."""
    who, other = draw.choice((("p1s", "p2s"), ("p2s", "p1s"), ("p1p", "p2p"), ("p2p", "p1p")))
    root = _one(draw, draw.choice(("thing", "text", "clothing", "kin")))
    after = draw.choice(("burada", "nerede", "çok güzel", "yeni geldi", "çok eski"))
    start = capitalise(_OWNERS[who])
    return f"{start} {inflect(root, who)} {after}.", f"{start} {inflect(root, other)} {after}."


def _postposition(draw: random.Random) -> Pair:
    """Eve doğru and not evden doğru: a postposition asks for its case."""
    word = draw.choice(list(_POSTPOSITIONS))
    case = _POSTPOSITIONS[word]
    root = _one(draw, "place")
    after = draw.choice(("durduk", "konuştuk", "bekledik", "karar verdik"))
    right, wrong = (inflect(root, c) for c in (case, "abl" if case == "dat" else "dat"))
    return f"{capitalise(right)} {word} {after}.", f"{capitalise(wrong)} {word} {after}."


def _government(draw: random.Random) -> Pair:
    """Attan korktu and not ata korktu: a verb asks for its case."""
    text = draw.choice(list(_GOVERNED))
    case = _GOVERNED[text]
    root = _one(draw, "place" if text in _OF_PLACES else "person")
    who = capitalise(_one(draw, "name").text)
    right, wrong = (inflect(root, c) for c in (case, "abl" if case == "dat" else "dat"))
    did = inflect(verb(text), "past")
    return f"{who} {right} {did}.", f"{who} {wrong} {did}."


def _tense(draw: random.Random) -> Pair:
    """Yarın gidecek and not yarın gitmiş: the verb has the tense of its adverb."""
    root = verb(draw.choice(_ACTS))
    what = inflect(_one(draw, draw.choice(("thing", "text"))), "acc")
    late = draw.random() < 0.5
    past, future = inflect(root, "past", "1p"), inflect(root, "fut", "1p")
    start = f"{draw.choice(_FUTURE if late else _PAST)} {what}"
    return f"{start} {future if late else past}.", f"{start} {past if late else future}."


PHENOMENA: dict[str, Callable[[random.Random], Pair]] = {
    "vowel_harmony": _vowel_harmony,
    "consonant_assimilation": _assimilation,
    "consonant_softening": _softening,
    "buffer_consonant": _buffer,
    "question_particle": _question,
    "subject_agreement": _subject,
    "possessor_agreement": _possessor,
    "case_of_postposition": _postposition,
    "case_of_verb": _government,
    "tense_of_adverb": _tense,
}


def turkish_pairs(count: int = 100) -> dict[str, list[Pair]]:
    """Return pairs of each phenomenon: (right sentence, wrong sentence), no pair twice.

    Args:
      count: pairs of each.
    """
    found: dict[str, list[Pair]] = {}
    for name, make in PHENOMENA.items():
        draw, pairs = random.Random(name), dict[Pair, None]()
        while len(pairs) < count:
            pairs[make(draw)] = None
        found[name] = list(pairs)
    return found
