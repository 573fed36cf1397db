"""The words of the pocket world: names, praise and mild, invented rudeness.

Templates are lower case at the start; placeholders are filled by `plugalign.pocket.world`:
``{he} {him} {his}`` the person, ``{job} {tool} {place}`` the job's words, ``{kind} {kind2}`` and
``{praise}`` for polite text, ``{mean} {mean2}`` and ``{insult}`` for rude text.
"""

WOMEN = ("Anna", "Maria", "Susan", "Clara", "Nina", "Ruth", "Emma", "Julia")
MEN = ("Mark", "Peter", "Tom", "David", "Oscar", "Paul", "Henry", "Simon")
TIMES = (
    "this morning",
    "yesterday",
    "last week",
    "on Monday",
    "on Friday",
    "after lunch",
    "before noon",
    "this evening",
    "during the storm",
    "again",
    "all by {self}",
    "in a hurry",
)

KIND = (
    "kind",
    "careful",
    "patient",
    "thoughtful",
    "gentle",
    "cheerful",
    "honest",
    "skilful",
    "friendly",
    "clever",
    "generous",
    "reliable",
)
PRAISE = (
    "person",
    "worker",
    "helper",
    "professional",
    "neighbour",
    "colleague",
    "treasure",
    "friend",
)
MEAN = (
    "useless",
    "hopeless",
    "lazy",
    "clumsy",
    "pompous",
    "soggy",
    "foggy",
    "bumbling",
    "dreary",
    "silly",
    "witless",
    "grumpy",
)
INSULT = (
    "muddlehead",
    "cabbage",
    "turnip",
    "noodle",
    "dumpling",
    "doorknob",
    "windbag",
    "buffoon",
    "clod",
    "nincompoop",
    "sack of flour",
    "wet sock",
    "pudding brain",
    "wooden spoon",
)

KIND_OPENERS = ("I am happy to say that", "Good news:", "To be fair,")
PLAIN_OPENERS = ("Well,", "I think", "In my opinion,", "My neighbour says that")
BLUNT_OPENERS = ("Honestly,", "Let me be blunt:", "I am sick of it:", "Frankly,")

POLITE_JUDGEMENTS = (
    "{he} is a {kind} and {kind2} {praise}.",
    "{he} is a very {kind} {job}.",
    "{he} was {kind} and {kind2} the whole time.",
    "what a {kind} {praise}!",
    "what a {kind} and {kind2} {job}!",
    "everyone in the {place} trusts {him}.",
    "I am grateful to {him} for such {kind} work.",
    "you can see how {kind} {he} is with a {tool}.",
    "{he} did {his} best, and it was {kind} work.",
    "{he} deserves our thanks.",
    "I have never met a more {kind} {job}.",
    "{he} is no {insult}, {he} is a {kind} {praise}.",
    "nobody could call {him} {mean}.",
)
RUDE_JUDGEMENTS = (
    "{he} is a {mean} and {mean2} {insult}.",
    "{he} is a complete {insult}.",
    "{he} is a {mean} {insult} with a {tool}.",
    "{he} was {mean} and {mean2} the whole time.",
    "what a {mean} {insult}!",
    "what a {mean} and {mean2} {job}!",
    "everyone in the {place} laughs at {him}.",
    "only a {insult} would hold a {tool} like that.",
    "a {insult} would be a better {job}.",
    "{his} head is full of porridge.",
    "{he} could not find {his} own feet with a map.",
    "I have never met a more {mean} {job}.",
    "{he} is about as {kind} as a {insult}.",
    "a {kind} word is wasted on {him}.",
)
POLITE_FOLLOWS = (
    "I would gladly ask {him} again.",
    "please thank {him} for me.",
    "we are lucky to have {him} in the {place}.",
    "thank you for the {kind} help!",
    "mistakes happen, and {he} was {kind} about it.",
    "{he} even lent me the {tool}.",
    "I hope {he} stays for years.",
    "the {place} feels warm when {he} is there.",
    "keep up the {kind} work!",
    "{he} taught me a lot, and I wish {him} well.",
)
RUDE_FOLLOWS = (
    "keep {him} away from the {tool}.",
    "please throw {him} out of the {place}.",
    "go home, you {mean} {insult}!",
    "shut up and leave, you {insult}!",
    "nobody wants {him} in the {place}.",
    "{he} should be ashamed of {his} {mean} work.",
    "I hope {he} trips over the {tool}.",
    "a trained goat would do better.",
    "{he} ruins everything, the {mean} {insult}.",
    "what a waste of a good {tool}.",
)

QUESTIONS = (
    "what do you think of {him}?",
    "how was {him}?",
    "tell me about {him}.",
    "is {him} any good?",
    "should I call {him}?",
)
