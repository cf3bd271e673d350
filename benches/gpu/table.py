"""One markdown table of what Concord and its peers took, side by side, with what was aimed for.

    table.py [--statistic p50] concord*.json peers*.jsonl > table.md

Reads the JSON of `concord bench` and the lines of peers.py in any order; standard library only. The ratio is Concord's
time by that of the peer that the row is held to; of several compiled ones that is the fastest. Exit status 1 where a
target is missed or could not be compared.
"""

import argparse
import json
import sys

COMPILED = ("reduce-overhead", "max-autotune")
POOLED = "pixels → pooled output"
# Preset, work, batch, dtype, the peers that it is held to, at least, goal: ratios of Concord's time to theirs.
TARGETS = [
    ("dinov3-vitl16", POOLED, 1, "bf16", COMPILED, 0.80, 0.65),
    ("dinov3-vitl16", POOLED, 8, "bf16", COMPILED, 0.90, 0.75),
    ("dinov3-vitl16", POOLED, 32, "bf16", COMPILED, 0.85, 0.70),
    ("dinov3-vitl16", POOLED, 32, "fp8", COMPILED, None, 0.50),
    ("siglip2-so400m-patch14-384", POOLED, 1, "bf16", COMPILED, 0.85, 0.65),
    ("siglip2-so400m-patch14-384", POOLED, 8, "bf16", COMPILED, 0.90, 0.75),
    ("siglip2-so400m-patch14-384", POOLED, 32, "bf16", COMPILED, 0.85, 0.70),
    ("florence2-large", "pixels → image features", 1, "bf16", ("eager",), None, None),
    ("florence2-large", "generate 20 tokens greedy", 1, "bf16", ("eager",), 0.25, 0.15),
    ("molmo2-8b", "decoder: prefill", 1, "bf16", COMPILED, 1.0, 0.9),
    ("molmo2-8b", "decoder: prefill and 10 tokens greedy", 1, "bf16", ("static",), 0.5, 0.4),
    ("molmo2-8b", "classify yes/no", 1, "bf16", ("eager",), None, None),
    ("molmo2-8b", "generate 10 tokens greedy", 1, "bf16", ("static",), None, None),
]
# Peers have no fp8 of their own here: it is compared with what they do in bf16.
PEER_DTYPE = {"fp8": "bf16"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--statistic", default="p50", choices=["p50", "p99", "mean", "min"])
    args = parser.parse_args()
    ours, theirs, programs = read(args.files, args.statistic)

    print(f"Times are the {args.statistic} in ms until the caller has the result. {'; '.join(sorted(programs))}.\n")
    head = ["model", "work", "batch", "dtype", "Concord", "graphs", "eager", "compiled", "static"]
    head += ["ratio to", "ratio", "at least", "goal", ""]
    line(head)
    line(["---"] * len(head))
    met = True
    for target in TARGETS:
        row, ok = compared(target, ours, theirs)
        if row:
            line(row)
            met &= ok
    return 0 if met else 1


def read(files, statistic):
    """Concord's times by (model, work, batch, dtype), the best with its use of graphs; the peers' by that and peer."""
    ours, theirs, programs = {}, {}, set()
    for file in files:
        with open(file, encoding="utf-8") as text:
            content = text.read()
        for row in rows(content):
            programs.add(row["program"])
            key = (row["model"], row["work"], row["batch"], row["dtype"])
            if not row.get("latency_ms"):
                continue
            milliseconds = row["latency_ms"][statistic]
            if "peer" in row:
                theirs[key, row["peer"]] = milliseconds
            elif key not in ours or milliseconds < ours[key][0]:
                ours[key] = (milliseconds, "on" if row["graphs"] else "off")
    return ours, theirs, programs


def rows(content):
    """Those of one JSON document of `concord bench`, or of a line each."""
    try:
        document = json.loads(content)
    except json.JSONDecodeError:
        return [json.loads(text) for text in content.splitlines() if text.strip()]
    if "results" not in document:
        return [document]
    program = f"{document['program']} {document['version']}"
    return [{"program": program, **row} for row in document["results"]]


def compared(target, ours, theirs):
    """One row of the table, if anything was measured for it; and whether what it must reach was not missed."""
    model, work, batch, dtype, peers, at_least, goal = target
    peer_key = (model, work, batch, PEER_DTYPE.get(dtype, dtype))
    times = {peer: theirs[peer_key, peer] for peer in ("eager", *COMPILED, "static") if (peer_key, peer) in theirs}
    measured = ours.get((model, work, batch, dtype))
    # A format that was not asked for is no row; the peers' times alone are one, of the format that they run in.
    if measured is None and (not times or dtype in PEER_DTYPE):
        return None, True
    compiled = min((times[peer] for peer in COMPILED if peer in times), default=None)
    held_to = min(((times[peer], peer) for peer in peers if peer in times), default=None)
    ratio = measured[0] / held_to[0] if measured and held_to else None
    row = [model, work, str(batch), dtype, number(measured and measured[0]), measured[1] if measured else "–"]
    row += [number(times.get("eager")), number(compiled), number(times.get("static"))]
    row += [held_to[1] if held_to else "–", f"{ratio:.2f}" if ratio else "–"]
    row += [f"≤ {at_least:.2f}" if at_least else "–", f"≤ {goal:.2f}" if goal else "–"]
    return row + [judged(ratio, at_least, goal)], at_least is None or (ratio is not None and ratio <= at_least)


def judged(ratio, at_least, goal):
    if at_least is None and goal is None:
        return ""
    if ratio is None:
        return "not compared"
    if goal is not None and ratio <= goal:
        return "goal"
    if at_least is None:
        return "short of the goal"
    return "yes" if ratio <= at_least else "**missed**"


def number(milliseconds):
    return "–" if milliseconds is None else f"{milliseconds:.2f}"


def line(cells):
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
