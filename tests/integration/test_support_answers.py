"""A request's record tells a failure, and an answer another one.

The server is a stub whose delays and answers are known exactly, which a real one's are not.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator

import openai
import pytest

from tests.support.answers import Answer, ask


class StubHandler(http.server.BaseHTTPRequestHandler):
    """Answers with the prompt backwards in two tokens, after as many seconds as it begins with."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["stream"] is True
        prompt = body["messages"][0]["content"]
        if prompt.startswith("refused"):
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self._event(choices=[{"index": 0, "delta": {"role": "assistant"}}])
        time.sleep(float(prompt.split()[0]))
        answer = prompt[::-1]
        for text in (answer[:2], answer[2:]):
            token = {"token": text, "logprob": -float(len(text)), "top_logprobs": []}
            logprobs = {"content": [token]}
            self._event(choices=[{"index": 0, "delta": {"content": text}, "logprobs": logprobs}])
            if "broken" in prompt:
                return
            time.sleep(0.1)
        self._event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, **fields: object) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        with contextlib.suppress(BrokenPipeError):  # a client that did not wait
            self.wfile.write(b"data: " + json.dumps({**chunk, **fields}).encode() + b"\n\n")

    def log_message(self, format: str, *arguments: object) -> None:
        del format, arguments


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", timeout=5, max_retries=0) as client:
        yield client
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_time_to_the_first_token_and_the_answer(client: openai.OpenAI) -> None:
    record = ask(client, "m", "0.3 hello", 2)
    assert record.error is None
    assert record.answer == Answer("0.3 hello"[::-1], (-2, -7))
    assert record.ttft is not None
    assert 0.3 <= record.ttft < record.seconds - 0.1


def test_failures_are_told(client: openai.OpenAI) -> None:
    refused, broken = (ask(client, "m", prompt, 2) for prompt in ("refused", "0 broken"))
    assert (refused.ttft, refused.answer.text) == (None, "")
    assert refused.error is not None
    assert refused.error.startswith("InternalServerError")
    assert (broken.answer.text, broken.error) == ("ne", "the answer ends without a reason")
    slow = ask(client.with_options(timeout=0.3), "m", "2 slow", 2)
    assert slow.error is not None
    assert "Timeout" in slow.error
    assert slow.seconds < 2


def test_answers_are_alike_but_for_rounding() -> None:
    one = Answer("a", (-1.0, -2.0))
    assert one.is_like(Answer("a", (-1.0004, -2.0)))
    for other in (Answer("b", one.logprobs), Answer("a", (-1.0, -2.01)), Answer("a", (-1.0,))):
        assert not one.is_like(other)
