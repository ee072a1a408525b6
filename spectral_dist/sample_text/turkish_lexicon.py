"""The Turkish roots of the built-in sample text, by part of speech and meaning.

Owns the words and the marks that say how a word departs from the regular spelling rules; knows
nothing of the rules themselves (turkish.py) or of sentences (turkish_documents.py). Read
`roots` first.
"""

from dataclasses import dataclass
from functools import cache

# A word is written with its marks behind it, and `_` for a space inside it:
#   *  the last consonant softens before a vowel    kitap kitabı, ağaç ağacı, renk rengi, git gider
#   ~  the last vowel drops before a vowel          burun burnu, ağız ağzı
#   ^  front suffixes although the last vowel is back   saat saati, gol golü, harf harfi
#   +  the last consonant doubles before a vowel    hak hakkı, sır sırrı
#   %  a `y` joins every vowel suffix               su suyu
#   &  already ends in the third person possessive  gökyüzü gökyüzünde
#   !  one syllable, yet the aorist has a high vowel    gel gelir, al alır
#   =  `e` narrows before a buffer `y`              de diyecek, ye yiyecek
MARKS = "*~^+%&!="

_NOUNS = {
    "person": "öğretmen doktor çocuk* öğrenci mühendis hemşire avukat yazar ressam şair gazeteci"
    " çiftçi balıkçı terzi berber aşçı garson şoför pilot kaptan polis asker memur müdür işçi usta"
    " çırak* komşu arkadaş misafir yolcu müşteri turist kütüphaneci postacı eczacı marangoz kadın"
    " adam bebek* yönetmen oyuncu sporcu araştırmacı profesör insan dost",
    "kin": "anne baba kardeş abla dede teyze amca kuzen dayı hala torun oğul~ kız nine",
    "quiet": "ev kütüphane park bahçe oda balkon kafe salon otel",
    "kitchen": "mutfak* lokanta ev bahçe",
    "work": "ofis fabrika hastane okul banka postane atölye laboratuvar üniversite liman çiftlik*"
    " müze istasyon eczane",
    "shop": "pazar çarşı market dükkan fırın eczane kasaba mağaza",
    "outdoors": "orman sahil dağ göl tarla ada vadi nehir~ meydan park deniz yayla ova",
    "place": "ev okul hastane kütüphane park pazar çarşı bahçe köy kasaba şehir~ köprü liman"
    " istasyon fabrika ofis lokanta otel müze sinema tiyatro göl dağ orman sahil meydan sokak*"
    " cadde fırın market eczane banka postane stadyum havaalanı& garaj mutfak* salon oda balkon"
    " atölye laboratuvar tarla ada vadi nehir~ mahalle üniversite kafe durak* çiftlik* dükkan saray"
    " kale okul",
    "food": "ekmek* peynir zeytin elma armut* üzüm portakal karpuz domates salatalık* patates"
    " yumurta bal tereyağı& reçel yoğurt* incir kiraz şeftali muz fındık* ceviz çikolata dondurma"
    " simit* pasta börek*",
    "dish": "çorba pilav köfte kebap* makarna salata börek* balık* tavuk* pasta yemek* kek",
    "drink": "su% çay kahve süt ayran limonata şerbet",
    "crop": "buğday pamuk* çay fındık* zeytin üzüm domates patates elma kiraz incir mısır arpa"
    " pirinç* tütün",
    "text": "kitap* dergi gazete mektup* şiir roman öykü masal makale rapor metin~ belge yazı"
    " haber",
    "thing": "çanta anahtar telefon bilgisayar kalem defter saat^ gözlük* şemsiye kutu sandık* masa"
    " sandalye dolap* lamba halı perde ayna vazo tablo fotoğraf bavul cüzdan bıçak* top oyuncak*"
    " merdiven ip çekiç* çivi",
    "tableware": "tabak* bardak* kaşık* çatal bıçak* tencere tepsi fincan tava",
    "clothing": "gömlek* ceket palto kazak* ayakkabı eldiven etek* pantolon elbise şapka çorap*"
    " kemer atkı mont",
    "openable": "kapı pencere kutu dolap* çanta çekmece bavul sandık* perde",
    "vehicle": "otobüs tren uçak* gemi bisiklet araba taksi vapur kamyon motosiklet tramvay metro",
    "animal": "kedi köpek* kuş at inek* koyun horoz tavşan arı kelebek* eşek* kaplumbağa leylek*"
    " deve keçi ördek* güvercin",
    "wild": "aslan kaplan tilki kurt* ayı yılan fare timsah",
    "plant": "ağaç* çiçek* gül lale papatya çam meşe ot yaprak* dal tohum fidan",
    "nature": "güneş ay yağmur kar fırtına bulut yıldız gökyüzü& toprak* taş ateş hava ışık* gölge"
    " buz sis dalga",
    "body": "el göz baş saç burun~ ağız~ kulak* diş kol bacak* ayak* parmak* omuz~ karın~ boyun~"
    " göğüs~ alın~ kalp*^ beyin~ yüz diz sırt",
    "abstract": "fikir~ düşünce sevgi umut* korku mutluluk* özgürlük* adalet barış başarı bilgi"
    " hayat gerçek* sorun çözüm amaç* sonuç* karar söz akıl~ sabır~ hak+ his+ sır+ hayal^ rol^"
    " dikkat^ seyahat^ ihtimal^ güç* ilgi önem değer plan deneyim gelenek* kültür tarih savaş"
    " neden yalan",
    "topic": "sağlık* eğitim tarım ulaşım çevre enerji turizm spor kültür ekonomi teknoloji"
    " güvenlik* iklim temizlik* ticaret sanayi",
    "lesson": "matematik* fizik* kimya tarih felsefe edebiyat müzik* coğrafya biyoloji ekonomi"
    " resim~ hukuk Türkçe Almanca",
    "activity": "iş ders toplantı sınav ödev proje yolculuk* oyun yarış tören tatil gezi sergi"
    " düğün konser maç",
    "show": "film oyun maç konser tören yarış belgesel",
    "sound": "müzik* şarkı haber radyo türkü masal konser ses",
    "time": "gün hafta ay yıl sabah akşam gece öğle dakika yaz kış ilkbahar sonbahar vakit~ ömür~"
    " bugün dün zaman",
    "other": "renk* isim~ resim~ şekil~ kısım~ nesil~ izin~ emir~ kayıt*~ kayıp*~ harf^ gol^"
    " kontrol^ kabul^ borç* suç sanat bilim dil numara kişi para taraf alkol^ festival^ hapis~"
    " ünite süre nüfus oran sayı üretim kapı iç dış üst alt ön arka yan terminal^ nakil~ vatan"
    " kasaba kanat* tat* dert* yurt* af+ hat+ zan+ petrol^ asır~ zihin~ cisim~ ahlak",
}
_NAMES = {
    "name": "Ahmet Mehmet Mustafa Ali Hasan Hüseyin Emre Burak Murat Kemal^ Orhan Cem Deniz Yusuf"
    " İbrahim Selim Serkan Onur Okan Tarık Uğur Ömer Can Barış Ayşe Fatma Zeynep Elif Emine Hatice"
    " Merve Selin Irmak Defne Nazlı Ebru Esra İpek Işıl Leyla Özlem Pınar Yasemin Şule Çiğdem"
    " Gökçe Ülkü Ceren",
    "city": "İstanbul Ankara İzmir Bursa Antalya Konya Adana Trabzon Erzurum Samsun Kayseri"
    " Eskişehir Diyarbakır Gaziantep Mardin Van Rize Sinop Tokat Bolu Kars Edirne Çanakkale Muğla"
    " Denizli Ordu Zonguldak Şanlıurfa Malatya Iğdır Isparta Uşak Ağrı Aydın Balıkesir Sivas Çorum"
    " Amasya Kütahya Mersin Hatay",
    "country": "Türkiye Almanya Fransa İtalya Japonya Mısır İspanya Hollanda Yunanistan"
    " Bulgaristan",
}
_ADJECTIVES = {
    "of_person": "genç* yaşlı akıllı çalışkan mutlu üzgün yorgun cesur dürüst nazik* sabırlı"
    " meraklı uzun_boylu zengin fakir sessiz iyi_kalpli tembel korkak* neşeli",
    "of_thing": "yeni eski büyük* küçük* güzel ağır hafif pahalı ucuz kırmızı mavi yeşil sarı beyaz"
    " siyah mor turuncu pembe gri geniş uzun kısa ince kalın temiz kirli",
    "of_place": "büyük* küçük* eski yeni kalabalık* sessiz geniş güzel temiz karanlık* aydınlık*"
    " soğuk* sıcak* uzak* yakın tenha ünlü",
    "of_food": "taze sıcak* soğuk* tatlı lezzetli acı tuzlu ekşi bol",
    "of_abstract": "önemli yeni eski büyük* küçük* zor kolay ilginç gizli derin gerekli farklı",
    "of_animal": "küçük* büyük* sevimli yaşlı beyaz siyah kahverengi hızlı yavaş aç güçlü vahşi",
    "other_adjective": "dolu boş açık* kapalı yüksek* alçak* dar kötü hızlı iyi var yok değil",
}
_VERBS = {
    "verb": "git* gel! al! ver! ol! gör! bul! bil! kal! dur! vur! var! san! öl! yap et* ye= de= iç"
    " aç kapat sat tut at kork bak çık gir in bin dön düş koş yürü uyu uyan kalk otur yat çalış oku"
    " yaz dinle konuş söyle anlat sor cevapla iste bekle ara sev beğen hoşlan düşün anla hatırla"
    " unut öğren öğret başla bitir bit taşı getir götür gönder kaybet* yıka temizle süpür pişir piş"
    " kes böl sür çiz boya kur yık onar tamir_et* yardım_et* teşekkür_et* seyret* izle gez dolaş"
    " yüz oyna gül ağla şaşır kız özle üzül sevin kutla davet_et* karşıla uğra ulaş yetiş geç seç"
    " say ölç topla ek büyü yetiştir sula yak söndür koru kullan üret art azal geliş değiş değiştir"
    " incele araştır keşfet* yayımla hazırla açıkla tartış kabul_et* savun inan güven katıl ayrıl"
    " yaşa doğ evlen ak es yağ giy sakla paylaş hisset* karar_ver! cevap_ver! rica_et* duy kaç uç"
    " ziyaret_et* sağla göster um bırak ilgilen tanı tanış buluş"
    " besle hazırlan dinlen görün dökül uzaklaş dağıl din karar",
}
_OTHERS = {
    "adverb": "hemen sessizce dikkatle yavaşça hızla çabucak mutlaka yine birlikte erkenden hep"
    " sık_sık bazen genellikle nihayet birden artık daima",
    "bound_adverb": "asla çoktan hiç",  # asla and hiç only with a denied verb
    "conjunction": "ve ama fakat ancak çünkü veya oysa üstelik hatta ayrıca böylece",
    "postposition": "için gibi kadar göre doğru karşı sonra önce beri rağmen ile",
    "numeral": "sıfır bir iki üç dört* beş altı yedi sekiz dokuz on yirmi otuz kırk elli altmış"
    " yetmiş seksen doksan yüz bin milyon",
}
_PARTS = (
    ("noun", _NOUNS),
    ("name", _NAMES),
    ("adjective", _ADJECTIVES),
    ("verb", _VERBS),
    ("other", _OTHERS),
)


