"""torchrun with two Gloo workers on the loopback, for the benches beside this file."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile


@contextlib.contextmanager
def two_workers(source, args=(), max_restarts=0):
    """Runs the worker `source`, whose last argument is a folder of its own; gives torchrun's process and that folder."""
    folder = tempfile.mkdtemp()
    with open(folder + "/worker.py", "w") as f:
        f.write(source)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={max_restarts}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", folder + "/worker.py", *args, folder]
    env = dict(os.environ, GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process, folder
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(folder)
