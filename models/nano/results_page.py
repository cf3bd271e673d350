"""The page docs/RESULTS.md, of what results.py has measured."""


def named(rows, name):
    return next((row for row in rows["answerers"] if row["name"] == name), None)


def value(row, key):
    return row[key]["value"]


def figure(row, key, digits=4):
    if row is None or row.get(key) is None:
        return "–"
    of = row[key]
    return f"{of['value']:.{digits}f} ({of['low']:.{digits}f} – {of['high']:.{digits}f})"


def table(rows, head):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def cascade(rows):
    return named(rows, "cascade")


def best(rows, kind):
    return max((row for row in rows["answerers"] if row["kind"] == kind), key=lambda row: value(row, "mcc"))


def auroc(foretold):
    if not foretold:
        return "–"
    return figure(foretold, "auroc", 3) if "auroc" in foretold else f"{foretold['too_few']} errors: too few"


def verdict(is_so):
    return "**yes**" if is_so else "no"


def title(key):
    return ", ".join(key)


def ensemble_and_best(found):
    """Does the ensemble beat the best single model?"""
    rows = []
    for key, of in found.items():
        test = of["auto"]["test"]
        single, fused, stopped = best(test, "model"), best(test, "fusion"), cascade(test)
        gain = max(value(fused, "mcc"), value(stopped, "mcc")) - value(single, "mcc")
        rows.append([title(key), f"{single['name']}: {figure(single, 'mcc')}", f"{fused['name']}: {figure(fused, 'mcc')}",
                     figure(stopped, "mcc"), figure(cascade(of["before"]), "mcc"), f"{gain:+.4f}", verdict(gain > 0)])
    return table(rows, ["MCC", "best model", "best fusion of all", "fitted cascade", "cascade as shipped", "gain", "better?"])


def costs(found):
    """What does the cascade cost within 0.005 of the MCC of asking all?"""
    rows = []
    for key, of in found.items():
        test, priced = of["auto"]["test"], of["auto"]["priced"]
        all_models, stopped = best(test, "fusion"), cascade(test)
        cpu = value(stopped, "milliseconds") / value(all_models, "milliseconds")
        gpu = value(cascade(priced), "price") / value(named(priced, all_models["name"]), "price")
        behind = value(all_models, "mcc") - value(stopped, "mcc")
        shares = " / ".join(f"{100 * share['value']:.1f}" for share in test["stages"])
        rows.append([title(key), f"{value(all_models, 'mcc'):.4f}", f"{value(stopped, 'mcc'):.4f}",
                     f"{value(named(test, 'random escalation'), 'mcc'):.4f}", f"{value(stopped, 'milliseconds'):.1f}", f"{cpu:.2f}",
                     f"{value(cascade(priced), 'price'):.2f}", f"{gpu:.2f}", shares,
                     verdict(behind <= 0.005 and cpu <= 1 / 3 and gpu <= 1 / 3)])
    return table(rows, ["", "MCC, all", "MCC, cascade", "MCC, random escalation at its cost", "CPU ms", "of all", "GPU ms", "of all",
                        "% that each stage answers", "≤ ⅓, within 0.005?"])


def image_weights(found):
    """Do weights and temperatures for each image beat fixed ones?"""
    rows = []
    for key, of in found.items():
        fixed, learned = of["fixed"]["test"], of["always"]["test"]
        fixed_all, learned_all = best_nll(fixed), named(learned, "all, learned")
        gain = value(learned_all, "nll") - value(fixed_all, "nll")
        rows.append([title(key), figure(fixed_all, "nll"), figure(learned_all, "nll"), figure(cascade(fixed), "nll"),
                     figure(cascade(learned), "nll"), figure(fixed_all, "mcc"), figure(learned_all, "mcc"), verdict(gain < 0),
                     "yes" if "all, learned" in names(of["auto"]["test"]) else "no"])
    return table(rows, ["", "NLL, all, fixed", "NLL, all, for each image", "NLL, cascade, fixed", "NLL, cascade, for each image",
                        "MCC, all, fixed", "MCC, all, for each image", "better?", "does `fit` write them?"])


def names(rows):
    return {row["name"] for row in rows["answerers"]}


def best_nll(rows):
    fixed = [row for row in rows["answerers"] if row["name"] in ("all, linear", "all, log_linear")]
    return min(fixed, key=lambda row: value(row, "nll"))


def confidences(found):
    """ECE of verdicts, in distribution and shifted."""
    rows = []
    for key, of in found.items():
        shifted = {fit: [value(cascade(one), "ece") for one in of[fit]["shifts"] if one["severity"] > 0] for fit in ("auto", "shift")}
        mean = {fit: sum(all_of) / len(all_of) for fit, all_of in shifted.items()}
        below = {fit: sum(one <= 0.05 for one in all_of) for fit, all_of in shifted.items()}
        clean = {fit: cascade(of[fit]["test"]) for fit in ("auto", "shift")}
        rows.append([title(key), figure(cascade(of["before"]), "ece"), figure(clean["auto"], "ece"), figure(clean["shift"], "ece"),
                     *(f"{mean[fit]:.3f}; {max(shifted[fit]):.3f}; {below[fit]} of {len(shifted[fit])}" for fit in ("auto", "shift")),
                     verdict(value(clean["auto"], "ece") <= 0.01), verdict(max(shifted["shift"]) <= 0.05)])
    return table(rows, ["ECE of verdicts", "as shipped", "fitted", "fitted with `--shift all`", "fitted; shifted: mean; worst; ≤ 0.05",
                        "fitted with `--shift all`; shifted: mean; worst; ≤ 0.05", "≤ 0.01?", "shifted ≤ 0.05?"])


