"""lm-eval over HTTP: log likelihoods through /v1/completions with echo, logprobs and max_tokens=0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llcuda_ffi import Llama

from ..support.server_process import Server

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
QUESTIONS = [
    ("The capital of France is", [" Paris", " Rome", " a banana"], 0),
    ("Two plus two is", [" five", " four", " blue"], 1),
    ("The opposite of hot is", [" cold", " warm", " seven"], 0),
    ("Cats and dogs are", [" planets", " numbers", " animals"], 2),
    ("Water is made of hydrogen and", [" oxygen", " iron", " cheese"], 0),
    ("The sun rises in the", [" north", " east", " soup"], 1),
]


@pytest.fixture(scope="module")
def served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of SmolLM2."""
    server = Server(tmp_path_factory.mktemp("lm-eval") / "log", smollm2, "--alias", "smol", "-c", 512, "--parallel", 4)
    yield server
    assert server.stop() == 0


def _scores(smollm2: Path) -> list[list[float]]:
    """The log likelihood of each answer, computed in this process."""
    out = []
    with Llama(smollm2, n_ctx=512) as llm:
        for question, answers, _ in QUESTIONS:
            asked = len(llm.vocab.tokenize(question, add_special=True))
            row = []
            for answer in answers:
                done = llm.generate(question + answer, max_tokens=0, prompt_logprobs=1, temperature=0)
                entries = (done.prompt_logprobs or [])[asked:]
                row.append(sum(entry.logprob for entry in entries if entry is not None))
            out.append(row)
    return out


def test_a_task_scores_the_same(served: Server, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A multiple-choice task of local data: lm-eval's likelihoods over HTTP are those in process, and so its score."""
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"question": q, "choices": answers, "label": right} for q, answers, right in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "smol",
            "base_url": f"http://127.0.0.1:{served.port}/v1/completions",
            "tokenizer_backend": "remote",
            "max_length": 512,
            "num_concurrent": 1,
        },
        tasks=[task],
        bootstrap_iters=0,
    )
    expected = _scores(smollm2)
    theirs = [[float(pair[0]) for pair in sample["filtered_resps"]] for sample in found["samples"]["tiny_choice"]]
    np.testing.assert_allclose(theirs, expected, atol=0.02)
    right = [int(np.argmax(row)) == label for row, (_, _, label) in zip(expected, QUESTIONS, strict=True)]
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))
