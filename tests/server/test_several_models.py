"""One server of several models: loaded when asked for, freed for others; what each kind of them answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llcuda_ffi.server.served_model import ServedModel

from ..support.model_folder import write_model_folder
from ..support.server_process import MESSAGES, C, Server

TEXT = "the cat sat"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A folder of tiny models, `one` named with an adapter and an alias, in a memory for about two of them."""
    folder = write_model_folder(tmp_path_factory.mktemp("fleet") / "models")
    log = folder.parent / "log"
    settings = {"text": {"n_ctx": 256, "n_parallel": 4}}
    size = ServedModel.find(folder / "one.gguf", settings=settings).size  # type: ignore[arg-type]
    server = Server(
        log, folder / "one.gguf", "--models-dir", folder, "--lora", f"terse={folder.with_suffix('.lora')}",
        "--alias", "gpt-4o=one", "--memory", 2.6 * size / 1e9, "--parallel", 4, "-c", 256,
    )  # fmt: skip
    yield server
    assert server.stop() == 0
    assert "Traceback" not in log.read_text(), log.read_text()


def _loaded(server: Server) -> dict[str, bool]:
    return {m["id"]: m["loaded"] for m in json.loads(server.send("GET", "/models")[1])["data"]}


def test_found_and_loaded(fleet: Server) -> None:
    """Every sound model of the folder is listed by name and kind; only the one of the command line is loaded."""
    models = json.loads(fleet.send("GET", "/v1/models")[1])["data"]
    assert {m["id"]: m["kind"] for m in models} == {
        "one": "text", "two": "text", "code": "text", "vectors": "embedding", "ranker": "rerank",
    }  # fmt: skip
    assert [m["id"] for m in models if m["loaded"]] == ["one"]
    assert "broken.gguf is left out" in fleet.log()
    assert json.loads(fleet.send("GET", "/v1/models/gpt-4o")[1])["id"] == "one"


def test_loaded_and_freed_by_hand(fleet: Server) -> None:
    """/models/load and /models/unload do so; a model that was freed answers again when it is asked."""
    assert fleet.post("/models/load", model="code") == (200, {"success": True})
    assert _loaded(fleet)["code"]
    assert fleet.post("/models/unload", model="code") == (200, {"success": True})
    assert not _loaded(fleet)["code"]
    assert fleet.post(C, model="code", prompt="a", max_tokens=1)[0] == 200


def test_swapped_under_load(fleet: Server) -> None:
    """Forty requests for three models that never fit together are all answered, each as its model answers alone."""
    asked = {"prompt": TEXT, "max_tokens": 8, "temperature": 0, "prefix_cache": False}
    alone = {name: fleet.post(C, model=name, **asked)[1] for name in ("one", "two", "code")}
    texts = {name: answer["choices"][0]["text"] for name, answer in alone.items()}
    assert texts["one"] != texts["two"]
    names = [("one", "two", "code")[i % 3] for i in range(40)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: fleet.post(C, model=name, **asked), names))
    assert [status for status, _ in answers] == [200] * 40
    assert [a["model"] for _, a in answers] == names
    assert all(a["choices"][0]["text"] == texts[name] for name, (_, a) in zip(names, answers, strict=True))
    assert sum(_loaded(fleet).values()) <= 2


def test_alias_adapter_and_unknown_name(fleet: Server) -> None:
    """An alias is the model; an adapter's name is the model with it, as its scale in `lora` is; another name is 404."""
    asked = {"prompt": TEXT, "max_tokens": 4, "temperature": 0, "logprobs": 1}

    def first(**more: Any) -> float:
        status, answer = fleet.post(C, **asked, **more)
        assert status == 200, answer
        return float(answer["choices"][0]["logprobs"]["token_logprobs"][0])

    plain, adapted = first(model="gpt-4o"), first(model="terse")
    assert first(model="one") == pytest.approx(plain, abs=1e-4)
    assert adapted != pytest.approx(plain, abs=1e-4)
    assert first(model="one", lora=[{"id": 0, "scale": 1.0}]) == pytest.approx(adapted, abs=1e-4)
    assert json.loads(fleet.send("GET", "/lora-adapters")[1])[0]["name"] == "terse"
    assert fleet.send("HEAD", "/lora-adapters") == (200, b"")
    fleet.send("POST", "/lora-adapters", b'[{"id": 0, "scale": 1.0}]')
    assert first(model="one") == pytest.approx(adapted, abs=1e-4)
    fleet.send("POST", "/lora-adapters", b"[]")
    assert first(model="one") == pytest.approx(plain, abs=1e-4)
    assert fleet.post(C, model="three", prompt="a")[1]["error"]["code"] == "model_not_found"
    assert fleet.post(C, model="ranker", prompt="a")[0] == 400