def gates(found):
    """How well are the first stage's errors foretold?"""
    rows = []
    for key, of in found.items():
        told = {fit: of[fit]["test"] for fit in ("fixed", "always", "shift")}
        rows.append([title(key), auroc(told["fixed"]["first_stage_errors"]), auroc(told["always"]["first_stage_errors"]),
                     auroc(told["always"].get("first_stage_gate")), auroc(told["shift"]["first_stage_errors"]),
                     auroc(told["shift"].get("first_stage_gate"))])
    return table(rows, ["AUROC of “stage 1 is wrong”", "by confidence, fixed", "by confidence, for each image", "by a gate",
                        "by confidence, fitted with `--shift all`", "by a gate, fitted with `--shift all`"])


def curve(found):
    """How many labelled pictures does fit need?"""
    rows = []
    for key, of in found.items():
        for pictures, signs, result in of["curve"]:
            rows.append([title(key), pictures, signs, figure(best_nll(result), "nll"), figure(cascade(result), "nll"),
                         figure(cascade(result), "ece"), figure(cascade(result), "accuracy")])
    return table(rows, ["", "photographs", "signs", "NLL, all", "NLL, cascade", "ECE, cascade", "accuracy, cascade"])


def said(told, root):
    """What fit printed, but for the difference and where it was run."""
    dropped = ("@@", "Written;", "Networks: ", root)
    kept = [part.strip("\n") for part in told.split("\n\n") if part.strip() and not any(mark in part for mark in dropped)]
    kept = ["\n".join(line.rstrip() for line in part.splitlines() if line.strip("─═ ")) for part in kept]
    return "```\n" + "\n\n".join(kept) + "\n```\n"


def shift_table(of):
    """Accuracy and ECE of both fitted cascades under each corruption, severities 1 to 5."""
    by_name = {}
    for one, other in zip(of["auto"]["shifts"], of["shift"]["shifts"]):
        if one["severity"] > 0:
            by_name.setdefault(one["shift"], []).append((cascade(one), cascade(other)))
    rows = [[name, *(f"{value(one, 'accuracy'):.3f} / {value(one, 'ece'):.3f}; {value(other, 'accuracy'):.3f} / {value(other, 'ece'):.3f}"
                     for one, other in by_severity)] for name, by_severity in by_name.items()]
    return table(rows, ["severity", "1", "2", "3", "4", "5"])


def section(key, of, root, every):
    before, after, priced = of["before"], of["auto"]["test"], of["auto"]["priced"]
    rows = []
    for label, result, name in [
        *[(row["name"], after, row["name"]) for row in after["answerers"] if row["kind"] in ("model", "fusion")],
        ("all, uniformly", after, "all, uniformly"),
        ("cascade as shipped", before, "cascade"), ("cascade fitted", after, "cascade"),
        ("cascade fitted with `--shift all`", of["shift"]["test"], "cascade"),
        ("random escalation at its cost", after, "random escalation"), ("oracle", after, "oracle"),
    ]:
        row = named(result, name)
        cost = named(priced, name) if result is after else None
        rows.append([label, figure(row, "accuracy"), figure(row, "mcc"), figure(row, "nll"), figure(row, "ece"),
                     f"{value(row, 'milliseconds'):.1f}", f"{value(cost, 'price'):.2f}" if cost else "–"])
    return "\n".join([
        f"## {title(key)}\n",
        table(rows, ["", "accuracy", "MCC", "NLL", "ECE", "CPU ms (nano)", "GPU ms (full size)"]),
        "What `concord fit` said:\n", said(of["auto"]["told"], root),
        f"Accuracy / ECE on every {every}th photograph, made worse, of the cascade fitted on clean photographs; fitted with `--shift all`:\n",
        shift_table(of)])


QUESTIONS = [
    ("Does the ensemble beat the best single model?", ensemble_and_best),
    ("What does the cascade cost?", costs),
    ("Do weights and temperatures for each image beat fixed ones?", image_weights),
    ("Is the confidence one can believe?", confidences),
    ("Does a gate foretell errors better than the confidence?", gates),
    ("How many labelled pictures does `fit` need?", curve),
]


def page(found, head, root, every):
    """`head` has a paragraph for each question, after a line with its number in braces."""
    answers = "\n".join(f"## {question}\n\n{{{number}}}\n\n{answer(found)}" for number, (question, answer) in enumerate(QUESTIONS, 1))
    introduction, *words = head.split("\n%%\n")
    for number in range(1, len(QUESTIONS) + 1):
        text = words[number - 1].strip() if number <= len(words) else ""
        answers = answers.replace(f"{{{number}}}\n", f"{text}\n")
    sections = "\n".join(section(key, of, root, every) for key, of in found.items())
    return f"{introduction.strip()}\n\n{answers}\n{sections}"
