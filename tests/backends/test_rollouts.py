"""What a rollout engine may return: a batch, or one line that says what is wrong with it."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from firstorder.backends.rollouts import Response, collate
from firstorder.backends.vllm.arguments import prepare
from firstorder.backends.vllm.config import Vllm
from firstorder.backends.vllm.served import response
from firstorder.core.errors import DataError

PROMPT, TOKENS, LOGP = [2, 3, 4], [5, 6], [-0.5, -1.0]
LAYERS, TOP_K, EXPERTS = 3, 2, 4
ROWS = len(PROMPT) + len(TOKENS) - 1


def routes(**changed):
    ids = torch.arange(ROWS * LAYERS)[:, None] + torch.arange(TOP_K)
    ids = (ids % EXPERTS).reshape(ROWS, LAYERS, TOP_K).to(torch.uint8)
    return changed["of"](ids) if changed else ids


def batch(ids, logp=LOGP):
    one = Response(tokens=TOKENS, logp=logp, routes=ids, ended=True)
    return collate([PROMPT], [one], [1.0], [0], LAYERS, TOP_K, EXPERTS)


def test_rows_and_log_probs_stand_where_the_contract_wants_them():
    found = batch(routes())
    assert found.routes[0, :ROWS].tolist() == routes().tolist()
    assert (found.routes[0, ROWS:] == -1).all()
    assert found.logp_mu[0].tolist() == [0.0, 0.0, 0.0, *LOGP]


WRONG = {
    "a layer less": (lambda ids: ids[:, :-1], r"must be \[4, 3, 2\] .* got \[4, 2, 2\]; is it the same model\?"),
    "an expert less a token": (lambda ids: ids[..., :1], r"got \[4, 3, 1\]"),
    "a row less": (lambda ids: ids[:-1], r"a row for each token that was run.* got \[3, 3, 2\]"),
    "floats": (lambda ids: ids.float(), "must be integers, got torch.float32"),
    "truth values": (lambda ids: ids.bool(), "must be integers, got torch.bool"),
    "nothing recorded": (torch.zeros_like, "are all zero: the rollout engine did not record them"),
    "an expert that is not there": (lambda ids: ids + 1, "must be below experts = 4, got 4"),
    "an expert twice": (lambda ids: ids.index_fill(0, torch.tensor(1), 3), r"must name distinct experts, got \[3, 3\]"),
    "a row left out": (
        lambda ids: ids.to(torch.int16).index_fill(0, torch.tensor(2), -1),
        "must name the expert of every token that was run, got -1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_routes_are_named(name):
    change, message = WRONG[name]
    with pytest.raises(DataError, match=message) as raised:
        batch(routes(of=change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_integers_of_any_width_are_routes(kind):
    assert torch.equal(batch(routes().to(kind)).routes, batch(routes()).routes)


@pytest.mark.parametrize(
    ("logp", "message"),
    [
        ([-0.5], "a response of 2 tokens has 1 log-probs"),
        ([-0.5, float("nan")], "must be finite and at most 0"),
        ([-0.5, 0.5], "must be finite and at most 0"),
    ],
)
def test_wrong_log_probs_are_named(logp, message):
    with pytest.raises(DataError, match=message):
        batch(routes(), logp)


def choice(**changed):
    """A choice of the completions API."""
    held = io.BytesIO()
    np.save(held, routes().numpy())
    whole = {
        "token_ids": TOKENS,
        "logprobs": {"token_logprobs": LOGP},
        "routed_experts": base64.b64encode(held.getvalue()).decode(),
        "finish_reason": "stop",
    }
    return whole | changed


def test_an_answer_of_a_server_is_read():
    found = response(choice(), Vllm(), 32)
    assert (found.tokens, found.logp, found.ended) == (TOKENS, LOGP, True)
    assert torch.equal(found.routes, routes())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"routed_experts": None}, "returns no routed experts; start the server with"),
        ({"logprobs": None}, "returns no log-probs of the sampled tokens; start the server with"),
        ({"logprobs": {"token_logprobs": [-0.5, None]}}, "returns no log-probs"),
        ({"token_ids": None}, "returns no token ids"),
        ({"routed_experts": "bm90IGFycmF5cw=="}, "routed experts of the vLLM server cannot be read"),
    ],
)
def test_an_incomplete_answer_is_named(changed, message):
    with pytest.raises(DataError, match=message):
        response(choice(**changed), Vllm(), 32)


def test_an_answer_that_does_not_say_which_tokens_were_kept_is_named():
    likeliest = [{f"token_id:{t}": -0.5, "token_id:31": -9999.0} for t in TOKENS]
    given = {"logprobs": {"token_logprobs": LOGP, "top_logprobs": likeliest}}
    assert response(choice(**given), Vllm(top_k=1), 32).kept == [[t] for t in TOKENS]
    for wrong in ({}, {"top_logprobs": None}, {"top_logprobs": [{"the": -0.5}]}):
        with pytest.raises(DataError, match="does not say which tokens it kept"):
            response(choice(logprobs={"token_logprobs": LOGP} | wrong), Vllm(top_k=1), 32)


@pytest.mark.parametrize(("lacks", "message"), [("logprobs", "no log-probs"), ("routed_experts", "no routed experts")])
def test_an_incomplete_answer_in_process_is_named(lacks, message):
    prepare(Vllm())
    from firstorder.backends.vllm.engine import read

    done = {"token_ids": TOKENS, "logprobs": [], "routed_experts": routes().numpy(), "finish_reason": "stop"}
    with pytest.raises(DataError, match=f"vLLM returned {message}"):
        read(SimpleNamespace(**done | {lacks: None}), Vllm(), 32)
