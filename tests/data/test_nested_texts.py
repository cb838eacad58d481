"""Words, texts and crops of nested scenes: the cosines they are to have, and the bag of words in between."""

from __future__ import annotations

import numpy as np
import pytest

from gsfields.data.nested_texts import (
    CANONICAL,
    USUAL_AREA,
    Meaning,
    TextConfig,
    TextEncoder,
    Vocabulary,
    gather_queries,
    noisy,
)

MUG, RED_MUG, BLUE_PAN = Meaning("mug"), Meaning("mug", "red"), Meaning("pan", "blue")
HANDLE = Meaning("handle", whole=RED_MUG)
APPLES = Meaning("bowl", "green", contents="apples")


def vector(vocabulary, word):
    """A word's unit vector [D]."""
    common, deviation = vocabulary.word(word)
    return common * vocabulary.mean + np.sqrt(1 - common**2) * deviation


def words(vocabulary, *names):
    return np.stack([vector(vocabulary, name) for name in names])


def mean_cosine(a, b):
    """The mean over encoders of several seeds of the dot product of a and b, functions of an encoder."""
    encoders = [TextEncoder(Vocabulary(seed=s), seed=s) for s in range(6)]
    return np.mean([a(e) @ b(e) for e in encoders])


def test_texts_are_english_and_of_their_kind():
    assert (MUG.text, MUG.kind) == ("mug", "simple")
    assert (HANDLE.text, HANDLE.kind) == ("handle of red mug", "partitive")
    assert (APPLES.text, APPLES.kind) == ("green bowl of apples", "compound")
    assert Meaning("rug", contents="toys", link="with").text == "rug with toys"


def test_equal_queries_unite_their_parts_and_are_in_order():
    made = gather_queries([(RED_MUG, [3]), (MUG, [3]), (MUG, [5, 6])])
    assert [(q.prompt, sorted(q.parts)) for q in made] == [("mug", [3, 5, 6]), ("red mug", [3])]


def test_made_words_have_cosines_like_clips():
    vocabulary = Vocabulary(seed=3)
    dishes = words(vocabulary, "mug", "bowl", "teapot", "pan", "jar", "dishes")
    others = words(vocabulary, "truck", "lamp", "red", "wall", "apple", "table", "handle")
    assert np.allclose(np.linalg.norm(dishes, axis=1), 1)
    apart = dishes @ others.T
    assert apart.min() > 0.6 and apart.max() < 0.8 and 0.65 < apart.mean() < 0.75
    among = (dishes @ dishes.T)[np.triu_indices(len(dishes), 1)]
    assert among.mean() > apart.mean() + 0.06
    assert np.sort(vocabulary.mean**2)[-2:].sum() > 0.7  # two large dimensions, as in CLIP
    assert vocabulary.dimension == 512 and Vocabulary(dimension=64).word("mug").deviation.shape == (64,)


def test_made_words_depend_on_seed_and_word_alone():
    a, b = Vocabulary(seed=1), Vocabulary(seed=1)
    b.word("truck")
    assert np.array_equal(vector(a, "mug"), vector(b, "mug"))
    assert np.array_equal(vector(a, "wheels"), vector(a, "wheel"))
    assert abs(vector(Vocabulary(seed=2), "mug") @ vector(a, "mug")) < 0.3


def test_given_words_are_kept_and_others_made_like_them(tmp_path):
    rng = np.random.default_rng(0)
    given = rng.normal(size=(40, 32)) + 2 * rng.normal(size=32)
    names = ["Red_Mug", "truck_(toy)", *(f"w{i}" for i in range(38))]
    np.save(tmp_path / "words.npy", given.astype(np.float16))
    vocabulary = Vocabulary.read(tmp_path / "words.npy", names)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    assert np.allclose(words(vocabulary, "red mug", "truck", "trucks", "W5"), unit[[0, 1, 1, 7]], atol=2e-3)
    made = words(vocabulary, *(f"new{i}" for i in range(40)))
    assert np.allclose(np.linalg.norm(made, axis=1), 1)
    cosines, own = ((x @ x.T)[np.triu_indices(40, 1)] for x in (made, unit))
    assert abs(cosines.mean() - own.mean()) < 0.05 and cosines.std() == pytest.approx(own.std(), rel=0.4)


