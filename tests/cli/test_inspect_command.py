"""`decero inspect`: a table for people, one JSON object for programs, one line for what is not known."""

import json

import pytest

from decero.cli.main import main


def test_inspect_prints_tables(capsys):
    main(["inspect", "google-t5/t5-small"])
    said = capsys.readouterr().out
    for words in (
        "60,506,624 parameters as T5ForConditionalGeneration", "encoder   decoder", "arXiv:1910.10683", "no limit",
        "lm_head.weight is shared.weight: 16,449,536 parameters, counted once", "fp32     242 MB", "968 MB",
    ):  # fmt: skip
        assert words in said


def test_inspect_prints_json(capsys):
    main(["inspect", "mistral-7b", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["dimensions"]["model"]["num_key_value_heads"] == 8
    assert found["parameters"]["total"] == sum(found["parameters"]["by_part"].values()) == 7_241_732_096
    main(["inspect", "gpt-4", "--json"])
    assert json.loads(capsys.readouterr().out)["published"] is False


def test_inspect_says_what_is_not_published_in_one_line(capsys):
    main(["inspect", "gpt-4"])
    said = capsys.readouterr().out
    assert said.startswith("gpt-4: not published (")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["gpt2", "--picture", "gpt2.gif"],
            "--picture gpt2.gif: unknown kind of picture; use a name that ends in .png",
        ),
        (["gpt-3", "--picture", "gpt3.png"], "no configuration is published"),
        (["gpt-4", "--picture", "gpt4.png"], "not published"),
        (["gpt2", "--picture", "/no/such/folder/a.png"], "no folder /no/such/folder; make it first"),
        (["gptt2"], "did you mean"),
        (["pyproject.toml"], "no configuration"),
        (["configs/finetune/bbc_minilm.yaml"], "no configuration of a model; see configs/model"),
    ],
)
def test_inspect_refuses_in_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
