"""Makes a synthetic data set for retrieval-augmented question answering, about entities that no model can know.

Each sample shows three short passages about three entities of one kind, and asks for an attribute of one entity. The
other two passages state the same attribute of another entity, so that a model has to read the answer and cannot guess
it from its type. A fifth of the questions have no answer in the passages.

Training and test share no entity. No training question has the third wording.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

UNANSWERABLE = "I don't know"
UNANSWERABLE_SHARE = 0.2
SECOND_ATTRIBUTE_SHARE = 0.3
PASSAGES = 3

Values = Callable[[random.Random], str]


@dataclass(frozen=True)
class Sample:
    """A question with its passages, its answer, and what a test needs to check the sample."""

    prompt: str
    answer: str
    names: tuple[str, ...]
    answerable: bool
    held_out_wording: bool

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


@dataclass(frozen=True)
class Attribute:
    statements: tuple[str, str]
    questions: tuple[str, str, str]
    values: Values


@dataclass(frozen=True)
class Kind:
    name: Values
    introductions: tuple[str, str]
    attributes: tuple[Attribute, ...]


ONSETS = "b br c d dr f g gr h k l m n p r s st t th tr v w z".split()
VOWELS = "a e i o u ae ea or ar en".split()
CODAS = "l n r s m nd rk th x v".split()


def word(rng: random.Random, syllables: int = 2) -> str:
    """An invented word, capitalised: "Thenbrar", "Kolstea"."""
    parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)]
    return ("".join(parts) + rng.choice(CODAS)).capitalize()


def one_of(*options: str) -> Values:
    return lambda rng: rng.choice(options)


def named(template: str) -> Values:
    return lambda rng: template.format(word(rng))


def number(low: int, high: int, unit: str = "") -> Values:
    return lambda rng: f"{rng.randint(low, high)}{unit}"


def person(rng: random.Random) -> str:
    first = rng.choice("Ana Boris Clara Daniel Elif Farid Greta Hugo Ines Jonas Keiko Liam Maya Nora Omar".split())
    return f"{first} {word(rng)}"


KINDS = (
    Kind(
        name=lambda rng: f"{word(rng)} {rng.choice(('Works', 'Systems', 'Foods', 'Textiles', 'Optics'))}",
        introductions=("{} is a company.", "One of the firms here is {}."),
        attributes=(
            Attribute(
                ("It was founded by {}.", "Its founder, {}, began in a rented garage."),
                ("Who founded {}?", "What is the name of the founder of {}?", "Which person started {}?"),
                person,
            ),
            Attribute(
                ("The company started in {}.", "It has been in business since {}."),
                ("In which year did {} start?", "When was {} founded?", "Since what year has {} existed?"),
                number(1820, 1995),
            ),
            Attribute(
                ("Its head office is in {}.", "It is run from an office in {}."),
                ("Where is the head office of {}?", "In which town is {} based?", "From which place is {} run?"),
                named("{}ton"),
            ),
        ),
    ),
    Kind(
        name=named("{}by"),
        introductions=("{} is a small town.", "The market here is held in {}."),
        attributes=(
            Attribute(
                ("It has {} inhabitants.", "At the last count {} people lived there."),
                ("How many people live in {}?", "What is the population of {}?", "How many inhabitants has {}?"),
                number(1100, 9800),
            ),
            Attribute(
                ("The river {} runs through it.", "It was built on the banks of the river {}."),
                ("Which river runs through {}?", "What river does {} lie on?", "Name the river at {}."),
                named("{}a"),
            ),
            Attribute(
                ("Its farmers mostly grow {}.", "The fields around it are planted with {}."),
                ("What do the farmers of {} grow?", "Which crop is grown in {}?", "What is planted around {}?"),
                one_of("barley", "hops", "flax", "lentils", "saffron", "rye", "cherries", "walnuts", "mustard"),
            ),
        ),
    ),
    Kind(
        name=lambda rng: f"{word(rng)} {rng.choice(('Hall', 'Tower', 'House', 'Bridge', 'Station'))}",
        introductions=("{} is a listed building.", "Visitors often photograph {}."),
        attributes=(
            Attribute(
                ("It was designed by {}.", "The plans were drawn by the architect {}."),
                ("Who designed {}?", "Who was the architect of {}?", "Who drew the plans of {}?"),
                person,
            ),
            Attribute(
                ("The walls are made of {}.", "It was built of {}."),
                ("What is {} made of?", "Which material was used for {}?", "What are the walls of {} made of?"),
                one_of("granite", "red brick", "limestone", "oak", "slate", "sandstone", "concrete", "marble"),
            ),
            Attribute(
                ("It is {} tall.", "From the ground to the top it measures {}."),
                ("How tall is {}?", "What is the height of {}?", "What does {} measure from the ground to the top?"),
                number(12, 140, " metres"),
            ),
        ),
    ),
    Kind(
        name=lambda rng: f"{word(rng, 1)} {rng.choice(('warbler', 'finch', 'owl', 'heron', 'plover'))}",
        introductions=("The {} is a shy bird.", "Few people have seen the {}."),
        attributes=(
            Attribute(
                ("It lives on the island of {}.", "It breeds only on the island of {}."),
                ("Where does the {} live?", "On which island is the {} found?", "What island does the {} breed on?"),
                named("{}ey"),
            ),
            Attribute(
                ("Its eggs are {}.", "It lays eggs of a {} colour."),
                (
                    "What colour are the eggs of the {}?",
                    "Which colour has an egg of the {}?",
                    "How are the {}'s eggs coloured?",
                ),
                one_of("pale blue", "white", "dark green", "speckled brown", "grey", "cream", "pink"),
            ),
            Attribute(
                ("It was first described by {}.", "The first description of it was written by {}."),
                (
                    "Who first described the {}?",
                    "Who wrote the first description of the {}?",
                    "Who described the {} before anyone else?",
                ),
                person,
            ),
        ),
    ),
)


def samples(
    rng: random.Random, count: int, taken: set[str], wordings: Sequence[int], unrelated: int = 0
) -> Iterator[Sample]:
    """``count`` samples in random order, a fifth of them without an answer; ``taken`` names are avoided and added to.

    Args:
        wordings: which of each question's wordings are in use: the first two in training, all three in the test.
        unrelated: further passages in each sample, about other entities of any kind; they make the context longer.
    """
    unanswerable = round(count * UNANSWERABLE_SHARE)
    order = [True] * (count - unanswerable) + [False] * unanswerable
    rng.shuffle(order)
    for index, answerable in enumerate(order):
        yield sample(rng, KINDS[index % len(KINDS)], answerable, taken, rng.choice(wordings), unrelated)


def sample(
    rng: random.Random, kind: Kind, answerable: bool, taken: set[str], wording: int, unrelated: int = 0
) -> Sample:
    names = [fresh(rng, kind.name, taken) for _ in range(PASSAGES)]
    asked = rng.choice(kind.attributes)
    others = [attribute for attribute in kind.attributes if attribute is not asked]
    given: set[str] = set()  # a distractor with the right value would be no distractor
    values = [fresh(rng, asked.values, given) for _ in names]

    passages = []
    for position, (name, value) in enumerate(zip(names, values)):
        told = [(asked, value)] if position > 0 or answerable else []
        if not told or rng.random() < SECOND_ATTRIBUTE_SHARE:
            second = rng.choice(others)
            told.append((second, second.values(rng)))
        rng.shuffle(told)
        passages.append(passage(rng, kind, name, told))
    rng.shuffle(passages)
    # draws and names of its own, so that the questions are the same whatever the length of the context
    further, avoided = random.Random(names[0]), set(taken)
    for _ in range(unrelated):
        passages.insert(further.randint(0, len(passages)), other_passage(further, avoided))

    documents = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    question = asked.questions[wording].format(names[0])
    return Sample(
        prompt=f'Documents:\n{documents}\n\nAnswer from the documents, or say "{UNANSWERABLE}".\nQuestion: {question}',
        answer=values[0] if answerable else UNANSWERABLE,
        names=tuple(names),
        answerable=answerable,
        held_out_wording=wording == 2,
    )


def passage(rng: random.Random, kind: Kind, name: str, told: Sequence[tuple[Attribute, str]]) -> str:
    """A passage that introduces an entity and states the given attributes with their values."""
    sentences = [rng.choice(kind.introductions).format(name)]
    sentences += [rng.choice(attribute.statements).format(text) for attribute, text in told]
    return " ".join(sentences)


def other_passage(rng: random.Random, taken: set[str]) -> str:
    """A passage about an entity that no question is about."""
    kind = rng.choice(KINDS)
    attribute = rng.choice(kind.attributes)
    return passage(rng, kind, fresh(rng, kind.name, taken), [(attribute, attribute.values(rng))])


def fresh(rng: random.Random, values: Values, taken: set[str]) -> str:
    """A value that is not in ``taken``, which then holds it."""
    while True:
        value = values(rng)
        if value not in taken:
            taken.add(value)
            return value


def generate(train: int, test: int, seed: int = 0) -> tuple[list[Sample], list[Sample]]:
    """Training and test samples with disjoint entities; the same for the same arguments, on every Python."""
    taken: set[str] = set()
    held_out = list(samples(random.Random(seed + 1), test, taken, range(3)))
    return list(samples(random.Random(seed), train, taken, range(2))), held_out


def write(directory: Path, train: int, test: int, seed: int = 0) -> tuple[Path, Path]:
    """Write ``train.jsonl`` (rows with ``messages``) and ``test.jsonl`` (rows of :class:`Sample`)."""
    training, held_out = generate(train, test, seed)
    files = directory / "train.jsonl", directory / "test.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{"messages": one.messages()} for one in training], [asdict(one) for one in held_out]
    for file, lines in zip(files, rows):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return files
