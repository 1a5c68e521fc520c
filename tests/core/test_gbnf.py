"""GBNF is read as libllama reads it, in one pass: what is let through is sound, what is refused both refuse."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llcuda_ffi.bundles import InstalledBundle
from llcuda_ffi.core.gbnf import read_grammar
from llcuda_ffi.core.grammar import check_grammar
from llcuda_ffi.errors import InvalidRequest

from ..support.child_process import run_child
from ..support.tiny_model import make_tiny_llama

BOTH_REFUSE = [
    "root",
    "root ::= a",
    "root ::= " + "a" * 60_000,
    'root ::= "a',
    'root ::= "\\q"',
    'root ::= "\\x4"',
    "root ::= [a",
    "root ::= [a-",
    "root ::= [a-\\q]",
    'root ::= ("a"',
    'root ::= "a")',
    "root ::= *",
    'root ::= "" *',
    "root ::= []+",
    'root ::= "a"{',
    'root ::= "a"{ }',
    'root ::= "a"{,2}',
    'root ::= "a"{1 2}',
    'root ::= "a"{0}*',
    'root ::= ("a"{0,300}){300}',
    "root ::= <[x]>",
    "root ::= <never a token of it>",
    "root ::= <",
    "root ::= !x",
    'a_b ::= "a"\nroot ::= a_b',
    'root ::= "a"\n| "b"',
    'root = "a"',
    'root ::= "a"; "b"',
]
BOTH_TAKE = [
    'root ::= "a" # end',
    'root ::= ("a"\n | # why\n "b")* "c"',
    'root ::=\n  "a" |\n  "b"\r\n\r\nb ::= root',
    "root ::= [^\\]\\-a-z\\x41-\\U0001F600-]+ .",
    "root ::= [a--] [[] [-a]",
    'root ::= "\\"\\\\\\u00e9é" { 2 , }',
    'root ::= "a"? "b"{2} "c"{0,3} ("d" "e"){ 2 , 4 }',
    'root ::= "a"**',
    "root ::= <[5]> !<[6]>",
    "root ::= \"\" | a-1\na-1 ::= 'x'".replace("'", '"'),
    'root ::= "x"\nroot ::= "y"',
]
OLDER_REFUSE = [BOTH_TAKE[3], BOTH_TAKE[7]]  # it has no escaped hyphen and does not survive a repeated repetition
OLDER_TAKE = ['root ::= ("a"{0,300}){300}']  # 90,000 elements: it has no bound

COMPARE = """
import json, sys
from llcuda_ffi.core.model import Model
from llcuda_ffi.core.grammar import grammar_sampler
from llcuda_ffi.errors import InvalidRequest
model = Model.load(sys.argv[1])
lib, vocab = model.library.lib, model.vocab.pointer
for text, ours in json.load(open(sys.argv[2])):
    if ours is None:
        try:
            lib.llama_sampler_free(grammar_sampler(model, text))
            ours = True
        except InvalidRequest as error:
            ours = "left recursion" in str(error)
    if not ours and sys.argv[3] == "both":
        sampler = lib.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        print(json.dumps([text, bool(sampler)]))
    elif not ours:
        print(json.dumps([text, False]))
"""


def _refused(tmp_path: Path, grammars: list[str], both: bool) -> tuple[dict[str, bool], str]:
    """Which of them are refused here → whether libllama takes them; and what was written to stderr."""
    model = tmp_path / "tiny.gguf"
    make_tiny_llama(model)
    (tmp_path / "grammars").write_text(json.dumps([[g, None] for g in grammars]))
    code = COMPARE.replace("import json, sys", "import json, sys, os\nos.dup2(os.open(sys.argv[4], 65), 2)", 1)
    out = run_child(
        code, model, tmp_path / "grammars", "both" if both else "ours", tmp_path / "stderr", LLCUDA_FFI_OFFLINE="1"
    )
    return dict(json.loads(line) for line in out.splitlines()), (tmp_path / "stderr").read_text()


def test_refused_and_taken_as_libllama_does(bundle: InstalledBundle, tmp_path: Path) -> None:
    """Each of the first list is refused by both, each of the second taken; libllama writes nothing to stderr."""
    older = bundle.profile == "b7698"
    refused, said = _refused(tmp_path, BOTH_REFUSE + BOTH_TAKE, both=False)
    assert list(refused) == BOTH_REFUSE + (OLDER_REFUSE if older else [])
    assert older or said == ""
    refused, _ = _refused(tmp_path, BOTH_REFUSE, both=True)
    assert list(refused) == BOTH_REFUSE
    assert [text for text, taken in refused.items() if taken] == (OLDER_TAKE if older else [])


def test_random_grammars(tmp_path: Path) -> None:
    """Grammars put together at random: none that is let through makes libllama complain, none is refused alone."""
    r = random.Random(5)
    parts = ['"a"', '""', "[a-c]", "[^x-]", "root", "b", ".", "(", ")", "|", "*", "+", "?"]
    parts += ["{2}", "{1,3}", "{0,}", "{0}", "\n", " ", "#c\n", "b ::= ", "<[7]>", "!<[7]>"]
    parts += ["[", '"', "\\", "{", "}", "_", "-", "]", "::="]
    odds = [8] * 17 + [2, 8, 1, 3, 1, 1] + [0.5] * 9
    grammars = {
        "root ::= " + "".join(r.choices(parts, odds, k=r.choice([2, 4, 6, 9, 14]))) + r.choice(["", '\nb ::= "x"'])
        for _ in range(3000)
    }
    refused, said = _refused(tmp_path, sorted(grammars), both=False)
    assert said == ""
    assert 500 < len(refused) < 2900
    refused, _ = _refused(tmp_path, sorted(refused), both=True)
    assert [grammar for grammar, taken in refused.items() if taken] == []


@pytest.mark.parametrize(
    "text",
    [
        "root ::= " + "a" * 1_000_000,
        'root ::= "a"{' + " " * 1_000_000,
        "root ::= " + "[" * 1_000_000,
        "root ::= " + "[a-" * 300_000,
        'root ::= "' + "\\n" * 500_000,
        "root ::= " + "(" * 200_000,
        'root ::= "a"' + "*" * 200_000,
        'root ::= "a"{' + "9" * 1_000_000 + "}",
        "root ::= " + '("a"?){2000} ' * 50_000,
        "root ::= " + '"a"{0,2000} ' * 50_000,
        'root ::= "' + "a" * 1_000_000 + '"{2000}',
        'root ::= "a"{2,1}',
        "root ::= " + "a " * 400_000,
        "#" * 1_000_000,
        "root ::= " + "<" * 1_000_000,
    ],
    ids=lambda text: text[:24],
)
def test_hostile(text: str) -> None:
    """A megabyte made to cost is refused after one pass (the time limit of the suite would not bear a second)."""
    with pytest.raises(InvalidRequest):
        check_grammar(text)


def test_where_it_is_wrong() -> None:
    """The message names the line, what should stand there and what does."""
    with pytest.raises(InvalidRequest, match=r"line 2 should have ::= after the rule's name, not '= "):
        read_grammar('root ::= "a"\nb = "c"')