def test_rerank_and_score(fleet: Server) -> None:
    """Jina's, Cohere's and TEI's shapes give the same order; scores of pairs are those of documents."""
    documents = ["a big dog", "the red cat", "stone"]
    status, jina = fleet.post("/v1/rerank", model="ranker", query="the cat", documents=documents, return_documents=True)
    assert status == 200, jina
    order = [r["index"] for r in jina["results"]]
    scores = [r["relevance_score"] for r in jina["results"]]
    assert scores == sorted(scores, reverse=True)
    assert jina["results"][0]["document"]["text"] == documents[order[0]]
    assert jina["usage"]["total_tokens"] > 0
    cohere = fleet.post(
        "/rerank", model="ranker", query="the cat", documents=[{"text": d} for d in documents], top_n=2
    )[1]
    assert [r["index"] for r in cohere["results"]] == order[:2]
    tei = fleet.post("/rerank", model="ranker", query="the cat", texts=documents)[1]
    assert [r["index"] for r in tei] == order
    assert tei[0]["score"] == pytest.approx(1 / (1 + math.exp(-scores[0])), abs=1e-4)
    pairs = fleet.post("/v1/score", model="ranker", text_1="the cat", text_2=documents)[1]
    assert [p["score"] for p in pairs["data"]] == pytest.approx([scores[order.index(i)] for i in range(3)], abs=1e-4)


def test_embeddings_of_ids(fleet: Server) -> None:
    """Token ids give the vector of their text; an empty text has one; llama.cpp's path gives its own shape."""
    text = "the cat"
    ids = fleet.post("/tokenize", model="vectors", content=text, add_special=True)[1]["tokens"]
    by_text = fleet.post("/v1/embeddings", model="vectors", input=[text, ""])[1]
    by_ids = fleet.post("/v1/embeddings", model="vectors", input=[ids])[1]
    assert by_ids["data"][0]["embedding"] == pytest.approx(by_text["data"][0]["embedding"], abs=1e-5)
    assert by_ids["usage"]["prompt_tokens"] == len(ids)
    native = fleet.post("/embedding", model="vectors", content=text)[1]
    assert native[0]["embedding"][0] == pytest.approx(by_text["data"][0]["embedding"], abs=1e-5)
    long = "the " * 500
    assert fleet.post("/v1/embeddings", model="vectors", input=long)[1]["error"]["code"] == "context_length_exceeded"
    assert fleet.post("/v1/embeddings", model="vectors", input=long, truncate_prompt_tokens=-1)[0] == 200


def test_infill(fleet: Server) -> None:
    """The prompt is prefix and suffix between the model's marks; a model without marks says so."""
    marks = fleet.post("/tokenize", model="code", content="<|endoftext|><|im_start|><|im_end|>")[1]["tokens"]

    def ids(text: str) -> list[int]:
        found: list[int] = fleet.post("/tokenize", model="code", content=text, parse_special=False)[1]["tokens"]
        return found

    prompt = [marks[0], *ids("the cat"), marks[1], *ids(" on"), marks[2]]
    asked = {"model": "code", "n_predict": 4, "temperature": 0, "return_tokens": True}
    status, filled = fleet.post("/infill", input_prefix="the cat", input_suffix=" on", **asked)
    assert status == 200, filled
    assert filled["tokens_evaluated"] == len(prompt)
    assert filled["tokens"] == fleet.post("/completion", prompt=prompt, **asked)[1]["tokens"]
    by_suffix = fleet.post(C, model="code", prompt="the cat", suffix=" on", max_tokens=4, temperature=0)[1]
    assert by_suffix["choices"][0]["text"] == filled["content"]
    assert fleet.post("/infill", model="one", input_prefix="a", input_suffix="b")[1]["error"]["code"] == "unsupported"


def test_native_completion(fleet: Server) -> None:
    """llama.cpp's shape, whole and streamed: content, tokens, probabilities, settings, timings, chosen fields."""
    asked: dict[str, Any] = {"model": "one", "prompt": TEXT, "n_predict": 5, "temperature": 0, "n_probs": 2}
    status, whole = fleet.post("/completion", return_tokens=True, **asked)
    assert status == 200, whole
    assert (whole["stop"], whole["stop_type"], len(whole["tokens"])) == (True, "limit", 5)
    assert [len(p["top_logprobs"]) for p in whole["completion_probabilities"]] == [2] * 5
    assert whole["generation_settings"]["n_predict"] == 5
    assert whole["timings"]["predicted_n"] == whole["tokens_predicted"] == 5
    picked = fleet.post("/completion", response_fields=["content", "generation_settings/n_predict"], **asked)[1]
    assert picked == {"content": whole["content"], "generation_settings/n_predict": 5}
    parts = list(fleet.raw_stream("/completion", **asked))
    assert "".join(p["content"] for p in parts) == whole["content"]
    assert [t for p in parts for t in p["tokens"]] == whole["tokens"]
    assert [p["stop"] for p in parts] == [False] * (len(parts) - 1) + [True]
    mixed = fleet.post("/tokenize", model="one", content="the")[1]["tokens"]
    both = fleet.post("/completion", **{**asked, "prompt": [[*mixed, " cat sat"], TEXT]})[1]
    assert both[0]["content"] == both[1]["content"]


