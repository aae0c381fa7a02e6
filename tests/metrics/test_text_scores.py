"""Scores against the packages that define them, to the last digits, and against numbers known by hand."""

from __future__ import annotations

import re
import unicodedata

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from transfuse.errors import ConfigError, DataError
from transfuse.metrics.text_scores import METRICS, Score, check_metrics, score_texts

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}

HYPOTHESES = [
    "the quick brown fox jumps over the lazy dog .",
    "It's 3.5 % better, isn't it?",
    "a a a b",
    "",
    "The END",
]
REFERENCES = [
    "a quick brown dog jumps over the lazy fox .",
    "It is 3.5 % better , is it not ?",
    "a b a b",
    "something was here",
    "the end",
]
CHINESE = ["我喜欢狗,你喜欢猫吗?", "今天天气很好", "他说GPU很贵", "不"]
CHINESE_REFERENCES = ["我喜欢猫,你喜欢狗吗?", "今天的天气真好", "他说GPU不贵", "是"]

WORDS = st.lists(st.sampled_from(["a", "b", "the", "The", "dog", "x7", "42", ",", "it's", "-"]), max_size=12)


class UnicodeWords(Tokenizer):
    """A run of letters and digits is a word, a Chinese character a word of its own."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", text.lower())


def rouge(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    return {score.name: score.value for score in score_texts(hypotheses, references, "rouge")}


def package_rouge(hypotheses: list[str], references: list[str], tokenizer: Tokenizer | None = None) -> dict[str, float]:
    """Mean F1 of the `rouge-score` package, 0 to 100."""
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=False, tokenizer=tokenizer)
    cells = [scorer.score(other, one) for one, other in zip(hypotheses, references, strict=True)]
    return {name: 100 * sum(cell[kind].fmeasure for cell in cells) / len(cells) for name, kind in ROUGE.items()}


def the_score(metric: str, hypotheses: list[str], references: list[str]) -> Score:
    (score,) = score_texts(hypotheses, references, metric)
    return score


@given(WORDS, WORDS)
def test_rouge_is_what_the_package_counts(hypothesis: list[str], reference: list[str]) -> None:
    texts = [" ".join(hypothesis)], [" ".join(reference)]
    assert rouge(*texts) == pytest.approx(package_rouge(*texts), rel=1e-12, abs=1e-12)


def test_rouge_of_a_corpus_is_the_mean_the_package_gives() -> None:
    assert rouge(HYPOTHESES, REFERENCES) == pytest.approx(package_rouge(HYPOTHESES, REFERENCES), rel=1e-12)


def test_a_reference_of_punctuation_does_not_change_how_words_are_cut() -> None:
    texts = ["naïve b", "ok", "what"], ["na ve b", "?!", "…"]
    assert rouge(*texts) == pytest.approx(package_rouge(*texts), rel=1e-12, abs=1e-12)
    assert "tok:rouge-score|" in score_texts(*texts, "rouge")[0].signature


def test_rouge_of_chinese_is_the_package_with_characters_as_words() -> None:
    expected = package_rouge(CHINESE, CHINESE_REFERENCES, UnicodeWords())
    assert rouge(CHINESE, CHINESE_REFERENCES) == pytest.approx(expected, rel=1e-12)
    assert expected["ROUGE-2"] > 20


def test_rouge_by_hand() -> None:
    # words: 3 of 4 and 3 of 5 shared; pairs of words: 1 of 3 and 1 of 4; longest common subsequence: "a b d"
    found = rouge(["a b c d"], ["a b x y d"])
    assert found == pytest.approx({"ROUGE-1": 100 * 6 / 9, "ROUGE-2": 100 * 2 / 7, "ROUGE-L": 100 * 6 / 9})


def test_rouge_says_which_rule_cut_the_words() -> None:
    rules = [score_texts(texts, texts, "rouge")[0].signature for texts in (["a dog"], ["我"])]
    assert ["tok:rouge-score|" in rules[0], "tok:unicode|" in rules[1]] == [True, True]
    assert all("|case:lc|stem:no|" in rule and "|average:mean-f1|" in rule for rule in rules)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("की", "का", id="Devanagari vowel signs"),
        pytest.param("நீ", "நா", id="Tamil vowel signs"),
        pytest.param("ที่", "ทั้", id="Thai vowels and tones"),
    ],
)
def test_words_that_differ_only_in_a_vowel_sign_are_different_words(one: str, other: str) -> None:
    assert rouge([one], [one])["ROUGE-1"] == 100
    assert rouge([one], [other])["ROUGE-1"] == 0


@pytest.mark.parametrize(
    ("metric", "oracle"),
    [
        ("bleu", sacrebleu.BLEU()),
        ("bleu-lc", sacrebleu.BLEU(lowercase=True)),
        ("bleu-char", sacrebleu.BLEU(tokenize="char")),
        ("chrf", sacrebleu.CHRF()),
    ],
)
@pytest.mark.parametrize(("hypotheses", "references"), [(HYPOTHESES, REFERENCES), (CHINESE, CHINESE_REFERENCES)])
def test_bleu_and_chrf_are_what_sacrebleu_says(
    metric: str, oracle: sacrebleu.metrics.base.Metric, hypotheses: list[str], references: list[str]
) -> None:
    expected = oracle.corpus_score(hypotheses, [references])
    found = the_score(metric, hypotheses, references)
    assert found.value == expected.score
    assert found.signature == str(oracle.get_signature())
    assert f"version:{sacrebleu.__version__}" in found.signature


def test_lower_case_bleu_ignores_case_and_plain_bleu_does_not() -> None:
    texts = ["THE QUICK BROWN FOX"], ["the quick brown fox"]
    assert the_score("bleu-lc", *texts).value == pytest.approx(100)
    assert the_score("bleu", *texts).value == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_corpus_against_itself_scores_100(metric: str) -> None:
    texts = ["the quick brown fox jumps over it", "one two three four five"]
    assert [score.value for score in score_texts(texts, texts, metric)] == pytest.approx(
        [100] * (1 + 2 * (metric == "rouge"))
    )


@pytest.mark.parametrize("metric", METRICS)
def test_texts_that_share_nothing_score_0(metric: str) -> None:
    scores = score_texts(["aa bb cc dd"], ["xx yy zz ww"], metric)
    assert [score.value for score in scores] == pytest.approx([0] * len(scores))


def test_exact_counts_equal_texts_but_for_space_around_them() -> None:
    assert the_score("exact", ["a", " b ", "C", "d"], ["a", "b", "c", "e"]).value == 50


def test_case_may_be_left_out() -> None:
    (score,) = score_texts(["a", " b ", "Ça", "d"], ["A", "b", "ça ", "e"], "exact-lc")
    assert (score.value, score.signature) == (75, "strip:yes|case:lc")


@pytest.mark.parametrize("metric", METRICS)
def test_texts_are_compared_in_one_normal_form(metric: str) -> None:
    texts = ["한국 사람 말 하다", "các bạn khỏe không"]
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    for score, same in zip(score_texts(texts, apart, metric), score_texts(texts, texts, metric), strict=True):
        assert score.value == same.value and score.value > 99
        assert score.signature == f"{same.signature}|norm:nfc"
    assert [one.value for one in score_texts(apart, texts, metric)] == [
        s.value for s in score_texts(texts, texts, metric)
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_a_score_prints_its_signature(metric: str) -> None:
    for score in score_texts(["the dog runs home"], ["the dog runs home"], metric):
        assert score.signature
        assert str(score) == f"{score.name} {score.value:.2f} ({score.signature})"


def test_names_of_the_metrics() -> None:
    assert list(METRICS) == ["bleu", "bleu-lc", "bleu-char", "chrf", "rouge", "exact", "exact-lc"]
    names = [[score.name for score in score_texts(["a"], ["a"], metric)] for metric in METRICS]
    assert names == [["BLEU"], ["BLEU"], ["BLEU"], ["chrF"], ["ROUGE-1", "ROUGE-2", "ROUGE-L"], *[["exact"]] * 2]


@pytest.mark.parametrize("metric", ["", "BLEU", "accuracy"])
def test_an_unknown_metric_is_named_with_those_there_are(metric: str) -> None:
    rule = f"metric={metric!r} must be one of bleu, bleu-lc, bleu-char, chrf, rouge, exact, exact-lc"
    for use in (lambda: score_texts(["a"], ["a"], metric), lambda: check_metrics(["bleu", metric])):
        with pytest.raises(ConfigError) as caught:
            use()
        assert str(caught.value) == rule


@pytest.mark.parametrize(("hypotheses", "references"), [(["a"], ["a", "b"]), (["a", "b"], []), ([], [])])
def test_every_hypothesis_needs_a_reference(hypotheses: list[str], references: list[str]) -> None:
    rule = f"{len(hypotheses)} hypotheses for {len(references)} references; one each is needed"
    with pytest.raises(DataError, match=f"^{rule}$"):
        score_texts(hypotheses, references, "rouge")
