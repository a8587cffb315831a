"""Runs scripts of this folder, each in a fork of its own which has torch and transformers loaded already.

Of standard input each line is one: [SCRIPT, ARGUMENT...] as JSON. For each a line is printed: {"status": its exit status,
"said": what it printed, "failed": what it wrote to standard error}. Ends with its input.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import peft  # noqa: F401
import transformers as hf

# transformers loads what is named, when it is: these are what most scripts need.
hf.PreTrainedModel, hf.AutoTokenizer, hf.GenerationConfig  # noqa: B018


def run(script, arguments):
    """In the fork: the exit status, as of a process of its own."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(Path(__file__).parent / script), run_name="__main__")
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


for line in sys.stdin:
    script, *arguments = json.loads(line)
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as failed:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(failed.fileno(), 2)
            status = run(script, arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        reply = {"status": status}
        for name, file in (("said", said), ("failed", failed)):
            file.seek(0)
            reply[name] = file.read().decode(errors="replace")
    print(json.dumps(reply), flush=True)