@pytest.mark.parametrize(
    ("names", "vectors", "message"),
    [
        (["a"], np.ones((1, 16)), "N at least 2"),
        (["a", "b"], np.ones((3, 16)), "2 names"),
        (["a", "b"], np.ones((2, 16)), "must differ"),
        (["a", "b"], np.zeros((2, 16)), "none of them 0"),
        (["a", "b"], np.full((2, 16), np.nan), "finite"),
        (["a", "b"], None, "together"),
    ],
)
def test_bad_words_are_named(names, vectors, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(names, vectors)


def test_a_missing_file_of_words_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of word embeddings"):
        Vocabulary.read(tmp_path / "none.npy", ["a", "b"])
    with pytest.raises(ValueError, match="dimension"):
        Vocabulary(dimension=4)


def test_noise_has_exactly_the_stated_cosine():
    rng = np.random.default_rng(0)
    vector = noisy(np.eye(64)[0], 1.0, rng.normal(size=64))
    for cosine in (0.3, 0.9, 1.0):
        made = noisy(vector, cosine, rng.normal(size=64))
        assert made @ vector == pytest.approx(cosine) and np.linalg.norm(made) == pytest.approx(1)


def test_a_text_is_the_weighted_sum_of_its_words_but_for_its_noise():
    config = TextConfig(attribute=0.6, whole=0.8, text_cosine=0.97)
    encoder = TextEncoder(Vocabulary(seed=1), config)
    word = encoder.vocabulary.word
    whole = word("mug").deviation + 0.6 * word("red").deviation
    deviation = word("handle").deviation + 0.8 * whole / np.linalg.norm(whole)
    common = word("handle").common
    clean = common * encoder.vocabulary.mean + np.sqrt(1 - common**2) * deviation / np.linalg.norm(deviation)
    made = encoder.text(HANDLE)
    assert made @ clean == pytest.approx(0.97) and np.array_equal(made, encoder.text(HANDLE))
    assert np.linalg.norm(encoder.phrases(CANONICAL), axis=1) == pytest.approx(1)


def test_a_query_is_nearest_to_its_own_crop_and_then_to_what_shares_its_words():
    own = mean_cosine(lambda e: e.text(HANDLE), lambda e: e.crop(HANDLE))
    mug = mean_cosine(lambda e: e.text(HANDLE), lambda e: e.crop(RED_MUG))
    other = mean_cosine(lambda e: e.text(HANDLE), lambda e: e.crop(Meaning("handle", whole=BLUE_PAN)))
    floor = mean_cosine(lambda e: e.text(HANDLE), lambda e: e.crop(Meaning("floor")))
    assert own > other + 0.02 and own > mug + 0.03
    assert mug > floor + 0.1  # the bag of words: a mug is nearly a handle of a mug
    bowl, apple = Meaning("bowl", "green"), Meaning("apple")
    whole = mean_cosine(lambda e: e.text(APPLES), lambda e: e.crop(APPLES))
    assert whole > mean_cosine(lambda e: e.text(APPLES), lambda e: e.crop(bowl)) + 0.03
    assert whole > mean_cosine(lambda e: e.text(APPLES), lambda e: e.crop(apple)) + 0.05
    alone = mean_cosine(lambda e: e.text(apple), lambda e: e.crop(apple))
    assert alone > mean_cosine(lambda e: e.text(apple), lambda e: e.crop(APPLES)) + 0.03


def test_without_weights_of_the_whole_there_is_no_bag_of_words():
    config = TextConfig(whole=0.0, text_cosine=1.0)
    encoder = TextEncoder(Vocabulary(seed=0), config)
    assert np.allclose(encoder.text(HANDLE), vector(encoder.vocabulary, "handle"))


def test_small_crops_are_noisier_and_part_of_the_noise_lasts():
    encoder = TextEncoder(Vocabulary(seed=0), TextConfig(lasting=0.5))
    assert encoder.crop_cosine(USUAL_AREA) == pytest.approx(0.85)
    assert encoder.crop_cosine(USUAL_AREA / 10) < 0.75 < 0.9 < encoder.crop_cosine(10 * USUAL_AREA)
    clean = encoder.crop(MUG)
    seen = np.stack([encoder.seen({MUG: 1.0}, USUAL_AREA, "a", np.random.default_rng(i)) for i in range(30)])
    assert np.allclose(np.linalg.norm(seen, axis=1), 1) and np.allclose(seen @ clean, 0.85)
    noise = seen - 0.85 * clean
    cosines = (noise @ noise.T)[np.triu_indices(30, 1)] / (1 - 0.85**2)
    assert cosines.mean() == pytest.approx(0.5, abs=0.05)
    other = encoder.seen({MUG: 1.0}, USUAL_AREA, "b", np.random.default_rng(0)) - 0.85 * clean
    assert abs(other @ noise[1:].mean(axis=0)) < 0.05
    merged = TextEncoder(Vocabulary(seed=0), TextConfig(crop_cosine=1.0)).seen(
        {MUG: 0.5, Meaning("lamp"): 0.5}, USUAL_AREA, "a", np.random.default_rng(0)
    )
    assert merged @ clean == pytest.approx(merged @ encoder.crop(Meaning("lamp")), abs=1e-9)


def test_a_gap_sets_crops_apart_from_texts_and_nothing_else():
    def seen(gap, meaning=MUG):
        encoder = TextEncoder(Vocabulary(seed=0), TextConfig(gap=gap))
        return encoder, encoder.seen({meaning: 1.0}, USUAL_AREA, "a", np.random.default_rng(0))

    (plain, before), (encoder, after) = seen(0.0), seen(0.9)
    assert np.array_equal(plain.text(MUG), encoder.text(MUG)) and np.linalg.norm(after) == pytest.approx(1)
    for meaning in (MUG, Meaning("lamp")):
        text = plain.text(meaning)
        assert after @ text == pytest.approx(np.sqrt(1 - 0.9**2) * before @ text, abs=0.12)
    assert after @ plain.text(MUG) > after @ plain.text(Meaning("lamp"))
    assert after @ seen(0.9, Meaning("lamp"))[1] > 0.8 > before @ seen(0.0, Meaning("lamp"))[1]


@pytest.mark.parametrize(
    "bad", [{"gap": 1.0}, {"whole": -1}, {"text_cosine": 0}, {"lasting": 1.5}, {"contents": "much"}], ids=str
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        TextConfig(**bad)
