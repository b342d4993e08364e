"""`seesaw generate`: a few prompts from the command line, answered on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from seesaw.api.flags import Flag
from seesaw.api.report import STDOUT, check_trace, machine_output, output_json_flag, trace_flag
from seesaw.api.settings import (
    EngineCommand,
    engine_flags,
    sampling_flags,
    take_engine_settings,
    take_sampling_settings,
)
from seesaw.errors import ConfigError
from seesaw.outputs import RequestOutput
from seesaw.sampling_params import SamplingParams

if TYPE_CHECKING:
    from seesaw.api.llm import LLM


@click.command(
    cls=EngineCommand,
    params=[
        Flag(["--prompt"], multiple=True, section="Prompts", help="a prompt; may be repeated"),
        Flag(
            ["--prompt-file"],
            multiple=True,
            metavar="FILE",
            section="Prompts",
            help="a file whose whole text is one prompt; may be repeated; - = standard input",
        ),
        Flag(
            ["--chat/--no-chat"],
            default=False,
            section="Prompts",
            help="each prompt is a user's message, put through the model's chat template",
        ),
        *sampling_flags(),
        *engine_flags(),
        trace_flag(),
        output_json_flag("prompts and answers"),
    ],
    examples=[
        'seesaw generate --model model.gguf --chat --prompt "Name three colours." --max-tokens 48',
        'seesaw generate --model my-model --prompt "1, 2, 3," --temperature 0 --output-json -',
    ],
)
def generate(
    prompt: Sequence[str],
    prompt_file: Sequence[str],
    chat: bool,
    trace: str | None,
    output_json: str | None,
    **values: Any,
) -> int:
    """Answer prompts on standard output. One prompt on a terminal is printed as it grows."""
    texts = [*prompt, *map(_read_prompt, prompt_file)]
    if not texts:
        raise click.UsageError("no prompt. Give --prompt TEXT or --prompt-file FILE.")
    check_trace(trace)
    sampling = take_sampling_settings(values)
    settings = take_engine_settings(values)
    prompts = [_as_chat(text) for text in texts] if chat else texts
    with machine_output(output_json) as write:
        from seesaw.api.llm import LLM

        with LLM(**settings, trace=trace) as llm:
            params = SamplingParams.from_dict(sampling, llm.engine.default_sampling)
            live = len(prompts) == params.n == 1 and sys.stdout.isatty() and output_json != STDOUT
            if live:
                outputs = [_print_as_it_grows(llm, prompts[0], params)]
            else:
                outputs = llm.generate(prompts, params, on_error="return")
            if not live and output_json != STDOUT:
                _print_answers(outputs)
            write({"model": settings["model"], "results": [_to_json(one) for one in outputs]})
    return _report_errors(outputs)


def _read_prompt(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"--prompt-file {name}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt-file {name}: not UTF-8 text ({error}).") from error


def _as_chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _print_as_it_grows(llm: LLM, prompt: Any, params: SamplingParams) -> RequestOutput:
    engine = llm.engine
    engine.add_request("0", prompt, params, stream=True)
    num_printed = 0
    output: RequestOutput | None = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            text = output.outputs[0].text
            click.echo(text[num_printed:], nl=False)
            num_printed = len(text)
    click.echo()
    assert output is not None, "a request ended without an output"
    return output


def _print_answers(outputs: Sequence[RequestOutput]) -> None:
    """One answer is printed bare; of several, each under a line that says whose it is."""
    several = sum(len(output.outputs) for output in outputs) > 1 or len(outputs) > 1
    for number, output in enumerate(outputs, 1):
        for answer in output.outputs:
            if several:
                which = f"{number}.{answer.index + 1}" if len(output.outputs) > 1 else number
                click.echo(f"== {which}")
            click.echo(answer.text)


def _report_errors(outputs: Sequence[RequestOutput]) -> int:
    """The exit code: 1 where a prompt could not be served."""
    failed = [(n, output.error) for n, output in enumerate(outputs, 1) if output.error is not None]
    for number, error in failed:
        click.echo(f"seesaw: error: prompt {number}: {error}", err=True)
    return 1 if failed else 0


def _to_json(output: RequestOutput) -> dict[str, Any]:
    error = output.error
    return {
        **asdict(output),
        "error": error and {"message": str(error), "param": error.param, "code": error.code},
    }
