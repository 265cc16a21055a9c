"""Where media stand in what is said: a name is a placeholder only where it belongs to a medium; the rest is words."""

import itertools

import pytest

from mmcore.chat.places import Misfit, asked, asked_texts, before, counted, medium_before, parted, placed, rest_of, shown, spelled
from mmcore.types import Shown

IMAGE, VIDEO, AUDIO = Shown("image"), Shown("video"), Shown("audio")
PROBLEM = "{named} {name} but {given} {modality}"


@pytest.mark.parametrize(
    ("texts", "media", "said"),
    [
        (["What does the <video> tag do?"], {}, ["What does the <video> tag do?"]),
        (["1. <article>\n2. <audio>: a sound\n3. <video>", "<image_07> and <image_00>"], {}, None),
        (["<image>\nwhat?"], {"image": 1}, [(IMAGE, "\nwhat?")]),
        (["what?\n<image>"], {"image": 1}, [("what?\n", IMAGE)]),
        (["is <image> red?"], {"image": 1}, [("is ", IMAGE, " red?")]),
        (["hello", "is <image> red?", "why?"], {"image": 1}, ["hello", ("is ", IMAGE, " red?"), "why?"]),
        (["<image><image>\nwhich?"], {"image": 2}, [(IMAGE, IMAGE, "\nwhich?")]),
        (["<image> or <audio>?"], {"image": 1, "audio": 1}, [(IMAGE, " or ", AUDIO, "?")]),
        (["<image> or <audio>?"], {"image": 1}, [(IMAGE, " or <audio>?")]),
        (["<image>\nwhat is an <image> tag?"], {"image": 1}, [(IMAGE, "\nwhat is an <image> tag?")]),
        (["what is an <image> tag?\n <image> \nsay"], {"image": 1}, [("what is an <image> tag?\n ", IMAGE, " \nsay")]),
        (["<audio><image>\nan <image> tag?"], {"image": 1, "audio": 1}, [(AUDIO, IMAGE, "\nan <image> tag?")]),
        (["<image>", "the <image> tag, <image/>"], {"image": 1}, [(IMAGE,), "the <image> tag, <image/>"]),
        (["<Image> <images> < image> &lt;image&gt; <image_01>"], {"video": 0}, None),
        ([""], {}, [""]),
    ],
)
def test_names_are_places_where_there_are_as_many_media(texts, media, said):
    assert placed(texts, media, PROBLEM) == (texts if said is None else said)


@pytest.mark.parametrize(
    ("texts", "media", "problem"),
    [
        (["what?"], {"image": 1}, "0 <image> but 1 image"),
        (["<image> and <image>"], {"image": 1}, "2 <image> but 1 image"),
        (["<image>\nq", "<image>\nr"], {"image": 1}, "2 <image> but 1 image"),
        (["<image>"], {"image": 2}, "1 <image> but 2 image"),
        (["<image>"], {"image": 1, "video": 1}, "0 <video> but 1 video"),
    ],
)
def test_other_numbers_do_not_fit(texts, media, problem):
    with pytest.raises(Misfit, match=problem) as caught:
        placed(texts, media, PROBLEM)
    assert caught.value.reason == "placeholder_count"


def test_a_prompt_shows_its_media_where_it_names_them_or_before_it():
    assert asked("what is <image_00>?", []) == "what is <image_00>?" and asked("the <video> tag?", []) == "the <video> tag?"
    assert asked("what?", [("image", 3), ("audio", 2)]) == (Shown("image", 3), Shown("audio", 2), "what?")
    assert asked("the <video> tag?", [("image", 3)]) == (Shown("image", 3), "the <video> tag?")
    assert asked("is <image> like <image>?", [("image", 3), ("image", 4)]) == ("is ", Shown("image", 3), " like ", Shown("image", 4), "?")
    with pytest.raises(Misfit, match="the text names <image> 2 times but 1 image media are given"):
        asked("<image> and <image>", [("image", 3)])
    with pytest.raises(Misfit, match="the text names <audio> 0 times but 1 audio media are given"):
        asked("<image>?", [("image", 3), ("audio", 2)])


def test_counted_fills_in_tokens_and_refuses_media_that_have_no_place():
    assert counted(["q", ("<", IMAGE)], [("image", 5)]) == ["q", ("<", Shown("image", 5))]
    assert counted(["q", "r"], [("image", 5)]) == [(Shown("image", 5), "q"), "r"] and counted(["q", "r"], []) == ["q", "r"]
    for turns, media in (([(IMAGE, "q")], []), ([(IMAGE, IMAGE, "q")], [("image", 5)]), ([(IMAGE, "q")], [("image", 5), ("image", 6)])):
        with pytest.raises(Misfit, match="places of image but"):
            counted(turns, media)


def test_what_a_turn_begins_with_stands_apart():
    assert parted((IMAGE, "\n is it? ")) == ((IMAGE,), ("is it?",)) and parted(" q ") == ((), ("q",)) and parted("") == ((), ())
    assert parted((" \n", IMAGE, AUDIO)) == ((IMAGE, AUDIO), ()) and parted(("q ", IMAGE, "\n")) == ((), ("q ", IMAGE))
    assert medium_before((IMAGE, "q")) == IMAGE and medium_before(("q", IMAGE)) is None is medium_before((IMAGE, "q", IMAGE)) and medium_before("q") is None
    assert rest_of((IMAGE, "\nq")) == "q" and rest_of(("q ", IMAGE)) == ("q ", IMAGE) and shown(("q", IMAGE)) == (IMAGE,)


@pytest.mark.parametrize("named", ["", "<image>", "<video>"])
@pytest.mark.parametrize("place", ["<image>\n{}", "{}\n<image>", "is it\n<image>\n{}"])
def test_a_spelled_question_asks_the_same(named, place):
    """What a record says of its medium is what the prompt of the same question says of it."""
    (said,) = placed([place.format(f"what is {named}?")], {"image": 1}, PROBLEM)
    first, rest = parted(said)
    again = parted(asked(spelled(said), [("image", 0)]))
    assert again == (first, rest)


def test_questions_of_a_list_are_prompts():
    assert asked_texts(["<image>\nis it red?", "and blue?"], "image") == ["is it red?", "and blue?"]
    assert asked_texts(["<image>\nis the <image> tag red?"], "image") == ["<image>\nis the <image> tag red?"]
    assert asked_texts(["is <image> red?", "no <image>?"], "image") == ["is <image> red?", "no <image>?"]
    assert asked_texts(["is it red?", "<video>"], "image") == ["is it red?", "<video>"]


def test_any_text_without_media_is_words():
    names = ["<image>", "<video>", "<audio>", "<image_00>", "<s>", "\n", "x"]
    for pieces in itertools.product(names, repeat=3):
        text = "".join(pieces)
        assert placed([text], {}, PROBLEM) == [text] == [asked(text, [])] and before(text, []) == text
