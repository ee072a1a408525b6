"""Turkish morphology: from a root and a chain of suffixes to the written word.

Owns the spelling rules: two-way and four-way vowel harmony, consonant softening and assimilation,
buffer letters, vowel drop and narrowing, the aorist, the apostrophe of proper names, numerals. It
must not know what a sentence means (turkish_documents.py). Read `inflect` first.
"""

from dataclasses import dataclass
from functools import lru_cache

from spectral_dist.sample_text.turkish_lexicon import Root, noun

# Letters with a choice: A = a/e, I = ı/i/u/ü, D = d/t, C = c/ç, K = a k that softens to ğ.
# A letter in brackets is a buffer: a consonant is written after a vowel only, I and A after a
# consonant only.
SUFFIXES = {
    # nominal: number, possessive, case
    "pl": "lAr",
    "p1s": "(I)m",
    "p2s": "(I)n",
    "p3s": "(s)I",
    "p1p": "(I)mIz",
    "p2p": "(I)nIz",
    "p3p": "lArI",
    "acc": "(y)I",
    "dat": "(y)A",
    "loc": "DA",
    "abl": "DAn",
    "gen": "(n)In",
    "ins": "(y)lA",
    "equ": "CA",
    # derivation
    "ki": "ki",
    "with": "lI",
    "without": "sIz",
    "ness": "lIK",
    "agent": "CI",
    "ord": "(I)ncI",
    "dist": "(ş)Ar",
    # copula
    "cop": "DIr",
    "cpast": "(y)DI",
    "cevid": "(y)mIş",
    "ccond": "(y)sA",
    # verb: voice, negation, ability
    "neg": "mA",
    "able": "(y)Abil",
    "unable": "(y)AmA",
    # verb: tense and mood
    "prog": "(I)yor",
    "past": "DI",
    "evid": "mIş",
    "fut": "(y)AcAK",
    "cond": "sA",
    "must": "mAlI",
    "opt1s": "(y)AyIm",
    "opt1p": "(y)AlIm",
    "imp3s": "sIn",
    "imp2p": "(y)In",
    "imp3p": "sInlAr",
    # verb: participles, converbs, verbal nouns
    "part": "(y)An",
    "dik": "DIK",
    "ecek": "(y)AcAK",
    "ip": "(y)Ip",
    "erek": "(y)ArAk",
    "ince": "(y)IncA",
    "meden": "mAdAn",
    "dikce": "DIkçA",
    "ken": "(y)ken",
    "inf": "mAk",
    "ma": "mA",
    # person, after everything but the definite past and the conditional
    "1s": "(y)Im",
    "2s": "sIn",
    "3s": "",
    "1p": "(y)Iz",
    "2p": "sInIz",
    "3p": "lAr",
}
_K_PERSONS = {"1s": "m", "2s": "n", "3s": "", "1p": "k", "2p": "nIz", "3p": "lAr"}
# After a third person possessive or -ki the cases take an n: evi, evinde, evdekini.
_PRONOMINAL = {"acc": "nI", "dat": "nA", "loc": "ndA", "abl": "ndAn", "equ": "ncA"}
_POSSESSIVES = {"p1s", "p2s", "p3s", "p1p", "p2p", "p3p"}
# These follow a proper name without an apostrophe: Ankaralı, Ahmetler.
_NO_APOSTROPHE = {"pl", "with", "without", "ness", "agent", "equ", "3s"}
# Before these the possessive of a compound goes: havaalanı, havaalanları, tereyağlı.
_REPLACES_POSSESSIVE = _POSSESSIVES | {"pl", "with", "without", "agent", "ness"}

_VOWELS = "aeıioöuü"
_BACK = "aıou"
_HIGH = {"a": "ı", "ı": "ı", "e": "i", "i": "i", "o": "u", "u": "u", "ö": "ü", "ü": "ü"}
_FRONTED = {"a": "e", "ı": "i", "o": "ö", "u": "ü"}
_HARD = "fstkçşhp"
_SOFT = {"p": "b", "ç": "c", "t": "d", "k": "ğ"}
_CAUSATIVES = {
    **{"geç": "geçir", "iç": "içir", "düş": "düşür", "piş": "pişir", "bit": "bitir"},
    **{"kork": "korkut", "ak": "akıt", "kalk": "kaldır", "çık": "çıkar", "yat": "yatır"},
    **{"art": "artır", "doğ": "doğur", "uç": "uçur", "kaç": "kaçır", "duy": "duyur"},
    **{"de": "dedirt", "gör": "göster", "şaşır": "şaşırt"},
}


