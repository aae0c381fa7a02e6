"""Pairs, numbers, entities and answers from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from commands import call, failure
from transfuse.cli.found import _lines

SIZES = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_positions=48", "model.vocab_size=120"]
STEPS = ["training.max_steps=4", "training.validate_every=2", "training.batch_tokens=128"]
SMALL = [word for name in (*SIZES, *STEPS) for word in ("--set", name)]
WINDOW = [word for name in ("window=40", "overlap=4", "longest_question=16") for word in ("--set", f"answering.{name}")]
CONTEXT = "Anna lives in Rome."


def done(*words: str | Path) -> tuple[str, str]:
    code, output, messages = call(*words)
    assert code == 0, messages
    return output, messages


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fine")
    things = ("cat", "horse")
    rows = [{"a": f"a {a}", "b": f"the {b}", "same": a == b, "n": len(a)} for a in things for b in things]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 6))
    (home / "pairs.csv").write_text('a,b\n"a ""cat"",\nof mine","the cat"\n')
    (home / "tags.txt").write_text("Anna X B-PER\nleft X O\nRome X B-LOC\n\nBob X B-PER\ncame X O\n\n" * 6)
    (home / "texts.txt").write_text("Anna left Rome\nBob came\n")
    qas = [
        {"id": "1", "question": "Who lives?", "answers": [{"text": "Anna", "answer_start": 0}]},
        {"id": "2", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 14}]},
        {"id": "3", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    (home / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}] * 4}]}))
    (home / "questions.tsv").write_text(f"question\tcontext\nWho?\t{CONTEXT}\n")
    return home


def test_pairs_and_numbers(home: Path) -> None:
    columns = ["--source", "a", "--second", "b"]
    words = ["fit", "classify", home / "pairs.jsonl", *columns, *SMALL]
    output, messages = done(*words, "--target", "same", "--out", home / "same")
    assert output == f"{home / 'same'}\n" and "24 rows in 2 classes" in messages
    assert f"next: transfuse predict {home / 'same'} TABLE --source a --second b    transfuse evaluate" in messages
    assert failure("evaluate", home / "same", home / "pairs.jsonl", "--source", "a", "--target", "same") == (
        2,
        "transfuse: X holds single texts, and the model learned from pairs of texts",
    )
    output, _ = done("predict", home / "same", home / "pairs.csv", *columns, "--json")
    record = json.loads(output)
    assert record["source"] == 'a "cat",\nof mine' and record["second"] == "the cat"
    assert set(record["probabilities"]) == {"False", "True"}
    scores, _ = done("evaluate", home / "same", home / "pairs.jsonl", *columns, "--target", "same", "--json")
    assert json.loads(scores)["rows"] == 24
    done(*words, "--target", "n", "--number", "--out", home / "number")
    output, _ = done("predict", home / "number", home / "pairs.csv", *columns)
    float(output)
    code, last = failure(*words, "--target", "a", "--number", "--out", home / "never")
    assert code == 2 and "'a cat' is not a number" in last


def test_several_labels_a_text(home: Path) -> None:
    (home / "labels.csv").write_text("text,labels\n" + 'rain today,"wet, cold"\nsun today,\nsnow now,cold\n' * 6)
    words = ["fit", "classify", home / "labels.csv", "--source", "text", "--target", "labels", *SMALL]
    _, messages = done(*words, "--several", ",", "--seeds", "2", "--out", home / "labels")
    assert (
        "18 rows of 2 labels" in messages
        and "2 seeds: F1" in messages
        and "TABLE --source text --target labels --several ," in messages
    )
    assert json.loads((home / "labels" / "config.json").read_text())["id2label"] == {"0": "cold", "1": "wet"}
    (home / "weather.txt").write_text("rain today\nsun today\nsnow now\n")
    texts, _ = done("predict", home / "labels", home / "weather.txt")
    output, _ = done("predict", home / "labels", home / "weather.txt", "--json")
    records = [json.loads(line) for line in output.splitlines()]
    for text, record in zip(texts.removesuffix("\n").split("\n"), records, strict=True):
        assert record["output"] == [name for name, chance in record["probabilities"].items() if chance > 0.5]
        assert text == "\t".join(record["output"]) and set(record["probabilities"]) == {"cold", "wet"}
    judged = ["evaluate", home / "labels", home / "labels.csv", "--source", "text", "--target", "labels"]
    scores, _ = done(*judged, "--several", ",", "--json")
    f1, accuracy = json.loads(scores)["scores"]
    right = [found["output"] == true for found, true in zip(records, (["cold", "wet"], [], ["cold"]), strict=True)]
    assert (f1["name"], accuracy["name"], accuracy["value"]) == ("F1", "accuracy", pytest.approx(100 * sum(right) / 3))
    for command, wrong in (
        (judged, "this model knows several labels a text"),
        ([*judged, "--several", ""], "is what stands between them"),
        ([*words, "--several", ",", "--balanced", "--out", home / "never"], "--balanced are not for it"),
        ([*words, "--several", "", "--out", home / "never"], "is what stands between labels"),
        ([*words, "--out", home / "never"], "labels.csv:3: the column labels is empty"),
    ):
        code, last = failure(*command)
        assert code == 2 and wrong in last
    rows = [
        {"text": "rain now", "labels": None},
        {"text": "fog now", "labels": "fog, cold"},
        {"text": "a", "labels": " "},
        {"text": "rain today", "labels": ["wet", "cold"]},
        {"text": "sun", "labels": []},
    ]
    (home / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores, _ = done("evaluate", home / "labels", home / "held.jsonl", *judged[3:], "--several", ",", "--json")
    assert json.loads(scores)["rows"] == 5  # a label that was never learned is never found
    held = ["--several", ",", "--validation", home / "held.jsonl", "--out", home / "held"]
    code, last = failure(*words, *held)
    assert code == 2 and f"{home / 'held.jsonl'}:2: 'fog' is not among the 2 labels" in last
    _, messages = done(*words, *held, "--skip-bad-rows")
    assert "1 unusable rows left out, 4 kept" in messages
    (home / "spam.tsv").write_text("buy now\tspam\nhello there\t\n" * 6)
    done("fit", "classify", home / "spam.tsv", "--several", ",", *SMALL, "--out", home / "spam")
    output, _ = done("predict", home / "spam", home / "weather.txt", "--json")
    assert [*json.loads(output.splitlines()[0])["probabilities"]] == ["spam"]
    done("evaluate", home / "spam", home / "spam.tsv", "--several", ",")
    (home / "none.tsv").write_text("a\t\nb\t\n")
    code, last = failure("fit", "classify", home / "none.tsv", "--several", ",", *SMALL, "--out", home / "never")
    assert code == 2 and f"{home / 'none.tsv'}: no row has a label" in last
    (home / "one-class.tsv").write_text("a\tx\nb\ty\n" * 4)
    done("fit", "classify", home / "one-class.tsv", *SMALL, "--out", home / "one-class")
    code, last = failure("evaluate", home / "one-class", home / "one-class.tsv", "--several", ",")
    assert code == 2 and "is for models of several labels" in last


def test_seeds_are_judged_by_the_same_rows(home: Path) -> None:
    words = ["fit", "classify", home / "pairs.jsonl", "--source", "a", "--second", "b", "--target", "same", *SMALL]
    done(*words, "--seeds", "2", "--out", home / "seeds")
    states = (home / "seeds").glob("training-*/checkpoints/*/state.json")
    identities = [json.loads(path.read_text())["identity"] for path in states]
    assert len({one["validation"] for one in identities}) == 1 and len({one["seed"] for one in identities}) == 2


def test_entities(home: Path) -> None:
    words = ["fit", "tag", home / "tags.txt", "--scheme", "bioes", *SMALL]
    output, messages = done(*words, "--out", home / "tagger", "--seeds", "2", "--validation", home / "tags.txt")
    assert output == f"{home / 'tagger'}\n" and "2 seeds: entity F1" in messages
    output, _ = done("predict", home / "tagger", home / "texts.txt")
    assert len(output.splitlines()) == 2
    output, _ = done("predict", home / "tagger", home / "texts.txt", "--json")
    assert json.loads(output.splitlines()[0])["source"] == "Anna left Rome"
    scores, _ = done("evaluate", home / "tagger", home / "tags.txt", "--json")
    assert [one["name"] for one in json.loads(scores)["scores"]] == ["entity F1", "precision", "recall"]
    code, last = failure("fit", "tag", home / "tags.txt", "--tag-column", "2", *SMALL, "--out", home / "never")
    assert code == 2 and "y has 1 tag ('X')" in last
    code, last = failure(*words, "--tag-column", "7", "--out", home / "never")
    assert code == 2 and "tags.txt:1: 3 columns" in last


def test_tags_that_are_no_entities(home: Path) -> None:
    (home / "kinds.jsonl").write_text(
        '{"tokens": ["Anna", "left"], "tags": ["name", "verb"]}\n{"tokens": ["Bob"], "tags": ["name"]}\n' * 6
    )
    done("fit", "tag", home / "kinds.jsonl", *SMALL, "--out", home / "kinds")
    output, _ = done("predict", home / "kinds", home / "texts.txt")
    assert [cell.split("/")[0] for cell in output.splitlines()[1].split("\t")] == ["Bob", "came"]
    (home / "wordless.txt").write_text("\u200b\nBob left\n")
    output, _ = done("predict", home / "kinds", home / "wordless.txt", "--json")
    wordless, other = map(json.loads, output.splitlines())
    assert wordless["tags"] == [] and other["tokens"] == ["Bob", "left"]


def test_answers(home: Path) -> None:
    words = ["fit", "answer", home / "squad.json", *SMALL, *WINDOW]
    output, messages = done(*words, "--out", home / "answers")
    assert output == f"{home / 'answers'}\n" and "held out: exact match" in messages
    output, _ = done("predict", home / "answers", home / "squad.json", "--json")
    record = json.loads(output.splitlines()[0])
    assert record["source"] == "Who lives?" and record["second"] == CONTEXT and len(record["answers"]) == 5
    output, _ = done("predict", home / "answers", home / "questions.tsv", "--source", "question", "--second", "context")
    assert output.strip() in CONTEXT
    scores, _ = done("evaluate", home / "answers", home / "squad.json", "--json")
    assert json.loads(scores)["rows"] == 12
    moved = home / "moved.json"
    moved.write_text((home / "squad.json").read_text().replace('"answer_start": 14', '"answer_start": 13'))
    code, last = failure("fit", "answer", moved, *SMALL, *WINDOW, "--out", home / "never")
    assert code == 2 and "the answer is 'Rome', but the context has ' Rom' at character 13" in last
    _, messages = done("evaluate", home / "answers", moved, "--mismatched", "find")
    assert "0 answers left out and 4 moved" in messages
    code, last = failure("evaluate", home / "answers", home / "squad.json", "--metric", "bleu")
    assert code == 2 and "--metric: not for a QuestionAnswerer" in last
    code, last = failure("predict", home / "answers", home / "texts.txt")
    assert code == 2 and "rows of a question and a context" in last


def test_what_next_sentence_bought(home: Path) -> None:
    (home / "story.txt").write_text(
        "The cat saw the oak. It sat there. The oak was old. Anna came home. She left.\n" * 30
    )
    words = ["fit", "encode", home / "story.txt", "--context", "24", *SMALL]
    _, messages = done(*words, "--ablate-nsp", "--out", home / "encoder")
    assert "hidden words guessed: " in messages and "with next-sentence prediction" in messages
    code, last = failure(*words, "--ablate-nsp", "--set", "masking.next_sentence=false", "--out", home / "never")
    assert code == 2 and "nothing to take away" in last


@pytest.mark.parametrize("rows", ["rare", "one-second", "two-seconds"])
def test_seeds_of_awkward_rows(home: Path, rows: str) -> None:
    table = {
        "rare": "a\tx\tc\n" + "a b\tx y\ta\nb c\tz\tb\n" * 8,
        "one-second": "a b\tx\ta\nb c\tx\tb\n" * 8,
        "two-seconds": "a b\tx\ta\nb c\ty\tb\n" * 8,
    }[rows]
    (home / f"{rows}.tsv").write_text("one\ttwo\tlabel\n" + table)
    words = ["fit", "classify", home / f"{rows}.tsv", "--source", "one", "--second", "two", "--target", "label", *SMALL]
    _, messages = done(*words, "--seeds", "2", "--out", home / rows)
    assert "2 seeds: accuracy" in messages


def test_seeds_of_one_context(home: Path) -> None:
    squad = json.loads((home / "squad.json").read_text())
    squad["data"][0]["paragraphs"] = squad["data"][0]["paragraphs"][:1]
    (home / "one.json").write_text(json.dumps(squad))
    _, messages = done(
        "fit", "answer", home / "one.json", *SMALL, *WINDOW, "--seeds", "2", "--out", home / "one-context"
    )
    assert "2 seeds:" in messages


def test_a_number_that_is_none_is_named_by_file_and_line(home: Path) -> None:
    (home / "numbers.tsv").write_text("a\t1\nb\t2\n" * 4 + "c\tnan\n")
    (home / "judged.csv").write_text('"d\nd",3\ne,x\n')
    words = ["fit", "classify", home / "numbers.tsv", "--number", *SMALL]
    code, last = failure(*words, "--out", home / "never")
    assert code == 2 and f"{home / 'numbers.tsv'}:9: 'nan' is not a finite number" in last
    _, messages = done(*words, "--skip-bad-rows", "--out", home / "numbers")
    assert "1 unusable rows left out, 8 kept" in messages
    code, last = failure("evaluate", home / "numbers", home / "judged.csv")
    assert code == 2 and f"{home / 'judged.csv'}:3: 'x' is not a number" in last


def test_long_documents_are_tagged(home: Path) -> None:
    done("fit", "tag", home / "tags.txt", *SMALL, "--out", home / "long-tagger")
    (home / "long.txt").write_text("Anna left Rome . " * 6000)
    output, messages = done("predict", home / "long-tagger", home / "long.txt", "--json")
    assert "warning: 686 of 686 rows have up to 48 pieces, and the model was trained on rows of at most 5" in messages
    assert len(json.loads(output)["source"]) > 100_000
    (home / "too-long.txt").write_text("a" * 10_000_001)
    code, last = failure("predict", home / "long-tagger", home / "too-long.txt")
    assert code == 2 and "at most 10,000,000 are allowed" in last


def test_an_encoder_goes_on_from_another(home: Path) -> None:
    text = "The sun is up. The moon is not. " * 4
    (home / "stories.jsonl").write_text(json.dumps({"text": text}) * 1 + "\n" + json.dumps({"text": text}) + "\n")
    words = ["fit", "encode", home / "stories.jsonl", "--context", "16", *[w for s in STEPS for w in ("--set", s)]]
    done(*words, *[w for s in SIZES for w in ("--set", s)], "--out", home / "first")
    _, messages = done(*words, "--from", home / "first", "--seeds", "2", "--out", home / "second")
    assert "2 seeds: held-out loss of hidden words" in messages
    one, other = (json.loads((home / name / "tokenizer.json").read_text()) for name in ("first", "second"))
    assert one == other
    code, last = failure(*words, "--from", home / "first", "--set", "model.d_model=8", "--out", home / "never")
    assert code == 2 and "has its own, which training keeps" in last


def test_what_is_wrong_with_rows_names_their_file(home: Path) -> None:
    (home / "plain.txt").write_text("Anna PER\nleft O\n\nBob PER\nleft O\n")
    code, last = failure("fit", "tag", home / "plain.txt", "--scheme", "bio", *SMALL, "--out", home / "never")
    assert code == 2 and f"{home / 'plain.txt'}: y[0][0]: 'PER' is neither O" in last
    (home / "one.tsv").write_text("a\tx\nb\tx\n")
    code, last = failure("fit", "classify", home / "one.tsv", *SMALL, "--out", home / "never")
    assert code == 2 and f"{home / 'one.tsv'}: y has 1 class ('x')" in last
    (home / "empty.txt").write_text("")
    code, last = failure("fit", "encode", home / "empty.txt", "--out", home / "never")
    assert code == 2 and last.count(str(home / "empty.txt")) == 1 and "0 sentences are too few" in last


def test_labels_are_those_that_are_likelier_than_not() -> None:
    class Model:
        classes_, kind_ = np.array(["cold", "wet"]), "labels"

        def predict_proba(self, rows: list[str]) -> np.ndarray:
            return np.array([[0.4, 0.6], [0.2, 0.3]])

    assert [(text, record["output"]) for text, record in _lines(Model(), ["a", "b"])] == [("wet", ["wet"]), ("", [])]


def test_a_header_taken_for_a_row_is_noticed_and_hints_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("label\tsentence\n" + "".join(f"{i % 2}\trow {i} of them\n" for i in range(40)))
    code, last = failure("fit", "classify", tmp_path / "t.tsv", *SMALL, "--out", tmp_path / "no")
    assert code == 2 and "41 classes in 41 rows are none; --source and --target choose columns" in last
    words = ["fit", "classify", tmp_path / "t.tsv", "--source", "sentence", "--target", "label", *SMALL]
    _, messages = done(*words, "--out", tmp_path / "a b")
    last = messages.strip().splitlines()[-1]
    _, predict, evaluate = last.split("transfuse ")
    table = str(tmp_path / "t.tsv")
    for hint in (predict, evaluate):
        done(*shlex.split(hint.replace("TABLE", table)))
    assert "4 steps end inside of training.warmup_steps=50: lower it, or train for longer" in messages
