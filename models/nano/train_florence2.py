"""The nano Florence-2: captions and boxes, learned together with the choice between labels' captions."""
import random

import torch
import torch.nn.functional as F

import ask_florence2 as ask
import byte_level
import captions
import data
import measure
import training

SHARPNESS = 10.0        # of the choice between captions: a mean over about ten tokens, turned into a sum
SEARCHES = 96           # images of a batch in which something is searched for
READ = 128              # images of a batch that captions are told apart for: each costs fifty of them


def configuration(tokenizer):
    from transformers import Florence2Config
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = dict(model_type="bart", vocab_size=-(-(image + 1) // 64) * 64, d_model=96, encoder_layers=1, decoder_layers=1,
                num_hidden_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256,
                decoder_ffn_dim=256, max_position_embeddings=96, bos_token_id=0, pad_token_id=1, eos_token_id=2,
                decoder_start_token_id=2, is_encoder_decoder=True, activation_function="gelu", scale_embedding=False, dropout=0.0)
    # The strides of the published ones divide by 32; these by 16, so that 64 pixels leave 4 × 4 positions.
    vision = dict(embed_dim=(32, 64, 96, 128), num_heads=(1, 2, 3, 4), num_groups=(1, 2, 3, 4), depths=(1, 1, 3, 1),
                  patch_stride=(4, 2, 2, 1), window_size=4, mlp_ratio=2.0, drop_path_rate=0.0, projection_dim=96,
                  max_position_embeddings=8, max_temporal_embeddings=4)
    return Florence2Config(text_config=text, vision_config=vision, image_token_id=image, bos_token_id=0, eos_token_id=2,
                           pad_token_id=1)


def processor_of(tokenizer, model):
    from transformers import CLIPImageProcessor, Florence2Processor
    side = {"height": data.SIDE, "width": data.SIDE}
    images = CLIPImageProcessor(do_resize=True, size=side, resample=3, do_center_crop=False, crop_size=side,
                                image_mean=training.IMAGENET[0], image_std=training.IMAGENET[1])
    with torch.no_grad():
        blank = torch.zeros(1, 3, data.SIDE, data.SIDE, device=model.device)
        images.image_seq_length = model.get_image_features(blank).pooler_output.shape[1]
    return images, Florence2Processor(image_processor=images, tokenizer=tokenizer)


class Searches:
    """What is asked with `<OD>` and `<OPEN_VOCABULARY_DETECTION>`, and what is to be answered."""

    def __init__(self, tokenizer, names, y):
        device, texts = y.device, []
        for index, name in names.items():
            texts += [(index, template.format(name)) for template in ask.PHRASES]
        road_work = [(data.ROAD_WORK, text) for text in captions.ROAD_WORK + captions.PROMPTS[1]]
        named = [(index, name) for index, name in names.items()] + [(training.NO_SIGN, "")]
        phrases = ask.ids_of(tokenizer, [text for _, text in [*texts, *road_work, *named]])
        asked = [ask.SEARCH.format(text) for _, text in [*texts, *road_work]] + [ask.OBJECTS] * len(named)
        self.questions = ask.padded([[ask.BEGIN, *ids, ask.END] for ids in ask.ids_of(tokenizer, asked)], device)
        self.lengths = torch.tensor([2 + len(ids) for ids in phrases], device=device)
        # Room for four locations and </s>.
        self.answers = ask.padded([[ask.START, ask.BEGIN, *ids, *[ask.PAD] * 5] for ids in phrases], device)
        self.classes = torch.tensor([index for index, _ in [*texts, *road_work, *named]], device=device)
        self.searches, self.road_work = len(texts), len(road_work)
        self.first_location = tokenizer.convert_tokens_to_ids("<loc_0>")
        self.order, self.counts = y.argsort(), torch.bincount(y, minlength=training.NO_SIGN)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, x, y):
        """Images, questions, answers, how many tokens of those are given, and whether a box follows."""
        n, device = SEARCHES, x.device
        chance = lambda p: torch.rand(n, device=device) < p
        row = torch.where(chance(0.4), self.searches + torch.randint(self.road_work, (n,), device=device),
                          torch.randint(self.searches, (n,), device=device))
        wanted = self.classes[row]
        of_class = self.starts[wanted] + (torch.rand(n, device=device) * self.counts[wanted]).long()
        of_class = self.order[of_class.clamp(max=len(y) - 1)]
        exists = self.counts[wanted] > 0
        index = torch.where(chance(0.5) & exists, of_class, torch.randint(len(x), (n,), device=device))
        behind = x[torch.randint(len(x), (n,), device=device)]
        images, boxes = data.scenes(x[index], behind)
        none = n // 8
        images[:none] = data.not_signs(behind[:none])
        seen = y[index].clone()
        seen[:none] = training.NO_SIGN
        row = torch.where(chance(0.25), self.searches + self.road_work + seen, row)
        present = (self.classes[row] == seen) & (seen != training.NO_SIGN)
        return images, self.questions[row], self.answer(row, boxes, present), self.lengths[row], present

    def answer(self, row, boxes, present):
        """The decoder's texts, with the boxes where there are any."""
        # Whole pixels: 65 of the 1000 bins to learn.
        pixels = (boxes * data.SIDE).round()
        bins = (pixels * (ask.BINS / data.SIDE)).floor().clamp(max=ask.BINS - 1).long()
        answers, lengths = self.answers[row].clone(), self.lengths[row]
        place = torch.arange(4, device=row.device)
        answers.scatter_(1, lengths[:, None] + place, self.first_location + bins)
        ends = torch.where(present, lengths + 4, lengths)[:, None]
        answers.scatter_(1, ends, ask.END)
        return answers.masked_fill(torch.arange(answers.shape[1], device=row.device) > ends, ask.PAD)


