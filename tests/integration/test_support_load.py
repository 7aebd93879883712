"""The load measures what a server does, and tells a wrong answer and a failure.

The server is a stub whose delays and answers are known exactly, which a real one's are not.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import load
from tests.support.load import COLD, SHARED, WARM, Mix, Record


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
            self._event(choices=[{"index": 0, "delta": {"content": text}}])
            if "broken" in prompt:
                return
            time.sleep(0.1)
        self._event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
        details = {"cached_tokens": 7}
        tokens = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        self._event(choices=[], usage={**tokens, "prompt_tokens_details": details})
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, **fields: object) -> None:
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        with contextlib.suppress(BrokenPipeError):  # a client that did not wait
            self.wfile.write(b"data: " + json.dumps({**chunk, **fields}).encode() + b"\n\n")

    def log_message(self, format: str, *arguments: object) -> None:
        del format, arguments


@contextmanager
def stub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_time_to_the_first_token_and_the_text() -> None:
    with stub() as url:
        (record,) = load.run(url, "m", Mix(cold=["0.3 hello"]), concurrency=1, seconds=5)
    assert (record.kind, record.prompt, record.error) == (COLD, "0.3 hello", None)
    assert record.text == "0.3 hello"[::-1]
    assert record.ttft is not None
    assert 0.3 <= record.ttft < record.seconds - 0.1
    assert record.cached_tokens == 7


def test_a_steady_load_for_a_time() -> None:
    mix = Mix(["0 c1", "0 c2"], ["0 w1", "0 w2"], ["0 s1"], weights=(1, 2, 1))
    with stub() as url:
        expected = load.answers(url, "m", mix.prompts())
        start = time.monotonic()
        records = load.run(url, "m", mix, concurrency=4, seconds=1.5)
        assert 1.5 <= time.monotonic() - start < 5
    assert len(records) > 8
    assert sorted(each.prompt for each in records if each.kind == COLD) == ["0 c1", "0 c2"]
    assert [each.prompt for each in records if each.kind == SHARED] == ["0 s1"]
    assert {each.prompt for each in records if each.kind == WARM} == {"0 w1", "0 w2"}
    assert not load.wrong(records, expected)
    assert not load.failed(records)
    busy = sum(each.seconds for each in records)
    assert busy > 3 * 1.5, "four clients have a request under way nearly all the time"
    assert {kind: each.count for kind, each in load.summary(records).items()} == {
        COLD: 2,
        WARM: len(records) - 3,
        SHARED: 1,
    }


def test_the_order_of_the_prompts_is_the_seeds() -> None:
    mix = Mix(
        [f"c{number}" for number in range(9)],
        ("never",),
        [f"s{number}" for number in range(9)],
        (1, 0, 1),
    )
    first, again, other = (list(mix.requests(seed)) for seed in (1, 1, 2))
    assert first == again
    assert sorted(first) == sorted(other)
    assert first != other
    assert len(first) == 18


def test_failures_and_wrong_answers_are_told() -> None:
    mix = Mix(cold=["refused", "0 broken", "0 right", "0 changed"])
    with stub() as url:
        records = {
            record.prompt: record for record in load.run(url, "m", mix, concurrency=2, seconds=5)
        }
    assert set(records) == set(mix.cold)
    refused = records["refused"]
    assert (refused.ttft, refused.text) == (None, "")
    assert refused.error is not None
    assert refused.error.startswith("InternalServerError")
    broken = records["0 broken"]
    assert (broken.text, broken.error) == ("ne", "the answer ends without a reason")
    expected = {"0 right": "thgir 0", "0 changed": "something"}
    assert {record.prompt for record in load.failed(records.values())} == {"refused", "0 broken"}
    assert load.wrong(records.values(), expected) == [records["0 changed"]]
    with pytest.raises(KeyError):
        load.wrong(records.values(), {})


def test_a_load_that_is_watched_while_it_runs() -> None:
    with stub() as url, load.loaded(url, "m", Mix(warm=["0 w"]), concurrency=2) as running:
        time.sleep(0.5)
        middle = time.monotonic()
        time.sleep(0.5)
    early, late = running.between(0, middle), running.between(middle, math.inf)
    assert early
    assert late
    assert len(early) + len(late) == len(running.records)


def test_a_server_that_takes_too_long_is_an_error() -> None:
    with stub() as url:
        (record,) = load.run(url, "m", Mix(cold=["2 slow"]), 1, seconds=9, patience=0.3)
    assert record.error is not None
    assert "Timeout" in record.error
    assert record.seconds < 2


def test_percentiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [load.percentile(values, share) for share in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert load.percentile([3.0], 0.99) == 3
    with pytest.raises(ValueError, match="no values"):
        load.percentile([], 0.5)
    records = [Record(COLD, "p", 0, None, 1, "", None, "refused")]
    found = load.summary(records)[COLD]
    assert (found.count, found.errors) == (1, 1)
    assert math.isnan(found.p99)
