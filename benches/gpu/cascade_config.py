"""The ensembles that cascade.py serves."""

import os
import re

# Stage by stage; sizes by name: the presets of the four models.
STAGES = (("dinov3",), ("siglip2", "florence2"), ("molmo2",))
PRESETS = {
    "full": {
        "dinov3": "dinov3-vitl16",
        "siglip2": "siglip2-so400m-patch14-384",
        "florence2": "florence2-large",
        "molmo2": "molmo2-8b",
    },
    "tiny": {name: f"{name}-tiny" for stage in STAGES for name in stage},
}
# As large as what was seen to wait for a model at 64 clients, of whom one in five comes to the second stage and one in
# twenty to the last. Florence-2's images are large: 16 of them would take 2.5 GB more.
MAX_BATCH = {"dinov3": 32, "siglip2": 16, "florence2": 8, "molmo2": 4}
TASK = "roadwork"
# Nothing is to come out of the cache, nor to be refused.
SERVER = """[server]
cpu_threads = {cpu_threads}
request_timeout_ms = 120_000

[cache]
backend = "memory"
capacity_bytes = 1
"""
QUESTION = """[tasks.roadwork]
question = "Is there active road construction in this image?"
labels = ["no road work", "road work"]
fusion = { method = "linear", weights = { dinov3 = 1.0, siglip2 = 1.0, florence2 = 1.0, molmo2 = 1.0 } }

[tasks.roadwork.prompts]
"no road work" = ["a photo without road work"]
"road work" = ["a photo of road work"]
"""


def random_weights(args, thresholds):
    """Published sizes with random weights; `thresholds` of each stage but the last, whose answer stands whatever it is."""
    parts = [SERVER.format(cpu_threads=args.cpu_threads)]
    for stage in STAGES:
        for name in stage:
            parts.append(model(args, name))
    parts.append(QUESTION)
    for stage, threshold in zip(STAGES, [*thresholds, 1.0]):
        names = ", ".join(f'"{name}"' for name in stage)
        parts.append(f"[[tasks.roadwork.stages]]\nmodels = [{names}]\naccept = {{ confidence = {threshold!r} }}\n")
    return "\n".join(parts)


def model(args, name):
    options = {
        "architecture": f'"{name}"',
        "snapshot": f'"random:{PRESETS[args.sizes][name]}"',
        "device": f'"{args.device}"',
        "dtype": f'"{args.dtype}"',
        "max_batch": MAX_BATCH[name],
    }
    if name == "dinov3":
        options["heads"] = '{ roadwork = "head.roadwork.safetensors" }'
    options.update(changes(args, name))
    return f"[models.{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())


def changes(args, name):
    """What `--set MODEL.KEY=VALUE` says of a model."""
    pairs = (change.split("=", 1) for change in args.set)
    return {path.split(".", 1)[1]: value for path, value in pairs if path.split(".", 1)[0] == name}


def nano(args, all_asked):
    """The shipped ensemble, of which the question about road work; where all are asked, no stage is sure enough."""
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    with open(os.path.join(root, "ensemble.toml"), encoding="utf-8") as file:
        text = file.read()
    head, tail = text.index("# ---- Models"), text.index("# ---- Which traffic sign")
    text = SERVER.format(cpu_threads=args.cpu_threads) + text[head:tail]
    text = re.sub(r", traffic_sign = \"[^\"]*\"", "", text)
    text = text.replace('snapshot = "models/', f'snapshot = "{os.path.abspath(root)}/models/')
    text = re.sub(r'^device = "\w+"', f'device = "{args.device}"', text, flags=re.MULTILINE)
    text = re.sub(r'^dtype = "\w+"', f'dtype = "{args.dtype}"', text, flags=re.MULTILINE)
    for stage in STAGES:
        for name in stage:
            text = changed(text, name, changes(args, name))
    if all_asked:
        text = re.sub(r"^accept = \{.*?\}", "accept = { confidence = 1.0 }", text, flags=re.MULTILINE)
    return text


def changed(text, name, options):
    """The text with other options in the section of a model."""
    header = f"[models.{name}]\n"
    before, _, section = text.partition(header)
    section, blank, after = section.partition("\n\n")
    for key, value in options.items():
        section = re.sub(rf"^{key} = .*\n?", "", section, flags=re.MULTILINE) + f"\n{key} = {value}"
    return before + header + section + blank + after
