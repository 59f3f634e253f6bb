"""Samples from an OpenAI-compatible endpoint: same problems, same words, same grader.

Tokens are those the endpoint counts and bills. Only the standard library is used, so no client
stands between; the key goes into one header and nowhere else, and redirects, which would carry it
to another host, are refused.
"""

from __future__ import annotations

import json
import os
import random
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

from trainer.config import ConfigError
from trainer.data.prompts import instruct
from trainer.evaluate.local import sample_row
from trainer.evaluate.methods import Job, token_limit
from trainer.evaluate.settings import ApiSettings, EvaluationSettings
from trainer.json_text import parse_json

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that may be better next time
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
MOST_BYTES = 64 * 2**20  # of an answer


class ApiError(ValueError):
    """The endpoint refused, or did not answer in spite of all retries."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def draw(settings: EvaluationSettings, wanted: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Rows of samples.jsonl as answers come, `api.concurrency` requests under way at once.

    Raises ConfigError without a key, ApiError; what came before has been yielded and is kept.
    """
    if not os.environ.get(settings.api.key_env):
        raise ConfigError(f"api.key_env: the environment variable {settings.api.key_env} is empty")
    stop, left = threading.Event(), iter(wanted)
    under_way: set[Future[dict[str, Any]]] = set()
    failed: Future[dict[str, Any]] | None = None
    most = settings.api.concurrency
    with ThreadPoolExecutor(most, thread_name_prefix="api") as pool:
        try:
            while True:
                while not failed and len(under_way) < most and (job := next(left, None)):
                    under_way.add(pool.submit(_sample, settings, job, stop))
                if not under_way:
                    break
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    if future.exception():
                        failed = failed or future
                        stop.set()  # no more retries; what is on its way is paid for, and kept
                    else:
                        yield future.result()
        finally:
            stop.set()  # or the pool would wait for pauses of minutes
    if failed:
        failed.result()


def cost(settings: ApiSettings, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Tokens billed, and US dollars at the prices of the settings."""
    prompt = sum(row["prompt_tokens"] for row in rows)
    completion = sum(row["tokens"] for row in rows)
    usd = (
        prompt * settings.usd_per_million_prompt + completion * settings.usd_per_million_completion
    ) / 1e6
    return {"prompt_tokens": prompt, "completion_tokens": completion, "usd": usd}


def _sample(settings: EvaluationSettings, job: Job, stop: threading.Event) -> dict[str, Any]:
    body = {
        "model": settings.api.model,
        "messages": [
            {"role": "user", "content": instruct(job.problem.question, settings.mode, job.budget)}
        ],
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        settings.api.limit_key: token_limit(settings, job.budget),
    }
    answer = post(settings.api, body, stop)
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        message = choice["message"]
        text = "".join(filter(None, [message.get("content")]))  # TypeError for what is no text
        if message.get("reasoning_content"):  # vLLM and others keep the thinking apart
            text = f"{message['reasoning_content']}</think>{text}"
        tokens, prompt = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
        details = usage.get("completion_tokens_details") or {}
        think = int(details.get("reasoning_tokens") or 0)
        truncated = choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ApiError(f"{settings.api.url}: not a chat completion: {error!r}") from error
    row = sample_row(settings, job, text, tokens, think, truncated)
    return {**row, "prompt_tokens": prompt}


def post(api: ApiSettings, body: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
    """The answer to one chat completion request, after retries with growing, jittered pauses.

    Raises ApiError with the endpoint's own words for what a retry cannot mend.
    """
    request = urllib.request.Request(
        f"{api.url.rstrip('/')}/chat/completions",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ[api.key_env]}",
        },
    )
    opener = urllib.request.build_opener(_NoRedirect)
    for attempt in range(api.retries + 1):
        asked_pause = 0.0
        try:
            with opener.open(request, timeout=api.timeout_s) as response:
                return parse_json(response.read(MOST_BYTES))
        except HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            problem = f"status {error.code}: {said}"
            if error.code not in AGAIN:
                raise ApiError(f"{api.url}: {problem}") from None
            asked_pause = _seconds(error.headers.get("Retry-After"))
        except (URLError, HTTPException, OSError, ValueError) as error:  # no connection, no JSON
            problem = repr(error)
        pause = max(asked_pause, min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
        if attempt == api.retries or stop.wait(pause * random.uniform(0.75, 1.25)):
            break
    raise ApiError(f"{api.url}: gave up after {attempt + 1} attempts: {problem}")


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header in seconds; 0 where there is none or it is a date."""
    try:
        return min(10 * LONGEST_PAUSE, max(0.0, float(retry_after or 0)))
    except ValueError:
        return 0.0
