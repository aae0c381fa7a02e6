"""Every example of the README runs: the Python as it stands, the commands on a small made corpus."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import transfuse
from commands import call

ROOT = Path(transfuse.__file__).parents[2]
PAIRS = [("Ein Hund läuft .", "A dog runs ."), ("Eine Katze schläft .", "A cat sleeps .")] * 8
SHORT = "--set training.max_steps=4 --set training.validate_every=2"
SMALL = f"{SHORT} --set model.d_model=16 --set model.vocab_size=300"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_python_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(name, "python")
    assert code
    for block in code:
        exec(compile(block, name, "exec"), {})


def commands_of(name: str) -> list[str]:
    lines = [line.split("   #")[0].strip() for block in blocks(name, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("transfuse ")]


def test_both_languages_have_the_same_commands() -> None:
    assert commands_of("README.md") == commands_of("README.zh.md")


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("".join(f"{one}\t{other}\n" for one, other in PAIRS))
    (tmp_path / "test.tsv").write_text("Ein Hund schläft .\tA dog sleeps .\n")
    (tmp_path / "texts.txt").write_text("Ein Hund läuft .\n")
    for text in ("books.txt", "more.txt"):
        (tmp_path / text).write_text("It was a dog that ran, and a cat that slept.\n" * 300)
    (tmp_path / "train.conll").write_text("Anna B-PER\nleft O\n\nBob B-PER\ncame O\n\n" * 8)
    qas = [{"id": "1", "question": "Who left?", "answers": [{"text": "Anna", "answer_start": 0}]}]
    squad = json.dumps({"data": [{"paragraphs": [{"context": "Anna left.", "qas": qas}] * 4}]})
    for name in ("train.json", "questions.json"):
        (tmp_path / name).write_text(squad)
    rows = "".join(f"{age},{'high' if age % 3 else 'low'}\n" for age in range(60))
    (tmp_path / "table.csv").write_text("age,income\n" + rows)
    story = "once there was a small {} house at the sea number {}"
    cells = "".join(f"{story.format('red' if i % 2 else 'blue', i)},{i},{i % 2}\n" for i in range(30))
    (tmp_path / "rows.csv").write_text("story,size,label\n" + cells)
    (tmp_path / "prompts.txt").write_text("It was\n")
    commands = commands_of("README.md")
    assert {shlex.split(command)[1] for command in commands} == {
        *("fit", "predict", "evaluate", "inspect", "regroup", "compare", "describe", "importance", "longest")
    }
    for command in commands:
        further = "" if " fit " not in command else SHORT if " --from " in command or "multimodal" in command else SMALL
        # what is shown trains for minutes; that it runs shows in a moment
        words = shlex.split(f"{command} {further}".replace("--tokens 50000", "--tokens 300"))
        code, _, messages = call(*words[1:])
        assert code == 0, f"{command}\n{messages}"


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_make_targets_exist(name: str) -> None:
    targets = re.findall(r"make (demo|test)\b", (ROOT / name).read_text())
    assert {"demo", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert links
    assert all((ROOT / link).exists() for link in links if "://" not in link)
