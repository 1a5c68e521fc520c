"""Chains, grammars and numbers that end the process."""

from __future__ import annotations

import contextlib
import functools
import gc

from llcuda_ffi.core.sampler import SamplerChain
from llcuda_ffi.errors import InvalidRequest

from .world import World, refuses, row


@row
def chain_that_selects_nothing(w: World) -> None:
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).sample(w.decoded()))
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).top_k(5).sample(w.decoded()))
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).greedy().top_k(5))


@row
def token_that_the_grammar_does_not_allow(w: World) -> None:
    grammar = 'root ::= "zzz"'
    vocab = w.model().vocab
    for make in (
        lambda: SamplerChain(w.model()).grammar(grammar),
        lambda: SamplerChain(w.model()).grammar(grammar).greedy().clone(),
    ):
        for token in (5, vocab.eos, vocab.n_tokens - 1):
            refuses(InvalidRequest, functools.partial(make().accept, token))


@row
def grammar_after_samplers_that_narrow(w: World) -> None:
    for chain in (
        SamplerChain(w.model()).top_k(1).grammar('root ::= "zzz"').dist(1),
        SamplerChain(w.model()).top_n_sigma(0.01).grammar('root ::= "zzz"').dist(1),
        SamplerChain(w.model()).grammar("root ::= [a-z]+").grammar("root ::= [A-Z]+").greedy(),
        SamplerChain(w.model()).grammar("root ::= <[999999]>").greedy(),
    ):
        refuses(InvalidRequest, functools.partial(chain.sample, w.decoded()))


@row
def bad_grammar(w: World) -> None:
    for grammar in (
        "", "root ::=  (", 'x ::= "a"', "root ::= nope", 'root ::= root "a"', 'root ::= a\na ::= b\nb ::= a "x"',
        'root ::= "a', "root ::= [a-", 'root ::= "\\xZZ"', 'root ::= "a"{3,1', 'root ::= "a"{99999999999999999999}',
        'root ::= ""*', "\0", 'root ::= "a\0"', "\ud800",
    ):  # fmt: skip
        refuses(InvalidRequest, functools.partial(SamplerChain(w.model()).grammar, grammar))
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).grammar('root ::= "a"', "no-such"))
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).grammar('root ::= "a"', "a\0b"))


@row
def deeply_nested_grammar(w: World) -> None:
    for text in ("(" * 200_000 + '"a"' + ")" * 200_000, "(" * 200_000, '"x" # \n' + "(" * 300 + '"a"' + ")" * 300):
        refuses(InvalidRequest, functools.partial(SamplerChain(w.model()).grammar, "root ::= " + text))
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).grammar('root ::= "' + "a" * 2_000_000 + '"'))
    SamplerChain(w.model()).grammar("root ::= " + "(" * 200 + '"a"' + ")" * 200)


@row
def grammar_that_begins_in_too_many_ways(w: World) -> None:
    doubled = "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40))
    for grammar in (
        "root ::= r0\n" + doubled + "r40 ::= [a-z]?",
        "root ::= r0\n" + doubled.replace(" r", " | r").replace("::= |", "::=") + "r40 ::= [a-z]?",
        'root ::= "a"{0,100000000}',
        "root ::= ((([a-z]{0,99}){0,99}){0,99})",
        "root ::= " + '"a"? ' * 3000,
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(50_000)) + 'r50000 ::= "a"',
    ):
        refuses(InvalidRequest, functools.partial(SamplerChain(w.model()).grammar, grammar))
    for grammar in ("root ::= " + '("a"*)* ' * 50, "root ::= (a | b)*\na ::= [a-z]*\nb ::= a a"):
        with contextlib.suppress(InvalidRequest):  # some bundles bear it
            SamplerChain(w.model()).grammar(grammar).greedy().sample(w.decoded())


@row
def lazy_grammar_with_a_bad_regex(w: World) -> None:
    for pattern in ("(", "[a", "a{2,1}", "*a", "[z-a]", "\\"):
        refuses(
            InvalidRequest,
            functools.partial(SamplerChain(w.model()).grammar_lazy, 'root ::= "a"', patterns=[pattern]),
        )
    chain = SamplerChain(w.model()).grammar_lazy('root ::= "a"', tokens=[65]).greedy()
    refuses(InvalidRequest, lambda: chain.accept(65))


@row
def numbers_that_no_sampler_takes(w: World) -> None:
    nan, inf = float("nan"), float("inf")
    make = functools.partial(SamplerChain, w.model())
    for call in (
        lambda: make().temperature(nan), lambda: make().temperature(-1.0), lambda: make().top_k(-1),
        lambda: make().top_p(2.0), lambda: make().min_p(nan), lambda: make().penalties(64, 0.0),
        lambda: make().penalties(64, nan), lambda: make().penalties(-2), lambda: make().dry(inf),
        lambda: make().mirostat(m=0), lambda: make().xtc(2.0), lambda: make().dist(-1), lambda: make().dist(2**32),
        lambda: make().logit_bias({-1: 1.0}), lambda: make().logit_bias({1: nan}), lambda: make().top_k(True),
        lambda: make().logit_bias({w.model().vocab.n_tokens: 1.0}), lambda: make().typical(nan),
        lambda: make().dry(1.0, breakers="x"), lambda: make().dry(1.0, breakers=["\0"]),
    ):  # fmt: skip
        refuses(InvalidRequest, call)
    make().penalties(2**31 - 1, 1.1, 1e30, 1e30).dry(1e30, last_n=2**31 - 1).temperature(1e-30).dist().sample(
        w.decoded()
    )


@row
def freeing_a_chain_that_a_graph_runs(w: World) -> None:
    """The context would call the freed chain in its next batch: it keeps the chain, and close() detaches it."""
    context = w.context()
    assert SamplerChain(w.model()).greedy().attach(context, 0)
    gc.collect()
    context.decode(w.batch(4))
    chain = context.samplers[0]
    chain.close()
    assert not context.samplers
    context.memory.clear()  # type: ignore[union-attr]
    context.decode(w.batch(4))


@row
def changing_a_chain_that_a_graph_runs(w: World) -> None:
    context = w.context()
    chain = SamplerChain(w.model()).top_k(4)
    assert chain.attach(context, 0)
    refuses(InvalidRequest, lambda: chain.greedy())
    context.detach_sampler(0)
    chain.greedy()


@row
def attaching_what_cannot_be(w: World) -> None:
    context = w.context()
    grammar = SamplerChain(w.model()).grammar('root ::= "a"').greedy()
    refuses(InvalidRequest, lambda: grammar.attach(context, 0))
    for seq_id in (-1, context.n_seq_max, 2**40, "0"):
        refuses(InvalidRequest, lambda seq_id=seq_id: SamplerChain(w.model()).greedy().attach(context, seq_id))  # type: ignore[misc]
    refuses(InvalidRequest, lambda: SamplerChain(w.model()).greedy().attach(w.model(), 0))  # type: ignore[arg-type]
