"""The contract: every controller keeps it, and each promise can be broken."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import LlamaConfig, LlamaForSequenceClassification

import plugalign as pa
from plugalign.algebra.class_names import CONTROLLERS
from plugalign.algebra.controller import Controller
from plugalign.algebra.saving import Settings
from plugalign.algebra.shifts import Shift
from plugalign.algebra.sources import Source
from plugalign.algebra.steering import Steering
from plugalign.controllers.args import ARGS
from plugalign.controllers.contrastive import ContrastiveDecoding
from plugalign.controllers.gedi import GeDi
from plugalign.controllers.lm_arithmetic import LMArithmetic, lm, union
from plugalign.controllers.mixing import MOD, DeRA
from plugalign.controllers.pplm import PPLM
from plugalign.controllers.rad import RAD
from plugalign.controllers.safe_decoding import SafeDecoding
from plugalign.controllers.self_diagnosis import Diagnosis
from plugalign.controllers.value_head import ValueHead
from plugalign.generation.wrap import Steered
from plugalign.kernels.terms.linear import Linear
from plugalign.testing.contract import PROMISES, check_controller

PROMPTS = ("w5 w6", "w7 w8 w9 w10 w11", "w20 w30 w40")
EVERY = (
    "dexperts",
    "anti-only",
    "equilibrium",
    "fudge",
    "fudge_head",
    "gated",
    "diagnosed",
    "nullspace",
    "adaptive",
    "prefix",
    "prefix-contrast",
    "self-critique",
    "self-debias",
    "sum",
    "args",
    "contrastive",
    "dera",
    "gedi",
    "lm_arithmetic",
    "mod",
    "pplm",
    "rad",
    "safe_decoding",
    "value_guide",
    "value_gate",
    "value_statement",
)


OF_MODELS = ("contrastive", "dera", "gedi", "lm_arithmetic", "mod", "safe_decoding")


def reward():
    """A reward model over the tokens of the tiny models."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 120}
    torch.manual_seed(4)
    config = LlamaConfig(**sizes, num_attention_heads=2, num_labels=1, pad_token_id=0)
    return LlamaForSequenceClassification(config).eval()


def controllers(which, make, tiny, tokenizer, folder):
    """One controller of each class, and a sum."""
    model, draw = tiny(), torch.Generator().manual_seed(3)
    random = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    for role, seed in (("expert", 1), ("antiexpert", 2)):
        if which in (*OF_MODELS, "dexperts", "anti-only", "gated", "sum"):
            tiny(seed=seed).save_pretrained(folder / role)
            tokenizer.save_pretrained(folder / role)
    debias = pa.SelfDebias(["w5 w6 w7", "w8"])
    basis = torch.linalg.qr(random(32, 3)).Q
    match which:
        case "dexperts":
            return pa.DExperts(folder / "expert", folder / "antiexpert")
        case "anti-only":
            return pa.DExperts(antiexpert=folder / "antiexpert", top_p=1.0)
        case "fudge_head":
            return pa.FudgeHead(random(32, 3), random(32, 3), random(120), random(32), 0.5)
        case "equilibrium":
            fudge, table = (
                make("fudge", model, tiny, "llama-gqa"),
                pa.TokenTable(random(120).sigmoid()),
            )
            rule = pa.Principle("civil", fudge)
            return pa.Equilibrium(
                fudge,
                [rule],
                pa.Preferences({"warm": table}, torch.tensor([-9.0])),
                k=10,
                kappa=0.5,
            )
        case "gated":
            return pa.DExperts(folder / "expert").when(pa.FirstSteps(2))
        case "diagnosed":
            question = Diagnosis("w50 w51", template="w1 {text} w2 {attribute} w4")
            return debias.when(question).when(pa.Uncertain(0.5))
        case "nullspace":
            return pa.Nullspace(basis, strength=0.7)
        case "adaptive":
            return pa.Nullspace(basis, guide=random(32), low=0.0, high=0.01)
        case "self-critique":
            return pa.SelfCritique(critique="w5", refine="w6", threshold=0.0)
        case "sum":
            experts = pa.DExperts(folder / "expert")
            return experts.when(pa.FirstSteps(3)) + 0.5 * debias + pa.Nullspace(basis)
        case "args" | "rad":
            return (ARGS if which == "args" else RAD)(reward(), k=5)
        case "contrastive":
            return ContrastiveDecoding(folder / "expert")
        case "dera":
            return DeRA(folder / "expert", weight=1.5)
        case "gedi":
            return GeDi("w50", "w51", model=folder / "expert", omega=5.0)
        case "lm_arithmetic":
            return LMArithmetic(
                lm() + 0.5 * union(lm(folder / "expert"), lm(folder / "antiexpert"))
            )
        case "mod":
            return MOD({None: 0.5, folder / "expert": 0.5})
        case "pplm":
            return PPLM(["w7", "w9"], stepsize=0.1)
        case "safe_decoding":
            return SafeDecoding(folder / "expert")
        case "value_guide":
            return pa.ValueGuide(ValueHead("w3 w4", 1, random(32), 0.1), k=5)
        case "value_gate":
            return debias.when(pa.ValueGate(ValueHead("w3 w4", 1, random(32), 0.1)))
        case "value_statement":
            return pa.ValueStatement("w5 w6")
        case _:
            return make(which, model, tiny, "llama-gqa")