@dataclass
class _Stem:
    """The word so far, and what it still does to the next suffix."""

    text: str
    vowel: str  # the vowel that the next suffix harmonises with
    marks: str
    past: bool = False  # the next person ending is of the -m -n -k row
    negative: bool = False
    derived: bool = False  # a voice or ability suffix was added: the aorist is regular
    pronominal: bool = False


def _last_vowel(text: str, default: str = "e") -> str:
    """Return the last vowel letter of `text`, in lower case."""
    return next((c for c in reversed(lower(text)) if c in _VOWELS), default)


def _open_stem(stem: _Stem) -> None:
    """Change the end of the stem for a suffix that begins with a vowel."""
    text, marks = stem.text, stem.marks
    if "*" in marks:
        text = text[:-1] + ("g" if text.endswith("nk") else _SOFT[text[-1]])
    if "~" in marks:
        text = text[:-2] + text[-1]
    if "+" in marks:
        text += text[-1]
    stem.text = text


def _choose_buffer(stem: _Stem, template: str) -> str:
    """Write or leave out the bracketed letter of a suffix, as the stem's last letter asks."""
    if not template.startswith("("):
        return template
    letter, rest = template[1], template[3:]
    after_vowel = lower(stem.text[-1]) in _VOWELS
    if "%" in stem.marks and letter in "snI":
        return "y" + rest if letter != "I" else "yI" + rest
    if letter == "I":
        return rest if after_vowel else letter + rest
    return letter + rest if after_vowel else rest


def _attach(stem: _Stem, template: str) -> None:
    """Add one suffix, given as in `SUFFIXES`, to the stem in place."""
    suffix = _choose_buffer(stem, template)
    # de, ye: diyecek, yiyecek; before a high vowel only ye: yiyip, but deyip.
    if "=" in stem.marks and (suffix[:2] == "yA" or (suffix[:2] == "yI" and stem.text == "ye")):
        stem.text = stem.text[:-1] + "i"
    if suffix[:1] in ("A", "I", *_VOWELS):
        _open_stem(stem)
    text, vowel = stem.text, stem.vowel
    for letter in suffix:
        if letter == "A":
            letter = "a" if vowel in _BACK else "e"
        elif letter == "I":
            letter = _HIGH[vowel]
        elif letter in "DC":
            hard = text[-1] in _HARD
            letter = {"D": "dt", "C": "cç"}[letter][hard]
        elif letter == "K":
            letter = "k"
        if letter in _VOWELS:
            vowel = letter
        text += letter
    stem.text, stem.vowel = text, vowel
    if suffix:
        stem.marks = "*" if suffix.endswith("K") else ""


def _voice(stem: _Stem, code: str, root: Root) -> None:
    """Add the passive or the causative."""
    ending = stem.text[-1]
    if code == "pass":
        _attach(stem, "n" if ending in _VOWELS else "In" if ending == "l" else "Il")
    elif not stem.derived and root.text in _CAUSATIVES:
        stem.text = _CAUSATIVES[root.text]
        stem.vowel, stem.marks = _last_vowel(stem.text), ""
    else:
        long = sum(c in _VOWELS for c in stem.text) > 1
        _attach(stem, "t" if long and ending in _VOWELS + "lr" else "DIr")
    stem.derived = True


def _aorist(stem: _Stem, following: str) -> str:
    """Return the aorist suffix; the negative one depends on the person that follows."""
    if stem.negative:
        # gelmem, gelmeyiz, but gelmezsin, gelmez
        return {"1s": "", "1p": ""}.get(following, "z")
    if stem.text[-1] in _VOWELS:
        return "r"
    word = stem.text.rsplit(" ", 1)[-1]
    short = sum(c in _VOWELS for c in word) == 1 or "*" in stem.marks
    return "Ar" if short and not stem.derived and "!" not in stem.marks else "Ir"


def _template(stem: _Stem, code: str, previous: str, following: str) -> str:
    """Return the suffix that `code` stands for at this place of the chain."""
    if code == "aor":
        return _aorist(stem, following)
    if previous == "aor" and stem.negative and code in ("1s", "1p"):
        return "m" if code == "1s" else "(y)Iz"
    if stem.past and code in _K_PERSONS:
        return _K_PERSONS[code]
    if stem.pronominal and code in _PRONOMINAL:
        return _PRONOMINAL[code]
    if code == "ki" and stem.text.endswith(("gün", "dün")):
        return "kü"
    return SUFFIXES[code]


