"""A server that works in steps, with a token budget, chunked prefill and a shared prefix cache.

The assumptions, and whether they err for pruning or against it:

- Requests arrive at random (Poisson). Each has one picture and one question, and all have equally
  many text and answer tokens. Unknown.
- The pictures that are asked about and the categories of their questions are drawn uniformly.
  Against: questions about a picture are often of one kind, and where not all prefixes fit, some
  pictures are asked about more than others, which a cache serves better.
- A step gives each running request one token. What is left of the token budget goes to prompts in
  order of arrival, the last of which may be continued in the next step. A picture is encoded when
  its prompt begins. The encoder has no budget beside that. Unknown.
- Stages add up, and none run at the same time. For, a little: a step with tokens and prompts pays
  two fixed costs, and unpruned prompts take more steps. Against: what a running request costs,
  where pruning saves less, is not hidden behind the prefill.
- A request starts if the memory holds its prompt and its whole answer, and is never preempted.
  Against: the answer is a larger part of a pruned request.
- Requests with the same picture share its prefix, and with pruning those of the same category too.
  Prefixes without a running request stay until their place is needed, the one used last the
  longest. Blocks have one token. A little for pruning: whole blocks would waste more of its memory.
- The text before the picture is part of each prefix, although all have it in common. Against: it is
  a larger part of a pruned prefix.
- There is no other cache, such as one of encoded pictures. Against, where not all prefixes fit.
- After a hit, the tokens of the question attend to the prefix for nothing. Against.
- The time to read, resize and route requests, to send answers, and to schedule is left out. For:
  pruning does not shorten it.
- Answers are as long and as good with pruning as without. For: quality is not simulated.
- Costs are linear in pictures, tokens and requests, and were measured for at most as many requests
  as the rows have. Beyond that, unknown. Selecting tokens is part of encoding for unpruned pictures
  too, since the fit does not tell them apart. For, a little.
"""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, quantiles

from serving_costs import Costs

Key = tuple[int, int]
"""Picture and category; the category is 0 where nothing is pruned."""


