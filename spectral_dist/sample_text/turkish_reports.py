"""Turkish reports of the built-in sample text: figures of a city's production, plans and surveys.

Owns the factual style: passive and copular sentences, years, percentages and quantities that
follow from one another. It must not know how words are spelled (turkish.py). Read `report` first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from spectral_dist.sample_text.turkish import capitalise, inflect, inflect_digits, number_words
from spectral_dist.sample_text.turkish_lexicon import Root, roots, verb


@dataclass
class _Facts:
    """What one report is about; `year` and `amount` move on as it is told."""

    rng: Random
    city: Root
    crop: Root
    topic: Root
    year: int
    amount: int  # tonnes

    def when(self) -> str:
        """Return the current year in the locative, said in one of two ways."""
        if self.rng.random() < 0.5:
            return f"{self.year} yılında"
        return inflect_digits(self.year, "loc")

    def pick(self, group: str) -> Root:
        """Draw a word of a group."""
        return self.rng.choice(roots(group))


def _yield(facts: _Facts) -> str:
    """One year later: how much was produced, and by how many per cent it changed."""
    percent = facts.rng.choice((5, 10, 15, 20, 25, 50))
    rises = facts.amount < 20_000 or facts.rng.random() < 0.5
    change = facts.amount * percent // 100
    before, facts.year = facts.amount, facts.year + 1
    facts.amount += change if rises else -change
    moved = inflect(verb("art" if rises else "azal"), "erek")
    return (
        f"{facts.when()} {inflect(facts.city, 'loc')} {facts.crop.text} üretimi yüzde {percent}"
        f" {moved} {before} tondan {facts.amount} tona "
        + ("çıktı" if rises else "indi")
        + f". aradaki fark {change} tondur"
    )


def _survey(facts: _Facts) -> str:
    """A survey whose two groups make up the whole."""
    total = facts.rng.randint(4, 40) * 50
    share = facts.rng.randint(1, 19) * 5
    yes = total * share // 100
    return (
        f"{facts.topic.text} konusunda yapılan bir ankete {total} kişi katıldı. bu kişilerin yüzde"
        f" {share} kadarı, yani {yes} kişi, durumdan memnun olduğunu söyledi; geri kalan"
        f" {total - yes} kişi ise yeni bir {facts.rng.choice(('plan', 'proje', 'yöntem'))} istedi"
    )


def _building(facts: _Facts) -> str:
    place, city = facts.pick("place"), inflect(facts.city, "loc")
    quality = facts.pick("of_place").text
    done = inflect(
        verb(facts.rng.choice(("yap", "aç", "kur", "onar", "boya", "temizle"))), "pass", "past"
    )
    return f"{facts.when()} {city} {quality} bir {place.text} {done}"


def _plan(facts: _Facts) -> str:
    maker = facts.rng.choice(("belediye", "üniversite", "bakanlık", "vakıf", "kurum"))
    aim = inflect(verb(facts.rng.choice(("koru", "değiştir", "incele"))), "ma", "acc")
    what = inflect(facts.pick("topic"), "acc")
    tense = facts.rng.choice((("prog",), ("fut",), ("past",)))
    return f"{maker}, {what} {aim} amaçlayan bir proje {inflect(verb('hazırla'), *tense)}"


def _expert(facts: _Facts) -> str:
    first, second = facts.rng.sample(roots("abstract"), 2)
    view = facts.rng.choice(("söylüyor", "düşünüyor", "savunuyor", "belirtiyor"))
    return (
        f"uzmanlar, {inflect(facts.topic, 'loc')} {inflect(first, 'gen')}"
        f" {inflect(second, 'abl')} daha {facts.pick('of_abstract').text} olduğunu {view}"
    )


def _definition(facts: _Facts) -> str:
    first = facts.rng.choice(roots("abstract"))
    quality = facts.pick("of_abstract")
    return (
        f"{facts.topic.text}, {inflect(first, 'gen')} en {quality.text} parçasıdır; çünkü"
        f" {inflect(facts.topic, 'without')} bir {facts.rng.choice(('toplum', 'şehir', 'ülke'))}"
        " düşünülemez"
    )


def _passive_must(facts: _Facts) -> str:
    what = facts.rng.choice(("sorun", "plan", "karar", "gelenek"))
    root = verb(facts.rng.choice(("incele", "araştır", "tartış", "açıkla", "değiştir", "koru")))
    chain = facts.rng.choice((("must",), ("fut",), ("prog",), ("able", "aor"), ("unable", "past")))
    adverb = facts.pick("adverb").text
    return f"bu {what} {adverb} {inflect(root, 'pass', *chain)}"


def _life(facts: _Facts) -> str:
    home = inflect(facts.city, "with", "pl")
    crop = inflect(facts.crop, "abl")
    trade = facts.rng.choice(("ticaretle", "tarımla", "turizmle", "balıkçılıkla"))
    return (
        f"{home} uzun süre {trade} uğraştı; bugün ise {number_words(facts.rng.randint(2, 90))} bin"
        f" kişi {crop} para kazanıyor"
    )


def _road(facts: _Facts) -> str:
    other = facts.pick("city")
    while other == facts.city:
        other = facts.pick("city")
    distance, vehicle = facts.rng.randint(8, 160) * 10, facts.pick("vehicle")
    hours = inflect_digits(facts.rng.randint(2, 20), "loc")
    return (
        f"{inflect(facts.city, 'abl')} {inflect(other, 'dat')} {distance} kilometrelik yol,"
        f" {inflect(vehicle, 'ins')} saat {hours} başlayan bir yolculukla geçilir"
    )


_FRAMES: tuple[Callable[[_Facts], str], ...] = (
    *(_yield, _yield, _yield, _survey, _building, _building, _plan),
    *(_expert, _definition, _passive_must, _life, _road),
)


def _write(facts: _Facts) -> str:
    """Write one frame as one or more sentences."""
    text = facts.rng.choice(_FRAMES)(facts)
    return ". ".join(capitalise(sentence) for sentence in text.split(". ")) + "."


def report(rng: Random, size: int) -> str:
    """Write a report about one city, one product and one topic.

    Args:
      rng: decides everything.
      size: about how long it is to be, in characters.

    Returns:
      The text, with paragraphs separated by empty lines and no newline at the end.
    """
    city, crop, topic = (rng.choice(roots(group)) for group in ("city", "crop", "topic"))
    facts = _Facts(rng, city, crop, topic, rng.randint(1923, 1990), rng.randint(20, 200) * 1000)
    place = inflect(city, "loc")
    parts = [
        f"{city.text} raporu: {topic.text} ve {crop.text}",
        f"Bu rapor {place} {inflect(topic, 'gen')} durumunu ve {crop.text} üretimini anlatır."
        f" {inflect_digits(facts.year, 'loc')} {place} {facts.amount} ton {crop.text} üretildi.",
    ]
    while sum(map(len, parts)) < size:
        parts.append(" ".join(_write(facts) for _ in range(rng.randint(3, 7))))
        if facts.year > 2020:
            facts.crop, facts.year = rng.choice(roots("crop")), rng.randint(1923, 1990)
            facts.amount = rng.randint(20, 200) * 1000
            amount = f"{facts.amount} ton {facts.crop.text} üretildi."
            parts.append(f"{inflect_digits(facts.year, 'loc')} {place} {amount}")
    parts.append(f"Sonuç olarak {topic.text} ile {crop.text} üretimi birbirinden ayrılamaz.")
    return "\n\n".join(parts)
