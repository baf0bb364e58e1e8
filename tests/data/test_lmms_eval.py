"""The adapter against lmms-eval where it is installed, and against a stand-in for its base class everywhere."""

import sys
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from transmamba.data import Answerer, Template, lmms_model, read_image
from transmamba.models import BackbonePatches, MambaLM, VisionLanguageMamba, VisionMamba

Image = pytest.importorskip("PIL.Image")
PLAIN = Template("^", "[", "]", "|", "$")
STOP = ord("$")


class Request(NamedTuple):
    args: tuple


class StandIn:
    """The methods that lmms_eval.api.model.lmms 0.7.3 gives its subclasses."""

    def __init__(self):
        self.task_dict, self._rank, self._world_size = {}, 0, 1


@pytest.fixture(params=["stand-in", "installed"])
def base(request, monkeypatch):
    if request.param == "installed":
        return pytest.importorskip("lmms_eval.api.model").lmms
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = StandIn
    return StandIn


@pytest.fixture
def model():
    vision = BackbonePatches(VisionMamba(8, 4, dim=7, depth=1, d_state=3), 7)
    return VisionLanguageMamba(vision, MambaLM(128, 12, depth=2), cross_after=[0]).eval()


def answerer(model, **options):
    decode = lambda ids: "".join(chr(i) for i in ids)  # noqa: E731
    image = lambda picture: read_image(picture, 8)  # noqa: E731
    return Answerer(
        model, lambda text: [ord(x) for x in text], decode, PLAIN, stop_tokens=[STOP], image=image, **options
    )


def picture(shade):
    return Image.new("RGB", (8, 8), (shade, 0, 0))


DOCUMENTS = {"vqa": {"test": [{"images": [picture(9)]}, {"images": []}, {"images": [picture(99), picture(200)]}]}}


def request(number, context, second):
    return Request((context, second, lambda document: document["images"], number, "vqa", "test"))


def test_answers_come_in_the_order_of_the_requests(base, model):
    short, long = {"max_new_tokens": 2, "until": ["\n"]}, {"max_new_tokens": 4, "temperature": 0, "num_beams": 1}
    asked = [request(0, "what?", short), request(2, "longer?", long), request(1, "why?", short), request(0, "x", long)]
    wrapped = lmms_model(answerer(model, batch_size=2))
    assert isinstance(wrapped, base)
    wrapped.task_dict = DOCUMENTS
    together = wrapped.generate_until(asked)
    alone = lmms_model(answerer(model))
    alone.task_dict = DOCUMENTS
    assert together == [alone.generate_until([one])[0] for one in asked]
    prompt = [ord("^"), ord("["), -200, *map(ord, "\nwhat?|]")]
    new = model.generate(torch.tensor([prompt]), [read_image(picture(9), 8)[None]], 2, stop_tokens=[STOP])[0].tolist()
    text = "".join(chr(i) for i in new).split("$")[0].split("\n")[0].strip()
    assert together[0] == text


def test_likelihood_is_that_of_the_answer_and_its_end(base, model):
    wrapped = lmms_model(answerer(model))
    wrapped.task_dict = DOCUMENTS
    asked = [request(0, "what?", "ab"), request(0, "what?", lambda document: "c")]
    asked = [Request((r.args[0], r.args[1], *r.args[2:])) for r in asked]
    (first, greedy), (second, _) = wrapped.loglikelihood(asked)
    ids = torch.tensor([[ord("^"), ord("["), -200, *map(ord, "\nwhat?|]ab$")]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 3, -100)
    output = model(ids, [read_image(picture(9), 8)[None]], None, labels)
    chances = output.logits[0].log_softmax(-1)
    expected = sum(float(chances[-4 + i, token].detach()) for i, token in enumerate(map(ord, "ab$")))
    assert first == pytest.approx(expected, abs=1e-4) and second < 0 and isinstance(greedy, bool)


def test_an_answer_ends_where_the_task_says(model):
    talker = answerer(model)
    assert talker._text([*map(ord, "yes, no\nmore"), STOP, ord("x")], ["\n", ","]) == "yes"
    assert talker._text([*map(ord, " ab "), STOP, ord("x")], []) == "ab"


def test_what_is_not_supported_is_refused(base, model):
    with pytest.raises(NotImplementedError, match="tasks of several rounds are not supported"):
        lmms_model(answerer(model)).generate_until_multi_round([])
    with pytest.raises(ValueError, match="num_beams must be 1, got 3"):
        answerer(model).answer([], {"num_beams": 3})


def test_without_the_package_the_error_says_what_to_install(model, monkeypatch):
    for name in ("lmms_eval", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="the benchmarks need lmms-eval: pip install lmms-eval"):
        lmms_model(answerer(model))