@dataclass(frozen=True)
class Load:
    """The requests that arrive, what the server has for them, and which of them are measured."""

    memory: float
    """Bytes for keys and values."""
    rate: float | None = None
    """Requests a second; None: one is always waiting."""
    batch: int = 32
    """The most requests that run at the same time."""
    step_tokens: int = 2048
    """The most tokens of one step."""
    visual_tokens: int = 576
    text_before: int = 40
    text_after: int = 24
    answer: int = 32
    pictures: int = 1
    """Pictures that are asked about in the same time."""
    asked: int | None = 1
    """Questions about a picture, after which another takes its place; None: without end."""
    categories: int = 5
    warm_up: int = 2000
    """Requests before the measured ones."""
    requests: int = 4000
    """Requests that are measured."""

    def __post_init__(self) -> None:
        for name in ("memory", "rate", "batch", "answer", "pictures", "asked", "categories"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.warm_up < 0:
            raise ValueError(f"warm_up must not be negative, got {self.warm_up}")
        if self.requests <= self.batch:  # else all of them may end in one step
            raise ValueError(f"requests must be above batch, {self.batch}, got {self.requests}")
        if self.step_tokens <= self.batch:
            raise ValueError(
                f"step_tokens must be above batch, {self.batch}, got {self.step_tokens}"
            )


@dataclass(frozen=True)
class Served:
    """The measures of one simulation. Requests of the warm-up count in none of them."""

    requests_per_second: float
    drift: float
    """By which fraction the first half of the requests took longer than half of the time."""
    first_token_mean: float
    """Seconds from arrival."""
    first_token_p95: float
    latency_mean: float
    """Seconds from arrival to the last token."""
    hits: float
    """The fraction of requests whose prefix was there."""
    peak_bytes: float
    """Keys and values of running requests, with the prefixes that they use."""


@dataclass
class _Request:
    arrival: float
    key: Key
    prompt: int = 0
    """Tokens that are left to prefill."""
    hit: bool = False
    first: float = 0.0
    last: float = 0.0


class _Memory:
    """Room for tokens of requests, and for prefixes that they share."""

    def __init__(self, tokens: int, prefix: int) -> None:
        self.tokens = self.free = tokens
        self.prefix = prefix
        self.users: dict[Key, int] = {}
        """The running requests of each prefix that is there."""
        self.unused: OrderedDict[Key, None] = OrderedDict()

    @property
    def used(self) -> int:
        return self.tokens - self.free - len(self.unused) * self.prefix

    def take(self, key: Key, own: int) -> bool:
        """Make room for a request with ``own`` tokens beside its prefix, if there can be."""
        need = own if key in self.users else own + self.prefix
        droppable = len(self.unused) - (key in self.unused)
        if need > self.free + droppable * self.prefix:
            return False
        self.unused.pop(key, None)
        while need > self.free:
            dropped, _ = self.unused.popitem(last=False)
            del self.users[dropped]
            self.free += self.prefix
        self.free -= need
        self.users[key] = self.users.get(key, 0) + 1
        return True

    def leave(self, key: Key, own: int) -> None:
        self.free += own
        self.users[key] -= 1
        if self.users[key] == 0:
            self.unused[key] = None


def _arrivals(load: Load, pruned: bool, seed: int) -> Iterator[_Request]:
    """The requests of a load. Pruned and unpruned, the same ones come at the same times."""
    rng = random.Random(seed)
    numbers = list(range(load.pictures))
    asked = [0] * load.pictures
    newest = load.pictures - 1
    now = 0.0
    # The last ones keep the server busy until the measured ones are done.
    for _ in range(load.warm_up + load.requests + load.batch):
        now += 0.0 if load.rate is None else rng.expovariate(load.rate)
        place, category = rng.randrange(load.pictures), rng.randrange(load.categories)
        yield _Request(now, (numbers[place], category if pruned else 0))
        asked[place] += 1
        if asked[place] == load.asked:
            newest += 1
            numbers[place], asked[place] = newest, 0


def simulate(costs: Costs, load: Load, kept: int | None, seed: int = 0) -> Served:
    """Serve the load with ``kept`` visual tokens of each picture; None prunes nothing.

    >>> costs = Costs(prompt=0, encode=1, prefill=0, step=0, sequence=0, cached=0, token_bytes=1)
    >>> load = Load(memory=1e6, batch=1, warm_up=5, requests=50)
    >>> round(simulate(costs, load, None).requests_per_second, 3)  # a second for each picture
    1.0
    """
    if kept is not None and not 1 <= kept <= load.visual_tokens:
        raise ValueError(f"kept must be 1 to {load.visual_tokens} tokens, got {kept}")
    prefix = load.text_before + (load.visual_tokens if kept is None else kept)
    own = load.text_after + load.answer
    memory = _Memory(int(load.memory / costs.token_bytes), prefix)
    if prefix + own > memory.tokens:
        raise ValueError(
            f"memory must hold one request of {prefix + own} tokens, "
            f"{(prefix + own) * costs.token_bytes:.0f} bytes, got {load.memory:.0f}"
        )
    arrivals = list(_arrivals(load, kept is not None, seed))
    waiting = deque(arrivals)
    begun: _Request | None = None  # its prompt is not prefilled yet
    # A request has a token in each step from the one that ends its prompt, so its last is known.
    ending: dict[int, list[_Request]] = {}
    running = columns = 0  # requests, and their tokens in the cache
    ends: list[float] = []
    peak, now = 0, 0.0
    for step in itertools.count():
        if not (waiting or begun or running):
            break
        if not begun and not running:
            now = max(now, waiting[0].arrival)
        seconds = 0.0
        if running:
            seconds += costs.step + costs.sequence * running + costs.cached * columns
        room = prompts = load.step_tokens - running
        ready: list[_Request] = []
        while room > 0:
            if begun is None:
                if not waiting or waiting[0].arrival > now:
                    break
                if running + len(ready) == load.batch:
                    break
                hit = waiting[0].key in memory.users
                if not memory.take(waiting[0].key, own):
                    break
                begun = waiting.popleft()
                begun.hit = hit
                begun.prompt = load.text_after + (0 if hit else prefix)
                seconds += 0.0 if hit else costs.encode
            chunk = min(room, begun.prompt)
            room -= chunk
            begun.prompt -= chunk
            if begun.prompt == 0:
                ready.append(begun)
                begun = None
        if room < prompts:
            seconds += costs.prompt + costs.prefill * (prompts - room)
        peak = max(peak, memory.used)
        now += seconds
        for request in ready:
            request.first = now
        if ready:
            ending[step + load.answer - 1] = ready
        running += len(ready)
        columns += len(ready) * (prefix + load.text_after) + running
        for request in ending.pop(step, ()):
            request.last = now
            ends.append(now)
            memory.leave(request.key, own)
            running -= 1
            columns -= prefix + own
    measured = arrivals[load.warm_up : load.warm_up + load.requests]
    first_tokens = [request.first - request.arrival for request in measured]
    half = load.requests // 2
    ends.insert(0, 0.0)
    start, middle, end = (ends[load.warm_up + count] for count in (0, half, load.requests))
    return Served(
        requests_per_second=load.requests / (end - start),
        drift=(middle - start) / (end - start) * load.requests / half - 1,
        first_token_mean=mean(first_tokens),
        first_token_p95=quantiles(first_tokens, n=20)[-1],
        latency_mean=mean(request.last - request.arrival for request in measured),
        hits=mean(request.hit for request in measured),
        peak_bytes=peak * costs.token_bytes,
    )
