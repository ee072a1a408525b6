"""Turkish documents of the built-in sample text: stories, letters, conversations (and reports).

Owns the plan of a document: its people, places and tense come back from the first paragraph to the
last. Sentences are turkish_sentences.py's, files are sample.py's. Read `turkish_document` first.
"""

from random import Random

from spectral_dist.sample_text.turkish import capitalise, inflect
from spectral_dist.sample_text.turkish_lexicon import roots
from spectral_dist.sample_text.turkish_reports import report
from spectral_dist.sample_text.turkish_sentences import Scene, sentences

_OPENINGS = (  # and the suffix of the role in each
    ("bir zamanlar {home} {name} adında {adj} bir {role} yaşardı.", "3s"),
    ("{name}, {home} yaşayan {adj} bir {role}.", "cpast"),
    ("bu, {home} yaşayan {adj} bir {role} ile arkadaşlarının öyküsüdür; adı {name}.", "3s"),
    ("{home} herkes {name} adındaki {adj} {role} tanırdı.", "acc"),
)


def _speech(scene: Scene) -> str:
    """Write what one person says to another, with its own end mark."""
    rng, draw = scene.rng, scene.rng.randrange(6)
    if draw == 0:
        action = scene.action()
        particle = "musun" if rng.random() < 0.6 else "muydun"
        return f"{scene.complements(action)}{inflect(action.verb, 'prog')} {particle}?"
    if draw == 1:
        condition = scene.clause("aor", "ccond", of=("", "2s"))
        return f"eğer {condition}, {scene.clause('fut', of=('', '1s'))}."
    if draw == 2:
        action = scene.action()
        return f"yarın birlikte {scene.complements(action)}{inflect(action.verb, 'opt1p')}."
    if draw == 3:
        return f"{scene.clause('must', of=('', rng.choice(('1s', '2s', '1p'))))}."
    if draw == 4:
        return f"bence {scene.clause('able', 'aor', of=('', rng.choice(('1p', '2s'))))}."
    tense = rng.choice((("prog",), ("past",), ("fut",), ("neg", "aor"), ("unable", "prog")))
    return f"{scene.clause(*tense, of=('', '1s'))}."


def _exchange(scene: Scene) -> str:
    """Write a question or a remark and its answer, two speakers."""
    first, second = scene.rng.sample(scene.cast, 2)
    opening, answer = capitalise(_speech(scene)), capitalise(_speech(scene))
    asks = "diye sordu" if opening.endswith("?") else "dedi"
    reply = scene.rng.choice(("diye cevap verdi", "dedi"))
    # Before "dedi" a full stop becomes a comma inside the quotation.
    if asks == "dedi":
        opening = opening.removesuffix(".") + ","
    if reply == "dedi" and not answer.endswith("?"):
        answer = answer.removesuffix(".") + ","
    return f"“{opening}” {asks} {first.text}. “{answer}” {reply} {second.text}."


def _paragraph(scene: Scene) -> str:
    """Write one paragraph of narration, now and then with a conversation in it."""
    told = sentences(scene, scene.rng.randint(3, 8))
    if scene.rng.random() < 0.35:
        told.insert(scene.rng.randint(1, len(told)), _exchange(scene))
    return " ".join(told)


def _new_scene(rng: Random, narrator: str = "3s") -> Scene:
    """Draw the cast and the tense of a document."""
    tense = rng.choice((("past",), ("past",), ("evid",), ("prog", "cpast")))
    # -miş is hearsay: nobody tells of his own deeds so.
    if narrator == "1s":
        tense = ("past",)
    return Scene(rng, rng.sample(roots("name"), 5), tense, narrator)


def _story(rng: Random, size: int) -> str:
    scene = _new_scene(rng, narrator=rng.choice(("3s", "3s", "1s")))
    hero, city = scene.cast[0], rng.choice(roots("city"))
    role = rng.choice(roots("person"))
    opening, suffix = rng.choice(_OPENINGS)
    first = opening.format(
        home=inflect(city, "loc"),
        name=hero.text,
        adj=scene.word("of_person").text,
        role=inflect(role, suffix),
    )
    title = f"{hero.text} ile {inflect(scene.word('animal'), 'p3s')}"
    parts = [title, capitalise(first) + " " + _paragraph(scene)]
    while sum(map(len, parts)) < size:
        parts.append(_paragraph(scene))
    parts.append(f"{hero.text} o günü hiç unutmadı. " + " ".join(sentences(scene, 2)))
    return "\n\n".join(parts)


def _letter(rng: Random, size: int) -> str:
    scene = _new_scene(rng, narrator="1s")
    reader, writer = scene.cast.pop(), scene.cast.pop()
    city = inflect(rng.choice(roots("city")), "loc")
    parts = [f"Sevgili {reader.text},", f"Sana bu mektubu {city} yazıyorum. " + _paragraph(scene)]
    while sum(map(len, parts)) < size:
        question = capitalise(_speech(scene))
        parts.append(f"{_paragraph(scene)} {question}")
    parts.append(f"Mektubunu bekliyorum.\n\nSevgilerimle,\n{writer.text}")
    return "\n\n".join(parts)


def _conversation(rng: Random, size: int) -> str:
    scene = _new_scene(rng)
    first, second = scene.cast[:2]
    place = scene.phrase("place", "loc")
    lines = [f"{first.text} ile {second.text} {place} karşılaşır."]
    length = 0
    while length < size:
        line = f"{scene.cast[len(lines) % 2].text}: {capitalise(_speech(scene))}"
        if rng.random() < 0.4:
            line += " " + capitalise(_speech(scene))
        lines.append(line)
        length += len(line)
    return "\n".join(lines)


def turkish_document(rng: Random, size: int) -> str:
    """Write one document: a story, report, letter or conversation.

    Args:
      rng: decides everything.
      size: about how long it is to be, in characters; the last paragraph may run over.

    Returns:
      The text, with paragraphs separated by empty lines and no newline at the end.
    """
    kinds = (_story, _story, report, report, _letter, _conversation)
    return rng.choice(kinds)(rng, size)
