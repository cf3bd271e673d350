"""Load for cascade.py: photographs that are never twice the same, sent over HTTP from several processes.

Standard library only. A photograph is varied without decoding it: its quantisation tables are scaled, so that decoders see
another contrast and other textures, at the same cost as the original.
"""

import http.client
import json
import multiprocessing
import os
import random
import threading
import time
import urllib.parse
from dataclasses import dataclass

# Of the low frequencies, which carry what a model sees; coefficients are in zigzag order, the mean of a block first.
VARIED = 21
SCALES = (0.6, 1.5)
# More client processes than this only take cores from the server.
PROCESSES_MAX = 4


@dataclass
class Answer:
    """One request: when it was answered (time.monotonic), how long it took, and what was said; stage 0: failed."""

    at: float
    seconds: float
    status: int
    stage: int
    votes: dict


class Photograph:
    """A JPEG, and where its quantisation tables are."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = file.read()
        self.tables = list(quantisation_tables(self.bytes, path))
        if not self.tables:
            raise ValueError(f"{path}: no quantisation tables of 8 bits")

    def varied(self, generator):
        """Another photograph of the same scene."""
        other = bytearray(self.bytes)
        for start in self.tables:
            for place in range(start, start + VARIED):
                scaled = other[place] * generator.uniform(*SCALES)
                other[place] = min(255, max(1, round(scaled)))
        return bytes(other)


def quantisation_tables(data, path):
    """Where the values of each table of 8 bits begin."""
    if data[:2] != b"\xff\xd8":
        raise ValueError(f"{path}: not a JPEG")
    place = 2
    while place + 4 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place] != 0xFF or marker == 0xDA:  # the scan begins
            return
        if marker == 0xDB:
            at, end = place + 4, place + 2 + length
            while at < end:
                wide = data[at] >> 4
                if not wide:
                    yield at + 1
                at += 1 + (128 if wide else 64)
        place += 2 + length


def send(address, task, photographs, concurrency, seconds=None, count=None, seed=0):
    """The answers to requests of so many clients at once, for so long or so many of them together."""
    processes = min(concurrency, PROCESSES_MAX, max(1, (os.cpu_count() or 1) // 2))
    # Not by fork: a process that is born while nvidia-smi is being started would hold on to that one's pipe.
    context, pipes, workers = multiprocessing.get_context("spawn"), [], []
    for index in range(processes):
        clients = concurrency // processes + (index < concurrency % processes)
        ours, theirs = context.Pipe(duplex=False)
        # A share that is rounded up: at least as many as were asked for.
        share = None if count is None else -(-count * clients // concurrency)
        arguments = (theirs, address, task, photographs, clients, seconds, share, f"{seed}/{index}")
        worker = context.Process(target=work, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    answers = []
    for pipe, worker in zip(pipes, workers):
        answers.extend(pipe.recv())
        worker.join()
    return sorted(answers, key=lambda answer: answer.at)


def work(pipe, address, task, photographs, clients, seconds, count, seed):
    """One process: its clients on threads."""
    answers, left, lock = [], [count], threading.Lock()
    until = None if seconds is None else time.monotonic() + seconds

    def wants_more():
        with lock:
            if left[0] is not None:
                left[0] -= 1
                return left[0] >= 0
        return time.monotonic() < until

    def client(index):
        generator = random.Random(f"{seed}/{index}")
        connection = connect(address)
        while wants_more():
            photograph = generator.choice(photographs).varied(generator)
            answer, connection = ask(connection, address, task, photograph)
            answers.append(answer)

    threads = [threading.Thread(target=client, args=(index,), daemon=True) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(answers)
    pipe.close()


def connect(address):
    parts = urllib.parse.urlsplit(address)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)


def ask(connection, address, task, photograph):
    """The answer, and the connection for the next request."""
    headers = {"content-type": "image/jpeg", "cache-control": "no-cache"}
    begun = time.monotonic()
    try:
        connection.request("POST", f"/v1/tasks/{task}/classify", photograph, headers)
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        now = time.monotonic()
        return Answer(now, now - begun, 0, 0, {}), connect(address)
    now = time.monotonic()
    verdict = json.loads(body) if status == 200 else {}
    votes = {vote["model"]: vote.get("probabilities") for vote in verdict.get("votes", [])}
    return Answer(now, now - begun, status, verdict.get("stage", 0), votes), connection