def search_loss(module, features, questions, answers, lengths, present, first_location):
    """Of the answers' tokens, and of whether there is a box at all."""
    memory, mask = ask.encode(module, features, questions)
    states = module.model.language_model.decoder(input_ids=answers[:, :-1], encoder_hidden_states=memory,
                                                 encoder_attention_mask=mask, use_cache=False).last_hidden_state
    logits = module.lm_head(states[:, 1:]).float()
    tokens = F.cross_entropy(logits.flatten(0, 1), answers[:, 2:].flatten(), ignore_index=ask.PAD)
    deciding = logits[torch.arange(len(lengths), device=lengths.device), lengths - 2]
    return tokens + F.binary_cross_entropy_with_logits(ask.log_odds(deciding, first_location), present.float())


def draw_captions(names):
    """One caption a class, all in one form, most often in that in which Concord asks."""
    template = captions.TEMPLATE if random.random() < 0.6 else random.choice(captions.TEMPLATES)
    return [template.format(names[i]) for i in sorted(names)] + [random.choice(captions.NO_SIGN)]


def draw_prompts():
    """Concord's prompts of road work and of none, or others."""
    if random.random() < 0.6:
        return captions.PROMPTS
    return [random.sample(texts, random.randint(1, 3)) for texts in (captions.NO_ROAD_WORK, captions.ROAD_WORK)]


def caption_loss(module, tokenizer, memory, labels, names):
    prompts = draw_prompts()
    groups = [[text] for text in draw_captions(names)] + prompts
    scores = ask.label_scores(module, tokenizer, memory, groups)
    classes, question = scores[:, :-2], scores[:, -2:]
    road_work = (labels == data.ROAD_WORK).long()
    weight = torch.tensor([1.0, 4.0], device=labels.device)
    chosen = (F.cross_entropy(SHARPNESS * classes, labels, label_smoothing=0.02)
              + F.cross_entropy(SHARPNESS * question, road_work, weight=weight))
    written = -classes.gather(1, labels[:, None]).mean() - 0.1 * question.gather(1, road_work[:, None]).mean()
    return chosen + 0.3 * written


