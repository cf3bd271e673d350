"""The page docs/RESULTS.md, of what results.py has measured."""


def named(rows, name):
    return next((row for row in rows["strategies"] if row["name"] == name), None)


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


def is_near_enough(rows, auto):
    """Whether the cascade is within 0.005 of the MCC of asking all models, as fitted."""
    return value(cascade(rows), "mcc") >= value(best(auto, "fusion"), "mcc") - 0.005


def cascade(rows):
    return named(rows, "cascade")


def best(rows, kind):
    return max((row for row in rows["strategies"] if row["kind"] == kind), key=lambda row: value(row, "mcc"))


def auroc(detection):
    if not detection:
        return "–"
    if "too_few" in detection:
        return f"{detection['too_few']} errors: too few"
    return figure(detection, "auroc", 3) if "auroc" in detection else "none is right"


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
        fits = [(of["auto"], title(key)), (of["shift"], f"{title(key)}, fitted with `--shift all`")]
        fits += [(fit, f"{title(key)}, thresholds of at least {fit['least']}") for fit in of.get("surer", [])[-1:]]
        for fit, name in fits:
            test, priced = fit["test"], fit["priced"]
            all_models, stopped = best(of["auto"]["test"], "fusion"), cascade(test)
            cpu = value(stopped, "milliseconds") / value(named(test, "all, linear"), "milliseconds")
            gpu = value(cascade(priced), "price") / value(named(priced, "all, linear"), "price")
            shares = " / ".join(f"{100 * share['value']:.1f}" for share in test["stages"])
            rows.append([name, f"{value(all_models, 'mcc'):.4f}", f"{value(stopped, 'mcc'):.4f}",
                         f"{value(named(test, 'random escalation'), 'mcc'):.4f}", f"{value(stopped, 'milliseconds'):.1f}", f"{cpu:.2f}",
                         f"{value(cascade(priced), 'price'):.2f}", f"{gpu:.2f}", shares,
                         verdict(is_near_enough(test, of["auto"]["test"])), verdict(cpu <= 1 / 3 and gpu <= 1 / 3)])
    return table(rows, ["", "MCC, all", "MCC, cascade", "MCC, random escalation at its cost", "CPU ms", "of all", "GPU ms", "of all",
                        "% that each stage answers", "within 0.005?", "≤ ⅓?"])


def image_weights(found):
    """Do weights and temperatures for each image beat fixed ones?"""
    rows = []
    for key, of in found.items():
        for what, fixed, always, auto in (("photographs as they are", "fixed", "always", "auto"),
                                          ("with `--shift all`", "shift_fixed", "shift_always", "shift")):
            one, other = best_nll(of[fixed]["test"]), named(of[always]["test"], "all, learned")
            if other is None:
                continue            # too little to learn from
            shifted = [mean_shifted(of[fit], "nll") for fit in (fixed, always)]
            rows.append([title(key), what, figure(one, "nll"), figure(other, "nll"), verdict(value(other, "nll") < value(one, "nll")),
                         *shifted, verdict(weighs(of[auto]))])
    return table(rows, ["", "fitted on", "NLL, all, fixed (the better method)", "NLL, all, for each image", "better?", "NLL, cascade, shifted: fixed",
                        "for each image", "does `fit` write them?"])


def weighs(fit):
    """Whether they are used, by what fit said."""
    return any(is_better(line) for line in fit["told"].splitlines() if line.startswith("Weights and temperatures for each image"))


def is_better(line):
    """Of what fit says of a network."""
    if line.endswith(": significantly better."):
        return True
    if "not significantly better" in line or "too few errors" in line or "too few to fit" in line or "too little to learn from" in line:
        return False
    raise SystemExit(f"fit says what this script does not know: {line}")


def best_nll(rows):
    fixed = [row for row in rows["strategies"] if row["name"] in ("all, linear", "all, log_linear")]
    return min(fixed, key=lambda row: value(row, "nll"))


def shifts(fit):
    return [one for one in fit.get("shifts", []) if one["severity"] > 0]


def mean_shifted(fit, key):
    values = [value(cascade(one), key) for one in shifts(fit)]
    return f"{sum(values) / len(values):.3f}" if values else "–"


def confidences(found):
    """ECE of verdicts, in distribution and shifted."""
    rows = []
    for key, of in found.items():
        def shifted(fit):
            values = [value(cascade(one), "ece") for one in shifts(of[fit])]
            below = sum(one <= 0.05 for one in values)
            return f"{sum(values) / len(values):.3f}; {max(values):.3f}; {below} of {len(values)}", max(values) <= 0.05
        cells = [shifted(fit) for fit in ("auto", "shift_fixed", "shift")]
        clean = [cascade(of[fit]["test"]) for fit in ("auto", "shift_fixed", "shift")]
        rows.append([title(key), figure(cascade(of["before"]), "ece"), *(figure(row, "ece") for row in clean),
                     verdict(value(clean[0], "ece") <= 0.01), verdict(value(clean[2], "ece") <= 0.01),
                     *(cell for cell, _ in cells), verdict(cells[2][1])])
    shift = "with `--shift all`"
    return table(rows, ["ECE of verdicts", "as shipped", "fitted", f"{shift}, fixed weights only", shift, "fitted: ≤ 0.01?",
                        f"{shift}: ≤ 0.01?", "shifted, fitted: mean; worst; ≤ 0.05", f"shifted, {shift}, fixed weights only",
                        f"shifted, {shift}", "all ≤ 0.05?"])


