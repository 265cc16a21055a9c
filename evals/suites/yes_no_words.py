"""Yes and no in languages beside English, as whole answers (evals.suites.short_answers).

A word is here only when it is an answer by itself, and none is read within a longer answer, where many are other words (`si` is `if` in Spanish, `ya` is
`already`).
"""

from __future__ import annotations

WORDS: dict[str, tuple[str, str]] = {
    "Arabic": ("نعم", "لا"),
    "Chinese": ("是 是的 对 对的 對 對的 有 有的 正确", "不是 不是的 不 不对 不對 否 没有 沒有 没 不正确"),
    "Czech": ("ano", "ne"),
    "Danish, Norwegian, Swedish": ("ja", "nej nei"),
    "Dutch": ("ja", "nee neen"),
    "Finnish": ("kyllä", "ei"),
    "French": ("oui", "non"),
    "German": ("ja", "nein"),
    "Greek": ("ναι", "όχι οχι"),
    "Hebrew": ("כן", "לא"),
    "Hindi": ("हाँ हां", "नहीं"),
    "Hungarian": ("igen", "nem"),
    "Indonesian": ("ya", "tidak bukan"),
    "Italian": ("sì si", "no"),
    "Japanese": ("はい", "いいえ いえ"),
    "Korean": ("네 예", "아니요 아니오 아뇨"),
    "Polish": ("tak", "nie"),
    "Portuguese": ("sim", "não nao"),
    "Romanian": ("da", "nu"),
    "Russian": ("да", "нет"),
    "Spanish": ("sí si", "no"),
    "Thai": ("ใช่", "ไม่ใช่ ไม่"),
    "Turkish": ("evet", "hayır hayir"),
    "Ukrainian": ("так", "ні"),
    "Vietnamese": ("có", "không"),
}
"""Language -> its words for yes and those for no, as casefolded NFKC text."""
MEANING: dict[str, str] = {word: said for words in WORDS.values() for said, those in zip(("yes", "no"), words, strict=True) for word in those.split()}
"""Word -> yes or no."""
