"""The Turkish spelling rules against word forms written by hand."""

import pytest

from spectral_dist.sample_text.turkish import (
    capitalise,
    inflect,
    inflect_digits,
    lower,
    number_words,
)
from spectral_dist.sample_text.turkish_lexicon import noun, verb

# root, suffix codes, expected form, one after another; `_` stands for a space inside a word
NOMINAL = """
ev pl evler | ev acc evi | ev dat eve | ev loc evde | ev abl evden | ev gen evin | ev ins evle
ev p1s evim | ev p2s evin | ev p3s evi | ev p1p evimiz | ev p2p eviniz | ev p3p evleri
ev p3s loc evinde | ev p3s dat evine | ev p3s abl evinden | ev p3s acc evini | ev p3s gen evinin
ev p3s ins eviyle | ev p1s loc ki evimdeki | ev loc ki evdeki | ev loc ki pl evdekiler
ev loc ki acc evdekini | ev loc ki pl dat evdekilere | ev gen ki evinki
ev pl p1p abl evlerimizden | ev pl p3s loc evlerinde | okul pl okullar | okul dat okula
okul loc okulda | okul p1p dat okulumuza | göz pl gözler | göz p3s gözü | göz p1s gözüm
göz agent gözcü | gözlük agent gözlükçü | gün ki günkü | bugün ki bugünkü | dün ki dünkü
akşam ki akşamki | masa acc masayı | masa dat masaya | masa p3s masası | masa p3s dat masasına
masa gen masanın | masa ins masayla | masa loc ki pl masadakiler | kapı acc kapıyı
kapı p1s kapım | kapı p3s loc kapısında | kitap acc kitabı | kitap dat kitaba | kitap loc kitapta
kitap abl kitaptan | kitap gen kitabın | kitap p1s kitabım | kitap p3p kitapları
kitap pl p1p loc kitaplarımızda | kitap agent kitapçı | kitap ins kitapla | ağaç acc ağacı
ağaç pl ağaçlar | ağaç agent ağaççı | ağaç loc ağaçta | ağaç without ağaçsız | renk acc rengi
renk with renkli | renk p3s rengi | renk without renksiz | çocuk acc çocuğu | çocuk dat çocuğa
çocuk loc çocukta | çocuk ness çocukluk | çocuk ness p1s çocukluğum | çiçek p3s çiçeği
çiçek agent çiçekçi | köpek gen köpeğin | yoğurt acc yoğurdu | kurt dat kurda | kanat p3s kanadı
mektup acc mektubu | dolap loc dolapta | dolap dat dolaba | saç acc saçı | saç p1s saçım
top acc topu | ip p3s ipi | at acc atı | süt acc sütü | süt with sütlü | süt agent sütçü
gazete agent gazeteci | balık agent balıkçı | balık acc balığı | deniz agent denizci
park dat parka | park loc parkta | suç with suçlu | sanat agent sanatçı | hukuk gen hukukun
burun p3s burnu | burun loc burunda | burun p1s burnum | ağız p3s ağzı | ağız dat ağza
ağız pl ağızlar | oğul p3s oğlu | şehir dat şehre | şehir loc şehirde | isim p3s ismi
resim acc resmi | akıl with akıllı | akıl p3s aklı | sabır without sabırsız | vakit acc vakti
omuz p1s omzum | beyin p3s beyni | nakil p3s nakli | kayıt acc kaydı | kayıp acc kaybı
saat acc saati | saat pl saatler | saat loc saatte | saat p1s saatim | harf acc harfi
harf pl harfler | gol acc golü | gol pl goller | rol acc rolü | kalp p3s kalbi | kalp p1s kalbim
hayal p3s hayali | hayal pl p1s hayallerim | dikkat dat dikkate | kontrol acc kontrolü
hak p3s hakkı | hak pl haklar | his acc hissi | sır acc sırrı | su acc suyu | su p3s suyu
su gen suyun | su dat suya | su loc suda | su p1s suyum | su p3s loc suyunda | su without susuz
gökyüzü loc gökyüzünde | gökyüzü dat gökyüzüne | havaalanı abl havaalanından
havaalanı pl havaalanları | havaalanı pl loc havaalanlarında | tereyağı with tereyağlı
güzel ness güzellik | güzel ness acc güzelliği | insan equ insanca | öğretmen 1s öğretmenim
öğretmen 2s öğretmensin | öğretmen 1p öğretmeniz | öğretmen 2p öğretmensiniz
öğretmen cop öğretmendir | öğretmen cpast öğretmendi | öğretmen cpast 1s öğretmendim
öğretmen ccond öğretmense | öğrenci 1s öğrenciyim | öğrenci cpast 1p öğrenciydik
öğrenci cevid öğrenciymiş | çocuk 1s çocuğum | çocuk cop çocuktur | çocuk cpast çocuktu
yorgun cpast 1s yorgundum | yok cpast yoktu | var cpast vardı | var cop vardır | değil 1s değilim
mutlu 1p mutluyuz | Ankara loc Ankara'da | Ankara dat Ankara'ya | Ankara gen Ankara'nın
Ankara with Ankaralı | Ankara with gen Ankaralının | Türkiye gen Türkiye'nin | İzmir abl İzmir'den
İstanbul acc İstanbul'u | Sinop loc Sinop'ta | Tokat abl Tokat'tan | Zonguldak acc Zonguldak'ı
Gaziantep dat Gaziantep'e | Ahmet acc Ahmet'i | Ahmet pl Ahmetler | Ayşe ins Ayşe'yle
Ayşe dat Ayşe'ye | Irmak gen Irmak'ın | Iğdır loc Iğdır'da | Ömer gen Ömer'in | Kemal gen Kemal'in
Uğur p1s Uğur'um | bir ord birinci | iki ord ikinci | üç ord üçüncü | dört ord dördüncü
altı ord altıncı | on ord onuncu | iki dist ikişer | beş dist beşer
"""
VERBAL = """
gel prog geliyor | gel prog 1s geliyorum | gel prog 2s geliyorsun | gel prog 3p geliyorlar
gel prog cpast geliyordu | gel prog cpast 1s geliyordum | gel prog ccond geliyorsa
gel past geldi | gel past 1s geldim | gel past 1p geldik | gel past 2p geldiniz
gel past 3p geldiler | gel evid gelmiş | gel evid 1s gelmişim | gel evid cpast gelmişti
gel evid 3p cpast gelmişlerdi | gel fut gelecek | gel fut 1s geleceğim | gel fut 2s geleceksin
gel fut cpast gelecekti | gel aor gelir | gel aor 1s gelirim | gel neg aor gelmez
gel neg aor 1s gelmem | gel neg aor 1p gelmeyiz | gel neg aor 2s gelmezsin
gel neg aor ken gelmezken | gel cond gelse | gel cond 1p gelsek | gel aor ccond 2s gelirsen
gel must 1s gelmeliyim | gel opt1s geleyim | gel opt1p gelelim | gel imp3s gelsin
gel imp2p gelin | gel imp3p gelsinler | gel able aor gelebilir | gel able prog gelebiliyor
gel unable past gelemedi | gel unable aor 1s gelemem | gel unable aor gelemez
gel neg prog gelmiyor | gel neg fut 1s gelmeyeceğim | gel part gelen | gel part pl gelenler
gel dik p3s geldiği | gel dik p1s gen geldiğimin | gel dik p3s loc geldiğinde
gel ecek p3s acc geleceğini | gel ip gelip | gel erek gelerek | gel ince gelince
gel meden gelmeden | gel dikce geldikçe | gel aor ken gelirken | gel inf gelmek
gel inf abl gelmekten | gel ma dat gelmeye | gel ma p3s acc gelmesini | al aor alır
ver aor verir | bil aor bilir | bul aor bulur | dur aor durur | gör aor görür | kal aor kalır
ol aor olur | öl aor ölür | san aor sanır | var aor varır | vur aor vurur | yap aor yapar
yaz aor 1p yazarız | iç aor içer | sor aor sorar | çalış aor çalışır | otur aor oturur
oku aor okur | oku prog okuyor | oku fut okuyacak | oku part okuyan | oku neg prog okumuyor
oku unable prog 1s okuyamıyorum | oku ma acc okumayı | oku past okudu | başla prog başlıyor
başla prog 1p başlıyoruz | başla fut başlayacak | başla aor başlar | iste prog istiyor
iste past istedi | söyle prog söylüyor | oyna prog oynuyor | bekle prog 2s bekliyorsun
anla unable past 1s anlayamadım | topla prog topluyor | de prog diyor | de fut diyecek
de ip deyip | de ince deyince | de erek diyerek | de part diyen | de aor der | de past dedi
de past 1s dedim | ye prog yiyor | ye fut 1s yiyeceğim | ye ip yiyip | ye ince yiyince
ye aor yer | ye opt1p yiyelim | ye pass past yendi | ye neg prog yemiyor | git prog gidiyor
git past gitti | git fut gidecek | git aor gider | git neg past gitmedi | git dik p3s gittiği
git meden gitmeden | git ip gidip | git able aor gidebilir | et aor eder | et pass past edildi
yardım_et prog yardım_ediyor | yardım_et aor yardım_eder | kaybet past kaybetti
kaybet prog kaybediyor | kaybet aor kaybeder | sat prog satıyor | tut aor tutar | koş past koştu
koş prog koşuyor | yürü prog yürüyor | yürü aor yürür | düş evid düşmüş | üzül past 1s üzüldüm
bul pass aor bulunur | al pass past alındı | yap pass prog yapılıyor | yap pass dik p3s yapıldığı
oku pass aor okunur | yaz pass evid yazılmış | kullan pass prog kullanılıyor | aç pass past açıldı
yap caus past yaptırdı | oku caus past okuttu | çalış caus prog çalıştırıyor
uyu caus past uyuttu | otur caus past oturttu | piş caus past pişirdi | geç caus past geçirdi
kalk caus past kaldırdı | başla caus pass past başlatıldı | anla caus aor anlatır
ağla part ağlayan | ağla neg imp3s ağlamasın | unut past 1s unuttum | unut aor unutur
karar_ver aor karar_verir | teşekkür_et prog 1s teşekkür_ediyorum
"""


