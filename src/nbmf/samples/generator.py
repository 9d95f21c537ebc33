"""Any number of sample records, the same ones for the same seed on every machine and Python version.

Only ``random.Random.random`` is drawn from: it is the one method whose sequence Python promises to keep.
"""

import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nbmf.samples import phrases

Draw = Callable[["Source"], Any]

SLOT: Final = re.compile(r"\{\{|\}\}|\{(#{0,2})(\w+)\}")
NEW_YEAR: Final = datetime(2025, 1, 1, tzinfo=UTC)
SECONDS: Final = 365 * 86_400
LOG_STEP: Final = 40  # most seconds between two lines of one log
TONES: Final = ("casual", "formal", "brief", "warm", "technical")
FACT_TAGS: Final = ("preference", "family", "work", "health", "travel", "dates", "pets", "money", "style")
TEXT_CHANCE: Final = 0.55  # a chat turn that is bare text; else a message object


class Source:
    """A seeded stream of choices, and the phrase grammar over it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        lists = phrases.WORDS | phrases.WORDS_BY_LANGUAGE | phrases.IDENTIFIERS
        self._lists = {name: tuple(words.split("|")) for name, words in lists.items()}

    def below(self, limit: int) -> int:
        """A whole number in [0, limit)."""
        return int(self._random() * limit)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def one(self, choices: tuple[Any, ...]) -> Any:
        return choices[self.below(len(choices))]

    def some(self, choices: tuple[str, ...], most: int) -> list[str]:
        """Up to `most` different choices, in the order drawn."""
        return list(dict.fromkeys(self.one(choices) for _ in range(self.below(most + 1))))

    def price(self, limit: int) -> float:
        return self.between(100, limit * 100) / 100

    def hex(self, digits: int) -> str:
        return "".join("0123456789abcdef"[self.below(16)] for _ in range(digits))

    def moment(self) -> datetime:
        """A second of 2025."""
        return NEW_YEAR + timedelta(seconds=self.below(SECONDS))

    def stamp(self) -> str:
        """A moment as ISO text, without a zone."""
        return f"{self.moment():%Y-%m-%dT%H:%M:%S}"

    def say(self, phrase: str, now: datetime | None = None) -> str:
        """`phrase` with its slots filled; one noun, verb, field and service throughout, as code needs."""
        moment = now or self.moment()
        fixed = {"stamp": f"{moment:%Y-%m-%dT%H:%M:%S}", "time": f"{moment:%H:%M:%S}", "day": f"{moment:%d}"}

        def fill(match: re.Match[str]) -> str:
            marks, name = match.group(1), match.group(2)
            if name is None:
                return match.group(0)[0]
            if marks == "#":
                return str(self.between(1, int(name)))
            if marks == "##":
                return f"{self.price(int(name)):.2f}"
            if name == "hex":
                return self.hex(8)
            lower = name.lower()
            if lower in phrases.FIXED and lower not in fixed:
                fixed[lower] = self.one(self._lists[lower])
            if lower in fixed:
                word = fixed[lower]
                return word.title().replace("_", "") if name != lower else word
            return SLOT.sub(fill, self.one(self._lists[name]))

        return SLOT.sub(fill, phrase)

    def speak(self, choices: tuple[str, ...]) -> str:
        return self.say(self.one(choices))

    def word(self, name: str) -> str:
        return self.say("{" + name + "}")


def chat(source: Source) -> Any:
    text = " ".join(source.speak(phrases.CHAT) for _ in range(source.between(1, 3)))
    if source.chance(0.15):
        text = text.lower().rstrip(".")
    if source.chance(TEXT_CHANCE):
        return text
    message: dict[str, Any] = {"role": source.one(("user", "assistant")), "content": text}
    if source.chance(0.3):
        message["ts"] = source.stamp() + "Z"
    return message


def fact(source: Source) -> Any:
    text = source.speak(phrases.FACT)
    shape = source.below(4)
    if shape == 0:
        return text + "."
    if shape == 1:
        key, slot = source.one(
            (("city", "city"), ("diet", "diet"), ("drink", "drink"), ("job", "job"), ("hobby", "hobby"))
        )
        return {"user_id": f"u_{source.between(1000, 99999)}", "key": key, "value": source.word(slot)}
    record: dict[str, Any] = {"text": text}
    if shape == 2:
        record["tags"] = source.some(FACT_TAGS, 3)
        record["created_at"] = source.stamp() + "Z"
    else:
        record["source"] = source.one(("chat", "form", "import", "email"))
    record["confidence"] = source.between(50, 100) / 100
    return record


def call_weather(source: Source) -> dict[str, Any]:
    return {
        "city": source.word("city"),
        "days": source.between(1, 7),
        "units": source.one(("metric", "imperial")),
    }


def call_event(source: Source) -> dict[str, Any]:
    return {
        "title": source.one(("Call with {name}", "Dentist", "Review: {service}", "Dinner at {street}", "{hobby}")),
        "start": source.stamp() + "+01:00",
        "duration_minutes": 15 * source.between(1, 8),
        "attendees": [source.word("name").lower() + "@example.com" for _ in range(source.below(4))],
    }


def call_search(source: Source) -> dict[str, Any]:
    query = source.one(
        ("{food} in {city}", "{relative} birthday", "who fixed the {appliance}", "{service} outage", "{goal}")
    )
    return {
        "namespace": ["users", source.word("name").lower()],
        "query": query,
        "limit": source.between(1, 20),
    }


def call_order(source: Source) -> dict[str, Any]:
    return {
        "order_id": f"SO-{source.between(10000, 99999)}",
        "include": source.some(("items", "shipment", "refunds", "notes"), 3),
    }


def call_mail(source: Source) -> dict[str, Any]:
    return {
        "to": [source.word("name").lower() + "@example.com"],
        "subject": source.one(("About {thing}", "{weekday} {daypart}", "{service}: {cause}", "Invoice {#900}")),
        "body": "{hello} {name},\n\n" + source.one(phrases.CHAT) + "\n\nBest regards",
    }


def call_sql(source: Source) -> dict[str, Any]:
    return {"query": source.one(phrases.CODE[2:4]), "timeout_ms": 1000 * source.between(1, 30)}


CALLS: Final[tuple[tuple[str, Draw], ...]] = (
    ("get_weather", call_weather),
    ("create_event", call_event),
    ("memory.search", call_search),
    ("lookup_order", call_order),
    ("send_email", call_mail),
    ("sql.query", call_sql),
)


def spoken(source: Source, value: Any) -> Any:
    """`value` with the slots of its strings filled."""
    if isinstance(value, str):
        return source.say(value)
    if isinstance(value, list):
        return [spoken(source, item) for item in value]
    if isinstance(value, dict):
        return {key: spoken(source, item) for key, item in value.items()}
    return value


def tool_call(source: Source) -> Any:
    name, arguments = source.one(CALLS)
    filled = spoken(source, arguments(source))
    shape = source.below(3)
    if shape == 0:
        return {"name": name, "arguments": filled}
    if shape == 1:
        return {
            "id": "call_" + source.hex(8),
            "type": "function",
            "function": {"name": name, "arguments": filled},
        }
    return {
        "jsonrpc": "2.0",
        "id": source.between(1, 500),
        "method": "tools/call",
        "params": {"name": name, "arguments": filled},
    }


def result_weather(source: Source) -> Any:
    days = [
        {
            "day": source.stamp()[:10],
            "high": source.between(2, 34),
            "low": source.between(-9, 14),
            "sky": source.one(("rain", "clear", "cloudy", "snow", "wind")),
        }
        for _ in range(source.between(1, 5))
    ]
    return {"city": source.word("city"), "forecast": days}


def result_hits(source: Source) -> Any:
    hits = [
        {
            "key": f"mem-{source.hex(6)}",
            "score": source.between(30, 99) / 100,
            "value": {"text": source.speak(phrases.FACT)},
        }
        for _ in range(source.below(5))
    ]
    return {"hits": hits, "took_ms": source.between(1, 40)}


def result_order(source: Source) -> Any:
    items = [
        {
            "sku": source.hex(3).upper() + f"-{source.below(90):02d}",
            "qty": source.between(1, 5),
            "price": source.price(200),
        }
        for _ in range(source.between(1, 4))
    ]
    status = source.one(("paid", "shipped", "delivered", "refunded", "on_hold"))
    return {
        "order_id": f"SO-{source.between(10000, 99999)}",
        "status": status,
        "items": items,
        "currency": "EUR",
    }


def result_error(source: Source) -> Any:
    code = source.one(("RATE_LIMITED", "NOT_FOUND", "TIMEOUT", "FORBIDDEN", "BAD_REQUEST"))
    return {
        "ok": False,
        "error": {
            "code": code,
            "message": source.say("{component} {symptom}"),
            "retry_after": source.below(60),
        },
    }


def result_rows(source: Source) -> Any:
    rows = [[source.word("city"), source.below(9000), source.price(500)] for _ in range(source.between(1, 6))]
    return {
        "columns": ["city", "orders", "mean"],
        "rows": rows,
        "row_count": len(rows),
        "elapsed_ms": source.between(10, 9999) / 10,
    }


RESULTS: Final[tuple[Draw, ...]] = (result_weather, result_hits, result_order, result_error, result_rows)


def tool_result(source: Source) -> Any:
    return source.one(RESULTS)(source)


def note(source: Source) -> Any:
    lines = [source.speak(phrases.NOTE) for _ in range(source.between(2, 6))]
    if source.chance(0.3):
        return ". ".join(line[:1].upper() + line[1:] for line in lines) + "."
    title = source.say(
        source.one(("{company} weekly", "{service} review", "Trip to {city}", "Call with {name}", "{month} plans"))
    )
    return f"# {title}\n\n" + "\n".join(f"- {line}" for line in lines)


def log(source: Source) -> Any:
    if source.chance(0.25):
        return {
            "ts": int(source.moment().timestamp()) + source.below(1000) / 1000,
            "level": source.one(("info", "warning", "error")),
            "logger": f"{source.word('service')}.{source.one(('api', 'worker', 'db'))}",
            "event": source.say("{cause}"),
            "host": source.word("host"),
            "ms": source.below(5000),
        }
    template = source.one(phrases.LOG)
    now = source.moment()
    lines = []
    for _ in range(source.between(1, 8)):
        lines.append(source.say(template, now))
        now += timedelta(seconds=source.below(LOG_STEP))
    return "\n".join(lines)


def conversation(source: Source) -> Any:
    count = 2 * source.between(2, 8)
    if source.chance(0.3):
        first, second = source.word("name"), source.word("name")
        return "\n".join(f"{(first, second)[turn % 2]}: {source.speak(phrases.CHAT)}" for turn in range(count))
    roles = ("user", "assistant")
    turns = [{"role": roles[turn % 2], "content": source.speak(phrases.CHAT)} for turn in range(count)]
    if source.chance(0.4):
        system = f"You are an assistant for {source.word('company')}. Keep a {source.one(TONES)} tone."
        turns.insert(0, {"role": "system", "content": system})
    return turns


def code(source: Source) -> Any:
    return source.speak(phrases.CODE)


def language(source: Source) -> Any:
    text = source.speak(source.one(tuple(phrases.TURNS.values())))
    if source.chance(0.3):
        text += " " + source.speak(source.one(tuple(phrases.TURNS.values())))
    return text if source.chance(0.5) else {"role": source.one(("user", "assistant")), "content": text}


def short(source: Source) -> Any:
    shape = source.below(8)
    if shape == 0:
        return source.below(10 ** source.between(1, 9))
    if shape == 1:
        return source.one((True, False, None, [], {}, "", 0.5, -1))
    if shape == 2:
        return {source.one(("n", "ok", "id", "lang", "v")): source.one((1, 2, True, False, "en", "x"))}
    text = source.speak(phrases.SHORT)
    return text if len(text.encode()) <= 32 else text.split()[0]


KINDS: Final[dict[str, Draw]] = {
    "chat": chat,
    "fact": fact,
    "tool_call": tool_call,
    "tool_result": tool_result,
    "note": note,
    "log": log,
    "conversation": conversation,
    "code": code,
    "language": language,
    "short": short,
}