@dataclass(frozen=True)
class Root:
    """One dictionary word.

    Attributes:
      text: the bare word; a verb without its infinitive ending.
      part: noun, name, adjective, verb or other.
      marks: a subset of `MARKS`.
    """

    text: str
    part: str
    marks: str = ""


def _parse(word: str, part: str) -> Root:
    """Split a word as written above from its marks."""
    text = word.rstrip(MARKS)
    return Root(text.replace("_", " "), part, word[len(text) :])


@cache
def roots(group: str) -> tuple[Root, ...]:
    """Return the words of one group, such as "food" or "verb", in a fixed order.

    Raises:
      KeyError: if no group has this name.
    """
    for part, groups in _PARTS:
        if group in groups:
            return tuple(_parse(word, part) for word in dict.fromkeys(groups[group].split()))
    raise KeyError(group)


@cache
def lexicon() -> dict[tuple[str, str], Root]:
    """Return every root by (part, text); a word in several groups is one root."""
    table: dict[tuple[str, str], Root] = {}
    for part, groups in _PARTS:
        for group in groups:
            for root in roots(group):
                known = table.setdefault((part, root.text), root)
                assert known == root, f"{root.text} is marked in two ways"
    return table


def noun(text: str) -> Root:
    """Return a noun, proper name or adjective by its text (KeyError if unknown)."""
    table = lexicon()
    for part in ("noun", "name", "adjective"):
        if (part, text) in table:
            return table[part, text]
    return table["other", text]


def verb(text: str) -> Root:
    """Return a verb by its stem (KeyError if unknown)."""
    return lexicon()["verb", text]