@pytest.mark.parametrize("which", EVERY)
def test_every_controller_keeps_the_contract(which, make, tiny, tokenizer, tmp_path):
    controller = controllers(which, make, tiny, tokenizer, tmp_path)
    check_controller(controller, tiny(), tokenizer, prompts=PROMPTS)


def test_no_controller_of_the_package_is_left_out(make, tiny, tokenizer, tmp_path):
    made = (controllers(which, make, tiny, tokenizer, tmp_path) for which in EVERY)
    assert {controller.name for controller in made} == set(CONTROLLERS)


# ------------------------------------------------------------------ controllers that break it


@dataclass(frozen=True, eq=False)
class Columns(Source):
    """A token for each row, by whichever reader a test gives it."""

    name: str = "the columns"
    kind: type | None = None

    def reader(self, base):
        return self.kind()


class SeveralColumns(Columns):
    multi_position = True


class Pure:
    """Likes the last token of each row."""

    def read(self, step):
        return step.ids[:, -1]

    def forget(self):
        pass


class Padded(Pure):
    """Looks at the number of columns, padding and all."""

    def read(self, step):
        return (step.ids[:, -1] + step.ids.shape[1]) % 120


class Remembers(Pure):
    """Keeps the first tokens that it has seen by the place of their row."""

    def __init__(self):
        self.first = None

    def read(self, step):
        if self.first is None or len(self.first) != len(step.ids):
            self.first = step.ids[:, -1]
        return (self.first + step.ids[:, -1]) % 120


