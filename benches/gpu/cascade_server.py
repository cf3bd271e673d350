"""`concord serve` for cascade.py: its process, its metrics, and its memory. Standard library only."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import json

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def note(text):
    print(text, file=sys.stderr, flush=True)


class Server:
    """A server with a configuration of its own, until the block ends."""

    def __init__(self, binary, folder, configuration, patience_s):
        self.binary, self.folder, self.patience_s = binary, folder, patience_s
        self.file = os.path.join(folder, "ensemble.toml")
        self.write(configuration)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.gpu_before = gpu_megabytes()
        self.log = open(os.path.join(self.folder, "server.log"), "w+", encoding="utf-8")
        command = [self.binary, "serve", "--ensemble", self.file, "--listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self.await_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def await_ready(self):
        begun, told = time.monotonic(), None
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"cascade.py: the server ended with {self.process.returncode}:\n{self.tail()}")
            status, page = self.get("/readyz")
            if status == 200:
                self.ready_s = time.monotonic() - begun
                note(f"ready after {self.ready_s:.1f} s")
                return
            detail = page.get("detail") or page.get("status")
            if detail and detail != told:
                note(f"{time.monotonic() - begun:6.1f} s: {detail}")
                told = detail
            if time.monotonic() - begun > self.patience_s:
                raise SystemExit(f"cascade.py: not ready after {self.patience_s} s: {told}\n{self.tail()}")
            time.sleep(0.25)

    def get(self, path):
        """Status and JSON; status 0 where nobody listens yet."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def metrics(self):
        """Every sample by name and labels."""
        with urllib.request.urlopen(self.address + "/metrics", timeout=10) as response:
            text = response.read().decode()
        matches = (SAMPLE.match(line) for line in text.splitlines())
        return {(match[1], match[2] or ""): float(match[3]) for match in matches if match}

    def write(self, configuration):
        # Whole at once: the running server follows the file.
        with open(self.file + ".new", "w", encoding="utf-8") as file:
            file.write(configuration)
        os.replace(self.file + ".new", self.file)

    def reconfigure(self, configuration):
        """Other thresholds, without a restart: the models and their weights stay."""
        applied = lambda: self.metrics().get(("concord_config_reloads_total", 'outcome="applied"'), 0)
        before, until = applied(), time.monotonic() + 60
        self.write(configuration)
        while applied() == before:
            if time.monotonic() > until:
                raise SystemExit(f"cascade.py: the changed configuration was not applied:\n{self.tail()}")
            time.sleep(0.1)

    def tail(self, lines=30):
        self.log.flush()
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-lines:])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def memory(self):
        """Megabytes on all GPUs beside what was there before, or None; and resident in main memory."""
        gpu = gpu_megabytes()
        gpu = None if gpu is None or self.gpu_before is None else gpu - self.gpu_before
        return gpu, resident_megabytes(self.process.pid)


class Sampler(threading.Thread):
    """Looks at a server's memory again and again."""

    def __init__(self, server, every_s):
        super().__init__(daemon=True)
        self.server, self.every_s, self.samples, self.over = server, every_s, [], threading.Event()

    def run(self):
        while True:
            self.samples.append((time.monotonic(), *self.server.memory()))
            if self.over.wait(self.every_s):
                return

    def finish(self):
        self.over.set()
        self.join()
        return self.samples


def gpu_megabytes():
    """In use on all GPUs that the server sees, as nvidia-smi says; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        query.append(f"--id={os.environ['CUDA_VISIBLE_DEVICES']}")
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return sum(float(line) * 1.048576 for line in said.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def resident_megabytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) * 1.024e-3
    return 0.0