def test_props_slots_and_templates(fleet: Server) -> None:
    """What llama.cpp's clients ask a server about itself."""
    props = json.loads(fleet.send("GET", "/props")[1])
    assert props["total_slots"] == 4
    assert "messages" in props["chat_template"]
    assert len(json.loads(fleet.send("GET", "/slots")[1])) == 4
    prompt = fleet.post("/apply-template", messages=MESSAGES)[1]["prompt"]
    assert MESSAGES[0]["content"] in prompt
    count = fleet.post("/v1/chat/completions/input_tokens", messages=MESSAGES)[1]["input_tokens"]
    assert count == len(fleet.post("/tokenize", content=prompt, add_special=True)[1]["tokens"])
    pieces = fleet.post("/tokenize", content="é", with_pieces=True)[1]["tokens"]
    assert (
        bytes(b for p in pieces for b in (p["piece"] if isinstance(p["piece"], list) else p["piece"].encode()))
        == "é".encode()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.2), ("repeat_last_n", 32), ("top_k", -1),
        ("min_tokens", 2), ("stop_token_ids", [3]), ("bad_words", ["cat"]),
        ("stop", ""), ("stop", ["", "zz"]),
        ("max_tokens", -1), ("max_tokens", 100_000), ("guided_choice", [" cat", " dog"]), ("cache_prompt", False),
        ("samplers", ["top_k", "temperature"]), ("id_slot", -1), ("timings_per_token", True), ("typ_p", 0.9),
        ("dry_sequence_breakers", ["x"]), ("logit_bias", [[5, False], [" cat", -1]]), ("prediction", {}),
        ("prompt_cache_retention", "24h"), ("structured_outputs", {"choice": ["a"]}), ("skip_special_tokens", True),
        ("seed", -1), ("best_of", 2), ("suffix", None), ("service_tier", "auto"), ("t_max_predict_ms", 60_000),
    ],
)  # fmt: skip
def test_other_servers_fields(fleet: Server, name: str, value: Any) -> None:
    """Fields of OpenAI, llama.cpp and vLLM are taken, with max_tokens beyond the context ending as "length"."""
    limit = {} if name == "max_tokens" else {"max_tokens": 3}
    status, answer = fleet.post(C, model="one", prompt=TEXT, **limit, **{name: value})
    assert status == 200, answer
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")


def test_unknown_field_names_the_nearest(fleet: Server) -> None:
    """A typo is an error that names what was meant."""
    status, answer = fleet.post(C, model="one", prompt="a", temprature=1)
    assert status == 400
    assert "temperature" in answer["error"]["message"]


def test_prefill(fleet: Server) -> None:
    """A last message of the assistant is the beginning of the answer."""
    begun = [*MESSAGES, {"role": "assistant", "content": "the cat"}]
    assert fleet.post("/apply-template", model="one", messages=begun)[1]["prompt"].endswith("the cat")


def test_fingerprint_and_request_id(fleet: Server) -> None:
    """Answers name the model's fingerprint, and the request's id is the client's own or a new one."""
    assert fleet.post(C, model="one", prompt="a", max_tokens=1)[1]["system_fingerprint"].startswith("fp_")
    assert fleet.headers("/health", **{"X-Request-Id": "my-1"})["x-request-id"] == "my-1"
    assert fleet.headers("/health", **{"X-Request-Id": "no spaces"})["x-request-id"].startswith("req_")


def test_protocol_metrics(fleet: Server) -> None:
    """Histograms under vLLM's names count the requests; buckets grow."""
    fleet.post(C, model="one", prompt="metrics", max_tokens=3)
    text = fleet.send("GET", "/metrics")[1].decode()
    buckets = [
        int(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith('vllm:time_to_first_token_seconds_bucket{model_name="one"')
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] > 0
    for name in ("num_requests_waiting", "kv_cache_usage_perc", "request_success_total", "prefix_cache_hits_total"):
        assert f"\nvllm:{name}{{" in text
    assert text.count("# TYPE vllm:time_to_first_token_seconds histogram") == 1