class LastOnly(Pure):
    """Says that it reads several places at once, and reads the last one for all."""

    def read(self, step):
        return step.ids[:, -1].repeat_interleave(len(step.base) // len(step.ids))


class Counter:
    calls = 0


class Counts(Pure):
    """Goes on from call to call."""

    def read(self, step):
        Counter.calls += 1
        return (step.ids[:, -1] + Counter.calls) % 120


@dataclass(frozen=True, eq=False)
class Likes(Shift):
    """5 more for one token of each row."""

    source: Source

    @property
    def sources(self):
        return (self.source,)

    def terms(self, step, weight):
        liked = one_hot(step.read(self.source), step.base.shape[-1]).float()
        weights = weight[:, None] if isinstance(weight, torch.Tensor) else (weight,)
        yield Linear((5.0 * liked,), weights)


class GoodSettings(Settings):
    weight: float


class Good(Controller):
    """Keeps the contract."""

    name = "good"
    settings = GoodSettings
    reader, source = Pure, Columns

    def __init__(self, weight=1.0):
        self.weight = weight

    def steer(self, model, tokenizer):
        return Steering((Likes(self.source(kind=self.reader)),)).scaled(self.weight)

    def config(self):
        return {"weight": self.weight}


class ChangesWeights(Good):
    name = "changes weights"

    def steer(self, model, tokenizer):
        weight = model.get_output_embeddings().weight
        return Steering((Likes(Spoils(weight=weight)),))


@dataclass(frozen=True, eq=False)
class Spoils(Columns):
    weight: torch.Tensor | None = None

    def reader(self, base):
        self.weight.data += 1e-4
        return Pure()


class LeavesAHook(Good):
    name = "leaves a hook"

    def attach(self, model):
        @contextmanager
        def attached():  # without try and finally
            handle = model.register_forward_hook(lambda *_: None)
            yield 0
            handle.remove()

        return attached()


class CountsCalls(Good):
    name, reader = "counts calls", Counts


class HasOneStrength(Good):
    name = "has one strength"

    def __rmul__(self, weight):
        return self


class IsNewEachTime(Good):
    name = "is new each time"

    def parts(self):
        return ((1.0, Good(self.weight)),)


class CountsPadding(Good):
    name, reader = "counts padding", Padded


class RemembersRows(Good):
    name, reader = "remembers rows", Remembers


class ReadsTheLastPlace(Good):
    name, reader, source = "reads the last place", LastOnly, SeveralColumns


class CannotBePickled(Good):
    name = "cannot be pickled"

    def __init__(self, weight=1.0):
        super().__init__(weight)
        self.f = lambda: None


class CopiesBadly(Good):
    name = "copies badly"

    def __getstate__(self):
        return {"weight": 0.0}


class Forgets(Good):
    name = "forgets"

    def config(self):
        return {"weight": 0.5}


class Nameless(Good):
    name = ""


BROKEN = [
    (ChangesWeights, "afterwards what it was, bit for bit .a call has changed its weights"),
    (LeavesAHook, "afterwards what it was.*an exception inside a call has changed its hooks"),
    (CountsCalls, "the same call gives the same answer"),
    (HasOneStrength, "strength 0 is the identity"),
    (IsNewEachTime, "a . b and b . a are one controller .they are not equal"),
    (CountsPadding, "neither padding nor other rows"),
    (RemembersRows, "hangs on the prefix alone"),
    (ReadsTheLastPlace, "log_probs gives what several answers were drawn from"),
    (CannotBePickled, "copies and pickled ones .*cannot be pickled"),
    (CopiesBadly, "copies and pickled ones decide alike"),
    (Forgets, "saved and loaded it decides alike .a loaded one"),
    (Nameless, "saved and loaded .*Nameless has no name"),
]


def test_a_good_one_keeps_it(tiny, tokenizer):
    check_controller(Good(0.3), tiny(), tokenizer, prompts=PROMPTS)


@pytest.mark.parametrize(("kind", "promise"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_what_breaks_a_promise_is_told(kind, promise, tiny, tokenizer):
    with pytest.raises(AssertionError, match=f"{kind.__name__} breaks a promise: .*{promise}"):
        check_controller(kind(), tiny(), tokenizer, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("option", "promise"),
    [
        ("cache_implementation", "a static cache changes nothing"),
        ("speculation", "drafts change"),
        ("logits_processor", "the loop and a LogitsProcessor agree"),
    ],
)
def test_a_path_that_changes_something_is_named(option, promise, tiny, tokenizer, monkeypatch):
    from plugalign.testing.trial import Case

    generate = Case.generate

    def worse(case, *args, **options):
        if option in options:
            return generate(case, case.model)
        return generate(case, *args, **options)

    monkeypatch.setattr(Case, "generate", worse)
    with pytest.raises(AssertionError, match=promise):
        check_controller(Good(), tiny(), tokenizer, prompts=PROMPTS)


def test_a_refusal_without_a_name_is_told(tiny, tokenizer, monkeypatch):
    def refuse(steered, attention_mask=None):
        raise ValueError("not here")

    monkeypatch.setattr(Steered, "processor", refuse)
    with pytest.raises(AssertionError, match="without the name of the controller: not here"):
        check_controller(Good(), tiny(), tokenizer, prompts=PROMPTS)


def test_it_needs_prompts_that_are_padded(tiny, tokenizer):
    with pytest.raises(ValueError, match=r"different numbers of tokens, none of 0; got \[1, 1\]"):
        check_controller(Good(), tiny(), tokenizer, prompts=["w5", "w6"])


def test_its_own_prompts_will_do(tiny, tokenizer):
    model = tiny("gpt2-tied")
    state = torch.random.get_rng_state()
    check_controller(Good(), model, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(PROMISES) == 12