def _adjust(stem: _Stem, code: str, root: Root, is_first: bool) -> bool:
    """Prepare the stem for a suffix; True if a compound dropped its own possessive."""
    if is_first and root.part == "name" and code not in _NO_APOSTROPHE:
        stem.text += "'"
    if code == "prog" and stem.text[-1] in "ae":
        # başla: başlıyor; the dropped vowel decides only where no other is left: de, diyor
        stem.text = stem.text[:-1]
        stem.vowel = _last_vowel(stem.text.rsplit(" ", 1)[-1], default=stem.vowel)
    if "&" in stem.marks and code in _REPLACES_POSSESSIVE:
        stem.text, stem.marks, stem.pronominal = stem.text[:-1], "", False
        return True
    return False


@lru_cache(maxsize=1 << 18)
def inflect(root: Root, *chain: str) -> str:
    """Return the written form of a root with suffixes.

    Args:
      root: the dictionary word.
      *chain: suffix codes in the order of writing: keys of `SUFFIXES`, and pass (passive), caus
        (causative), aor (aorist). Which chains make sense is the caller's matter.

    Returns:
      The word, such as "kitaplarımızda" for kitap, pl, p1p, loc.

    Raises:
      KeyError: if a code is unknown.
    """
    vowel = _last_vowel(root.text)
    if "^" in root.marks:
        vowel = _FRONTED[vowel]
    stem = _Stem(root.text, vowel, root.marks, pronominal="&" in root.marks)
    for i, code in enumerate(chain):
        if code in ("pass", "caus"):
            _voice(stem, code, root)
            continue
        bared = _adjust(stem, code, root, is_first=i == 0)
        following = chain[i + 1] if i + 1 < len(chain) else ""
        template = _template(stem, code, chain[i - 1] if i else "", following)
        if bared and code == "pl":
            template = "lArI"
        if stem.text.endswith("'"):
            _attach_after_apostrophe(stem, template)
        else:
            _attach(stem, template)
        stem.past = code in ("past", "cond", "cpast", "ccond")
        stem.negative = code in ("neg", "unable") or (stem.negative and code == "aor")
        stem.derived = stem.derived or code == "able"
        stem.pronominal = code in ("p3s", "p3p", "ki") or (bared and code == "pl")
    return stem.text


def _attach_after_apostrophe(stem: _Stem, template: str) -> None:
    """Add a suffix to a proper name, whose own spelling never changes: Ahmet'i, Zonguldak'ı."""
    name = stem.text[:-1]
    bare = _Stem(name, stem.vowel, "")
    _attach(bare, template)
    stem.text = f"{name}'{bare.text[len(name) :]}"
    stem.vowel, stem.marks = bare.vowel, bare.marks


def lower(text: str) -> str:
    """Return Turkish lower case: I becomes ı, and İ becomes i."""
    return text.replace("I", "ı").replace("İ", "i").lower()


def capitalise(text: str) -> str:
    """Return the text with its first letter in Turkish upper case: i becomes İ."""
    first = {"i": "İ", "ı": "I"}.get(text[:1], text[:1].upper())
    return first + text[1:]


_ONES = ("", "bir", "iki", "üç", "dört", "beş", "altı", "yedi", "sekiz", "dokuz")
_TENS = ("", "on", "yirmi", "otuz", "kırk", "elli", "altmış", "yetmiş", "seksen", "doksan")


def number_words(number: int) -> str:
    """Return a number from 0 to 999 999 999 in words: 1925 is "bin dokuz yüz yirmi beş"."""
    assert 0 <= number < 10**9
    if number == 0:
        return "sıfır"
    words: list[str] = []
    for size, word in ((10**6, "milyon"), (1000, "bin"), (100, "yüz")):
        count, number = divmod(number, size)
        if count > 1 or (count == 1 and size == 10**6):
            words.append(number_words(count))
        if count:
            words.append(word)
    words += [_TENS[number // 10], _ONES[number % 10]]
    return " ".join(word for word in words if word)


def inflect_digits(number: int, *chain: str) -> str:
    """Return a number in digits with suffixes as they are read: 2015'te, 1990'da, 4'ü."""
    last = number_words(number).rsplit(" ", 1)[-1]
    return f"{number}'{inflect(noun(last), *chain)[len(last) :]}"