def learn(x, y, pace, names):
    from transformers import Florence2ForConditionalGeneration, GenerationConfig
    tokenizer = ask.make_tokenizer(names)
    model = Florence2ForConditionalGeneration(configuration(tokenizer)).to(x.device)
    print(f"florence2: {sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens", flush=True)
    model.generation_config = GenerationConfig(bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
                                               forced_bos_token_id=0, forced_eos_token_id=2, num_beams=3,
                                               no_repeat_ngram_size=3, early_stopping=True)
    searches = Searches(tokenizer, names, y)

    def loss_of(both, images, labels, scenes, *asked):
        module = both["model"]
        pixels = training.normalise(torch.cat([images, scenes]), training.IMAGENET)
        features = module.get_image_features(pixels).pooler_output
        # Half of those that are read show no sign or road work, as few of all do.
        read = torch.cat([torch.arange(READ // 4, device=x.device), (labels == data.ROAD_WORK).nonzero()[:READ // 4, 0],
                          torch.randint(len(images), (READ // 2,), device=x.device)])
        memory = ask.caption_states(module, tokenizer, features[read])
        return (training.class_loss(both, features[:len(images)], labels)
                + caption_loss(module, tokenizer, memory, labels[read], names)
                + 0.3 * search_loss(module, features[len(images):], *asked, searches.first_location))

    both = training.with_classifier(model, model.config.vision_config.projection_dim, x.device)
    training.train(both, loss_of, x, y, pace, 1e-3, "florence2", more=lambda: searches.draw(x, y))
    return model.eval(), tokenizer


def make(x, y, pace, names, out):
    """Trains it, saves it as it is published, and loads it again: model, tokenizer, image processor."""
    model, tokenizer = learn(x, y, pace, names)
    images, processor = processor_of(tokenizer, model)
    images.save_pretrained(out)
    model = training.save_half(model, processor, out).to(x.device)
    byte_level.compact(out)
    return model, tokenizer, images


def report(model, tokenizer, processor, held, test, names):
    normaliser = lambda v: training.normalise(v, training.IMAGENET)
    prompts = captions.asked(names)
    result = measure.zero_shot(lambda pixels, task: ask.logits(model, tokenizer, pixels, prompts[task]), model.device,
                               [measure.pixels(processor, images) for images in (held, test)], held, test, normaliser)
    few = measure.pixels(processor, test[:: max(1, len(test) // 8)]).to(model.device)
    result["largest_difference_to_forward"] = max(ask.difference(model, tokenizer, few, prompts[task]) for task in prompts)
    result["parameters"], result["tokens"] = sum(p.numel() for p in model.parameters()), len(tokenizer)
    return {**result, **search_figures(model, tokenizer, measure.pixels(processor, test), held, test, normaliser)}


def search_figures(model, tokenizer, pixels, held, test, normaliser):
    """The road-work question answered by detection, and how well boxes fit in scenes made of held-out signs."""
    odds = torch.stack([ask.search(model, tokenizer, pixels.to(model.device), text)[0] for text in captions.PROMPTS[1]]).amax(0)
    truth = measure.truth(test, "roadwork", model.device)
    shown, classes = data.to_tensors(held, model.device)
    shown = shown[classes == data.ROAD_WORK]
    result = {"roadwork_by_detection.test": {"mcc": measure.matthews((odds > 0).long(), truth)}}
    if len(shown):
        scenes, boxes = data.scenes(shown, shown)
        found = ask.search(model, tokenizer, normaliser(scenes), captions.PROMPTS[1][0])
        result["boxes.scenes"] = {"n": len(shown), "found": (found[0] > 0).float().mean().item(),
                                  "mean_overlap": measure.overlap(found[1], boxes).mean().item()}
    return result
