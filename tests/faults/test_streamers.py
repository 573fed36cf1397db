"""A streamer ends with its call, whatever happens: who reads from it does not wait for ever."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

import plugalign as pa


class Counts(BaseStreamer):
    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.ended += 1


def fails(input_ids, scores):
    if input_ids.shape[1] == 9:
        raise KeyboardInterrupt
    return scores


REFUSED = {
    "a mask": {"attention_mask": torch.ones(1, 2)},
    "a prompt": {"input_ids": None},
    "a setting": {"temperature": -1.0, "do_sample": True},
    "beams": {"num_beams": 2},
    "a capture": {"capture": True},
    "a switch": {"capture": "perhaps"},
    "a speculation": {"speculation": "base"},
    "an unknown argument": {"nonsense": 1},
    "a processor": {"logits_processor": [fails]},
}


@pytest.mark.parametrize("case", REFUSED)
def test_any_error_ends_the_streamer(case, wrapped, prompts):
    steered, streamer = wrapped("self-debias"), Counts()
    with pytest.raises((ValueError, TypeError, KeyboardInterrupt)):
        steered.generate(
            **{**prompts(), "max_new_tokens": 5, "streamer": streamer, **REFUSED[case]}
        )
    assert streamer.ended == 1


def test_a_call_that_ends_well_ends_it_once(path, wrapped, prompts):
    streamer = Counts()
    wrapped("self-debias").generate(**prompts(rows=1), max_new_tokens=3, streamer=streamer)
    assert streamer.ended == 1 and len(streamer.got) == 1 + 3


def test_a_reader_in_another_thread_goes_on(wrapped, tokenizer, prompts):
    """Answers that are rewritten afterwards are not streamed."""
    steered, streamer = wrapped("critique"), TextIteratorStreamer(tokenizer, timeout=60)
    caught = []

    def work():
        try:
            steered.generate(**prompts(rows=1), max_new_tokens=3, streamer=streamer)
        except ValueError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert "".join(streamer) == ""
    thread.join()
    assert caught[0].startswith("streamer belongs to a draft")


def test_the_first_error_is_the_one_to_see(wrapped, prompts):
    class Broken(Counts):
        def end(self):
            raise OSError("closed")

    with pytest.raises(ValueError, match="one token") as caught:
        batch = {"input_ids": torch.empty(1, 0, dtype=torch.long), "streamer": Broken()}
        wrapped("nothing").generate(**batch)
    assert caught.value.__notes__ == ["the streamer Broken raised at its end: OSError('closed')"]


def test_what_has_no_end_is_refused(wrapped, prompts):
    with pytest.raises(TypeError, match=r"needs put\(\) and end\(\), got list"):
        wrapped("nothing").generate(**prompts(), streamer=[])


def test_a_streamer_is_no_reason_to_hide_an_argument(tiny, tokenizer, prompts):
    streamer = Counts()
    with pytest.raises(TypeError, match=r"trace must be a plugalign\.Trace"):
        pa.wrap(tiny(), tokenizer, pa.SelfDebias(["w5"])).generate(
            **prompts(), streamer=streamer, trace={}
        )
    assert streamer.ended == 1
