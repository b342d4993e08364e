"""`LLM`: the offline door, with vLLM's names. Prompts in, finished answers out."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from tqdm.auto import tqdm

from seesaw.config import EngineConfig
from seesaw.engine.engine import Engine
from seesaw.engine.prompts import EncodedPrompt, Prompt
from seesaw.errors import ConfigError, EngineDeadError, RequestError
from seesaw.outputs import RequestOutput
from seesaw.sampling_params import SamplingParams
from seesaw.trace import TraceWriter

OnError = Literal["raise", "return"]
Messages = Sequence[Mapping[str, Any]]
Sampling = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model that answers batches of prompts.

    Takes the fields of `EngineConfig` as arguments; unknown ones raise ConfigError. `trace` names a
    file that is told what every device does when, for ui.perfetto.dev and `seesaw report`. Use it
    as a context manager, or call `shutdown`, to free weights and KV at a known moment.

    >>> with LLM("my-model") as llm:
    ...     outputs = llm.generate(["The capital of France is"], SamplingParams(max_tokens=8))
    ...     print(outputs[0].outputs[0].text)
    """

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        *,
        trace: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        config = EngineConfig.from_kwargs(model=model, tokenizer=tokenizer, **settings)
        with contextlib.ExitStack() as undo:
            writer = None if trace is None else undo.enter_context(open_trace(trace))
            self.engine = Engine(config, progress=_loading_bar(), trace=writer)
            self._release = undo.pop_all()
        self._numbers = itertools.count()
        self._mail: dict[str, RequestOutput] = {}  # finished for streams that run side by side

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Sampling = None,
        *,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
    ) -> list[RequestOutput]:
        """Answers in the order of `prompts`: text, token ids, or a mapping with either.

        One `sampling_params` for all, one each, or None for the model's defaults. With
        `on_error="raise"` a prompt that cannot be served raises RequestError before anything runs;
        with "return" its output carries `error` and the others are answered.
        """
        return self._run(_as_batch(prompts), sampling_params, use_tqdm, on_error)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Sampling = None,
        *,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
    ) -> list[RequestOutput]:
        """Like `generate`, for one conversation or a list of them, through the chat template."""
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = [messages] if one else list(messages)
        return self._run(
            [{"messages": conversation} for conversation in conversations],
            sampling_params,
            use_tqdm,
            on_error,
        )

    def stream(
        self,
        prompts: Iterable[Prompt],
        sampling_params: SamplingParams | None = None,
        *,
        ordered: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[RequestOutput]:
        """Finished answers as they come, over any number of prompts, with flat memory.

        Prompts are taken from the iterable as there is room for them. `ordered` keeps their order,
        at the cost of holding answers back behind a slow one. Leaving the loop early, or an error,
        aborts what runs.
        """
        _check_sampling(sampling_params)
        pairs = ((prompt, sampling_params) for prompt in prompts)
        return self._stream(pairs, ordered, on_error)

    def get_default_sampling_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the model's generation_config over our defaults."""
        return SamplingParams.from_dict(self.engine.default_sampling)

    def get_tokenizer(self) -> Any:
        return self.engine.tokenizer

    def shutdown(self) -> None:
        """Free everything; the object cannot be used any more."""
        self.engine.shutdown()
        self._release.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _run(
        self, prompts: Sequence[Any], sampling: Sampling, use_tqdm: bool, on_error: OnError
    ) -> list[RequestOutput]:
        each = _one_each(sampling, len(prompts))
        if on_error == "raise":
            # Before any work is spent.
            prompts = [
                self.engine.check_request(prompt, params)
                for prompt, params in zip(prompts, each, strict=True)
            ]
        stream = self._stream(zip(prompts, each, strict=True), True, on_error)
        if use_tqdm:
            stream = tqdm(stream, total=len(prompts), desc="prompts", disable=None)
        return list(stream)

    def _stream(
        self,
        pairs: Iterable[tuple[Prompt, SamplingParams | None]],
        ordered: bool,
        on_error: OnError,
    ) -> Iterator[RequestOutput]:
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error={on_error!r}: expected 'raise' or 'return'.")
        source = iter(pairs)
        room = self.engine.max_num_queued
        live: dict[str, None] = {}  # in order of arrival
        done: dict[str, RequestOutput] = {}
        exhausted = False
        try:
            while True:
                # Answers that wait for an earlier one take up room too, or memory would not be
                # flat.
                while not exhausted and len(live) < room:
                    try:
                        prompt, params = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    request_id = str(next(self._numbers))
                    live[request_id] = None
                    try:
                        self.engine.add_request(request_id, prompt, params)
                    except RequestError as error:
                        if on_error == "raise":
                            raise
                        done[request_id] = RequestOutput(
                            request_id, None, [], finished=True, error=error
                        )
                while done:
                    request_id = next(iter(live)) if ordered else next(iter(done))
                    if request_id not in done:
                        break
                    del live[request_id]
                    yield done.pop(request_id)
                if not live and exhausted:
                    return
                if len(done) < len(live):
                    self._advance(live, done)
        finally:
            self._abandon(request_id for request_id in live if request_id not in done)

    def _advance(self, live: Mapping[str, None], done: dict[str, RequestOutput]) -> None:
        """Collect this stream's finished answers; keep those of other streams for them."""
        # A copy: another thread's stream may leave something there meanwhile.
        mine = [request_id for request_id in list(self._mail) if request_id in live]
        done.update((request_id, self._mail.pop(request_id)) for request_id in mine)
        if not mine:
            for output in self.engine.step():
                (done if output.request_id in live else self._mail)[output.request_id] = output

    def _abandon(self, request_ids: Iterable[str]) -> None:
        """End requests nobody waits for any more."""
        ids = set(request_ids)
        if not ids:
            return
        for request_id in ids:
            self._mail.pop(request_id, None)
            self.engine.abort_request(request_id)
        with contextlib.suppress(EngineDeadError):  # then there is nothing left to end
            for output in self.engine.step():
                if output.request_id not in ids:
                    self._mail[output.request_id] = output


def open_trace(path: str | os.PathLike[str]) -> TraceWriter:
    """Begins now. Raises ConfigError where the file cannot be made."""
    try:
        return TraceWriter(path, origin_s=time.perf_counter())
    except OSError as error:
        raise ConfigError(
            f"trace {os.fspath(path)}: {error.strerror}. Name a file that can be written."
        ) from error


def _loading_bar() -> Callable[[int, int], None]:
    """Shows bytes read of all bytes, on a terminal, where loading takes longer than a moment."""
    bar = tqdm(desc="weights", unit="B", unit_scale=True, leave=False, delay=2, disable=None)

    def progress(read_bytes: int, all_bytes: int) -> None:
        bar.total = all_bytes
        bar.update(read_bytes - bar.n)
        if read_bytes >= all_bytes:
            bar.close()

    return progress


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt in any form, token ids included, becomes a batch of one."""
    if isinstance(prompts, str | Mapping | EncodedPrompt):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        raise ConfigError(
            f"prompts is {type(prompts).__name__}: expected text, token ids or a list of prompts."
        )
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], int) else items


def _one_each(sampling: Sampling, count: int) -> list[SamplingParams | None]:
    if not isinstance(sampling, Sequence):
        _check_sampling(sampling)
        return [sampling] * count
    each: list[SamplingParams | None] = list(sampling)
    for one in each:
        _check_sampling(one)
    if len(each) != count:
        raise ConfigError(
            f"{len(each)} sampling_params for {count} prompts: expected one for all, or one each."
        )
    return each


def _check_sampling(given: object) -> None:
    if given is not None and not isinstance(given, SamplingParams):
        raise ConfigError(
            f"sampling_params is {type(given).__name__}: expected SamplingParams(..), or None for "
            "the model's defaults."
        )
