"""The built-in minimal pairs: each differs in one point, and the right one is right."""

import pytest

from spectral_dist.sample_text.turkish_pairs import PHENOMENA, turkish_pairs

PAIRS = turkish_pairs()
# Read by hand: right, wrong.
READ = {
    "vowel_harmony": ("Berber gazeteleri aldı.", "Berber gazeteları aldı."),
    "consonant_assimilation": ("Çiftçi dün parkta uyudu.", "Çiftçi dün parkda uyudu."),
    "consonant_softening": ("Ressam oyuncağı buldu.", "Ressam oyuncakı buldu."),
    "buffer_consonant": ("Yolcunun hali soruldu.", "Yolcuyun hali soruldu."),
    "question_particle": ("Komşu fotoğrafı getirdi mi?", "Komşu fotoğrafı getirdi mı?"),
    "subject_agreement": ("Ben dergiyi sakladım.", "Ben dergiyi sakladın."),
    "possessor_agreement": ("Benim mektubum nerede.", "Benim mektubun nerede."),
    "case_of_postposition": ("Odaya kadar konuştuk.", "Odadan kadar konuştuk."),
    "tense_of_adverb": ("Gelecek yıl öyküyü unutacağız.", "Gelecek yıl öyküyü unuttuk."),
}


def test_ten_phenomena_of_a_hundred_pairs_each_no_two_alike() -> None:
    assert len(PHENOMENA) == 10
    for name, pairs in PAIRS.items():
        assert len(set(pairs)) == 100, name
        assert all(right != wrong for right, wrong in pairs)
    assert turkish_pairs(7) == {name: pairs[:7] for name, pairs in PAIRS.items()}


@pytest.mark.parametrize("name", PHENOMENA)
def test_the_sentences_differ_in_one_word(name: str) -> None:
    for right, wrong in PAIRS[name]:
        words = list(zip(right.split(), wrong.split(), strict=True))
        assert sum(a != b for a, b in words) == 1, (right, wrong)


@pytest.mark.parametrize("name", PHENOMENA)
def test_short_sentences_are_right_as_often_as_long_ones(name: str) -> None:
    longer = sum(len(right) > len(wrong) for right, wrong in PAIRS[name])
    shorter = sum(len(right) < len(wrong) for right, wrong in PAIRS[name])
    assert longer == shorter == 0 or abs(longer - shorter) <= 20


def test_pairs_that_were_read_by_hand() -> None:
    for name, pair in READ.items():
        assert pair in PAIRS[name]
    right, wrong = PAIRS["case_of_verb"][0]
    assert right.split()[:1] + right.split()[2:] == wrong.split()[:1] + wrong.split()[2:]