def _rows(table: str) -> list[tuple[str, tuple[str, ...], str]]:
    """Split a table above into (root, codes, expected)."""
    rows = []
    for line in table.replace("|", "\n").split("\n"):
        words = [word.replace("_", " ") for word in line.split()]
        if words:
            rows.append((words[0], tuple(words[1:-1]), words[-1]))
    return rows


@pytest.mark.parametrize(("text", "chain", "expected"), _rows(NOMINAL))
def test_nominal_form(text: str, chain: tuple[str, ...], expected: str) -> None:
    """Nouns, adjectives, numerals and proper names are spelled as a Turkish reader expects."""
    assert inflect(noun(text), *chain) == expected


@pytest.mark.parametrize(("text", "chain", "expected"), _rows(VERBAL))
def test_verbal_form(text: str, chain: tuple[str, ...], expected: str) -> None:
    """Verbs are spelled as a Turkish reader expects."""
    assert inflect(verb(text), *chain) == expected


def test_the_tables_are_large_and_without_repeats() -> None:
    """At least 150 different forms are checked."""
    rows = _rows(NOMINAL) + _rows(VERBAL)
    assert len({(text, chain) for text, chain, _ in rows}) == len(rows) >= 300


def test_dotted_and_dotless_i() -> None:
    """The two i letters of Turkish keep apart in both cases."""
    assert capitalise("istanbul") == "İstanbul"
    assert capitalise("ırmak") == "Irmak"
    assert capitalise("çağ") == "Çağ"
    assert lower("IĞDIR İZMİR") == "ığdır izmir"


def test_numbers_in_words_and_their_suffixes() -> None:
    """Numbers are read as in Turkish, and a suffix follows the last word read."""
    assert number_words(0) == "sıfır"
    assert number_words(100) == "yüz"
    assert number_words(1000) == "bin"
    assert number_words(1925) == "bin dokuz yüz yirmi beş"
    assert number_words(1_200_007) == "bir milyon iki yüz bin yedi"
    expected = {1923: "1923'te", 1940: "1940'ta", 1990: "1990'da", 2000: "2000'de", 6: "6'da"}
    assert {n: inflect_digits(n, "loc") for n in expected} == expected
    assert inflect_digits(4, "acc") == "4'ü"
    assert inflect_digits(25, "p3s") == "25'i"
    assert inflect_digits(50, "p3s") == "50'si"
    assert inflect_digits(3, "dat") == "3'e"


def test_an_unknown_suffix_is_an_error() -> None:
    """A wrong code is not passed over."""
    with pytest.raises(KeyError):
        inflect(noun("ev"), "dative")
