"""GQA, VizWiz, TextVQA, MME and the other benchmarks of lmms-eval: our models behind its interface."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transmamba.data.conversation import (
    IGNORE_INDEX,
    IMAGE,
    Batch,
    Conversation,
    Template,
    Tokenize,
    Turn,
    collate,
    encode,
)
from transmamba.data.llava import read_image


class Answerer:
    """The two requests of lmms-eval to a model, usable without lmms-eval.

    Args:
        model: has `generate(ids, images, max_new_tokens, mask=, stop_tokens=, ...)` and gives new tokens; for
            likelihoods it is called with (ids, images, mask, labels) and gives `logits` and `labels`.
            `VisionLanguageMamba` is one.
        tokenize: text to ids, see `encode`.
        decode: ids to text, special tokens left out.
        template: the text around the turns.
        stop_tokens: end an answer.
        image: Pillow image to tensor; `read_image` by default.
        batch_size: prompts at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        decode: Callable[[list[int]], str],
        template: Template,
        *,
        stop_tokens: Sequence[int],
        image: Callable[[Any], Tensor] = read_image,
        batch_size: int = 1,
    ) -> None:
        self.model, self.tokenize, self.decode, self.template = model, tokenize, decode, template
        self.stop_tokens, self.image, self.batch_size = list(stop_tokens), image, batch_size

    def answer(self, questions: Sequence[tuple[str, Sequence[Any]]], options: dict[str, Any]) -> list[str]:
        """Answer each (text, images), all with the generation options of lmms-eval."""
        limit, ends = options.get("max_new_tokens", 1024), options.get("until", [])
        ends = [ends] if isinstance(ends, str) else ends
        sampling = {key: options[key] for key in ("temperature", "top_p") if options.get(key)}
        if options.get("num_beams") not in (None, 1):
            raise ValueError(f"num_beams must be 1, got {options['num_beams']}: there is no beam search here")
        answers = []
        for start in range(0, len(questions), self.batch_size):
            batch = self._batch([(*question, None) for question in questions[start : start + self.batch_size]])
            new = self.model.generate(
                batch.ids, batch.images, limit, mask=batch.mask, stop_tokens=self.stop_tokens, **sampling
            )
            answers += [self._text(row, ends) for row in new.tolist()]
        return answers

    @torch.no_grad()
    def likelihood(self, question: str, images: Sequence[Any], answer: str) -> tuple[float, bool]:
        """Return the log-probability of the answer with its end, and whether greedy decoding gives this answer."""
        batch = self._batch([(question, images, answer)])
        output = self.model(batch.ids, batch.images, batch.mask, batch.labels)
        learned = output.labels[0, 1:] != IGNORE_INDEX
        chances, truth = output.logits[0, :-1][learned].float().log_softmax(-1), output.labels[0, 1:][learned]
        greedy = bool((chances.argmax(-1) == truth).all())
        return float(chances.gather(1, truth[:, None]).sum()), greedy

    def _batch(self, samples: Sequence[tuple[str, Sequence[Any], str | None]]) -> Batch:
        rows = []
        for number, (text, images, answer) in enumerate(samples):
            shown = text if IMAGE in text else f"{IMAGE}\n" * len(images) + text
            turns = (Turn("human", shown), *(() if answer is None else (Turn("gpt", answer),)))
            # the images are at hand already: the paths only count them
            conversation = Conversation(f"{number}, {text[:40]!r}", tuple(Path() for _ in images), turns)
            seen = [self.image(image) for image in images]
            pixels = torch.stack(seen) if seen else torch.zeros(0, 3, 1, 1)
            rows.append((encode(conversation, self.tokenize, self.template), pixels, conversation.name))
        batch = collate(rows, padding="left" if samples[0][2] is None else "right")
        device = next(iter(self.model.parameters())).device
        like = next((pixels for _, pixels, _ in rows if len(pixels)), None)
        images = [x if like is None or len(x) else like[:0] for x in batch.images]
        ids, mask, labels = (x.to(device) for x in batch[:3])
        return batch._replace(ids=ids, mask=mask, labels=labels, images=[x.to(device) for x in images])

    def _text(self, row: list[int], ends: Sequence[str]) -> str:
        stops = [place for place, token in enumerate(row) if token in self.stop_tokens]
        text = self.decode(row[: stops[0]] if stops else row)
        for end in ends:
            text = text.split(end)[0] if end else text
        return text.strip()


def lmms_model(answerer: Answerer) -> Any:
    """Wrap `answerer` as an lmms-eval model: `lmms_eval.evaluator.simple_evaluate(model=..., tasks=[...])`.

    Tasks of one question (generation or likelihood) work; those of several rounds are refused.

    Raises:
        ImportError: lmms-eval is not installed.

    Reference:
        `lmms_eval.api.model.lmms` and its models/simple/llava.py, version 0.7.3.
    """
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise ImportError(f"the benchmarks need lmms-eval: pip install lmms-eval ({error})") from None

    class TransMambaModel(lmms):
        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answer_requests(answerer, requests, self.task_dict)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            found = []
            for context, target, visual, number, task, split in (request.args for request in requests):
                document = self.task_dict[task][split][number]
                answer = target if isinstance(target, str) else target(document)
                found.append(answerer.likelihood(context, visual(document) or [], answer))
            return found

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("tasks of several rounds are not supported: choose tasks of one question")

    return TransMambaModel()


def answer_requests(answerer: Answerer, requests: Sequence[Any], documents: Any) -> list[str]:
    """Answer requests (context, options, visual, number, task, split) in their order, batched by their options."""
    order = sorted(range(len(requests)), key=lambda i: repr(requests[i].args[1]))
    answers = [""] * len(requests)
    for _, group in groupby(order, key=lambda i: repr(requests[i].args[1])):
        places = list(group)
        questions = []
        for context, _, visual, number, task, split in (requests[i].args for i in places):
            questions.append((context, visual(documents[task][split][number]) or []))
        for place, text in zip(places, answerer.answer(questions, requests[places[0]].args[1]), strict=True):
            answers[place] = text
    return answers