def estimators(found):
    """How well are the first stage's errors predicted?"""
    rows = []
    for key, of in found.items():
        def errors(fit, by):
            return auroc(of[fit]["test"].get(f"first_stage_{by}"))

        def mean_auroc(fit):
            pairs = [(one["first_stage_errors"], one["first_stage_correctness"]) for one in shifts(of[fit])]
            pairs = [(one["auroc"]["value"], other["auroc"]["value"]) for one, other in pairs if other and "auroc" in other]
            if not pairs:
                return "–"
            return " / ".join(f"{sum(one) / len(one):.3f}" for one in list(zip(*pairs))[::-1]) + f" ({len(pairs)} of {len(shifts(of[fit]))})"
        written = [f"stage {place}" for place in estimators_written(of["shift"])]
        rows.append([title(key), *(errors(fit, by) for fit, by in (
            ("fixed", "errors"), ("always", "errors"), ("always", "correctness"), ("shift_always", "errors"), ("shift_always", "correctness"))),
            mean_auroc("shift_always"), ", ".join(written) or "no"])
    return table(rows, ["AUROC of “stage 1 is wrong”", "by confidence, fixed weights", "by confidence, for each image", "by an estimator",
                        "fitted with `--shift all`: by confidence, for each image", "by an estimator",
                        "shifted: by the estimator / by the confidence, mean (where there are 50 errors)", "does `fit --shift all` write estimators?"])


def estimators_written(fit):
    lines = [line for line in fit["told"].splitlines() if line.startswith("Correctness estimator of stage")]
    return [line.split()[4].rstrip(":") for line in lines if is_better(line)]


def curve(found):
    """How many labelled images does fit need?"""
    rows = []
    for key, of in found.items():
        for images, signs, result in of["curve"]:
            rows.append([title(key), images, signs, figure(best_nll(result), "nll"), figure(cascade(result), "nll"),
                         figure(cascade(result), "ece"), figure(cascade(result), "accuracy")])
    return table(rows, ["", "photographs", "signs", "NLL, all, fixed (the better method)", "NLL, cascade", "ECE, cascade", "accuracy, cascade"])


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
    before, after, shifted = of["before"], of["auto"]["test"], of["shift"]["test"]
    priced = {id(of[fit]["test"]): of[fit]["priced"] for fit in ("auto", "shift")}
    rows = []
    for label, result, name in [
        *[(row["name"], after, row["name"]) for row in after["strategies"] if row["kind"] in ("model", "fusion")],
        ("all, uniformly", after, "all, uniformly"),
        ("cascade as shipped", before, "cascade"), ("cascade fitted", after, "cascade"),
        ("cascade fitted with `--shift all`", shifted, "cascade"),
        ("random escalation at its cost", after, "random escalation"), ("oracle", after, "oracle"),
    ]:
        row = named(result, name)
        cost = named(priced[id(result)], name) if id(result) in priced else None
        rows.append([label, figure(row, "accuracy"), figure(row, "mcc"), figure(row, "nll"), figure(row, "ece"),
                     f"{value(row, 'milliseconds'):.1f}", f"{value(cost, 'price'):.2f}" if cost else "–"])
    return "\n".join([
        f"## {title(key)}\n",
        table(rows, ["", "accuracy", "MCC", "NLL", "ECE", "CPU ms (nano)", "GPU ms (full size)"]),
        "What `concord fit` printed:\n", said(of["auto"]["told"], root),
        "And with `--shift all --copies 4`:\n", said(of["shift"]["told"], root),
        f"Accuracy / ECE on every {every}th photograph in each corruption, of the cascade fitted on clean photographs; fitted with `--shift all`:\n",
        shift_table(of)])


QUESTIONS = [
    ("Does the ensemble beat the best single model?", ensemble_and_best),
    ("What does the cascade cost?", costs),
    ("Do weights and temperatures for each image beat fixed ones?", image_weights),
    ("Can the confidence be believed?", confidences),
    ("Does a correctness estimator predict errors better than the confidence?", estimators),
    ("How many labelled images does `fit` need?", curve),
]


def page(found, head, root, every):
    """`head` is the introduction, then a paragraph for each question, with lines of %% between them."""
    introduction, *words = (part.strip() for part in head.split("\n%%\n"))
    answers = [f"## {question}\n\n{text}\n\n{answer(found)}" for (question, answer), text in zip(QUESTIONS, words, strict=True)]
    sections = [section(key, of, root, every) for key, of in found.items()]
    return "\n".join([f"{introduction}\n", *answers, *sections])
