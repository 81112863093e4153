"""Requests that one of the offered functions answers, with the call that is right. Written for this project."""

from __future__ import annotations

from typing import Any

# function -> its description, and its arguments with their JSON types; all are required
FUNCTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "get_weather": ("The weather in a city now.", {"city": "string"}),
    "set_timer": ("Start a kitchen timer.", {"minutes": "integer"}),
    "convert_currency": ("Convert money.", {"amount": "number", "source": "string", "target": "string"}),
    "send_message": ("Send a text message to a person.", {"recipient": "string", "text": "string"}),
    "play_song": ("Play a song by an artist.", {"title": "string", "artist": "string"}),
    "add_numbers": ("Add two numbers.", {"first": "number", "second": "number"}),
    "switch_light": ("Switch the light of a room on or off.", {"room": "string", "on": "boolean"}),
    "book_table": ("Book a table for some people at an hour from 0 to 23.", {"people": "integer", "hour": "integer"}),
}
# (function, request, the right arguments)
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("get_weather", "What is the weather like in Lisbon right now?", {"city": "Lisbon"}),
    ("get_weather", "Do I need an umbrella in Oslo at the moment?", {"city": "Oslo"}),
    ("get_weather", "How warm is it in Nairobi?", {"city": "Nairobi"}),
    ("get_weather", "Tell me whether it is raining in Toronto.", {"city": "Toronto"}),
    ("get_weather", "I am about to land in Hanoi. What weather awaits me?", {"city": "Hanoi"}),
    ("set_timer", "Set a timer for 12 minutes.", {"minutes": 12}),
    ("set_timer", "Wake me from my nap in 25 minutes with a timer.", {"minutes": 25}),
    ("set_timer", "The eggs need 7 minutes. Start the timer.", {"minutes": 7}),
    ("set_timer", "Please time one hour for the bread. The timer counts minutes.", {"minutes": 60}),
    ("set_timer", "Start a timer of 3 minutes for my tea.", {"minutes": 3}),
    ("convert_currency", "Convert 50 USD to EUR.", {"amount": 50, "source": "USD", "target": "EUR"}),
    ("convert_currency", "How much is 1200 JPY in GBP?", {"amount": 1200, "source": "JPY", "target": "GBP"}),
    ("convert_currency", "Change 75.5 CHF into SEK.", {"amount": 75.5, "source": "CHF", "target": "SEK"}),
    ("convert_currency", "I have 300 EUR. What is that in USD?", {"amount": 300, "source": "EUR", "target": "USD"}),
    ("convert_currency", "What are 20 GBP worth in NOK?", {"amount": 20, "source": "GBP", "target": "NOK"}),
    ("send_message", 'Send Maria the text "Dinner is ready".', {"recipient": "Maria", "text": "Dinner is ready"}),
    ("send_message", 'Text Tom: "I am late".', {"recipient": "Tom", "text": "I am late"}),
    ("send_message", 'Message Aisha "Happy birthday".', {"recipient": "Aisha", "text": "Happy birthday"}),
    ("send_message", 'Write to Ken: "The train has left".', {"recipient": "Ken", "text": "The train has left"}),
    ("send_message", 'Let Olga know: "The door is open".', {"recipient": "Olga", "text": "The door is open"}),
    ("play_song", "Play Yesterday by The Beatles.", {"title": "Yesterday", "artist": "The Beatles"}),
    ("play_song", "Put on Hello by Adele.", {"title": "Hello", "artist": "Adele"}),
    ("play_song", "I want to hear Thriller by Michael Jackson.", {"title": "Thriller", "artist": "Michael Jackson"}),
    ("play_song", "Can you play Waterloo by ABBA?", {"title": "Waterloo", "artist": "ABBA"}),
    ("play_song", "Start the song Imagine by John Lennon.", {"title": "Imagine", "artist": "John Lennon"}),
    ("add_numbers", "Add 17 and 25.", {"first": 17, "second": 25}),
    ("add_numbers", "What do you get when you add 3.5 and 4.25?", {"first": 3.5, "second": 4.25}),
    ("add_numbers", "Compute the sum 1024 + 512.", {"first": 1024, "second": 512}),
    ("add_numbers", "Sum up 99 and 1.", {"first": 99, "second": 1}),
    ("add_numbers", "How much is 48213 plus 7719?", {"first": 48213, "second": 7719}),
    ("switch_light", "Switch on the light in the kitchen.", {"room": "kitchen", "on": True}),
    ("switch_light", "Turn off the light in the bedroom.", {"room": "bedroom", "on": False}),
    ("switch_light", "Make it dark in the garage: the light there is on.", {"room": "garage", "on": False}),
    ("switch_light", "I cannot see anything in the hallway. Light, please.", {"room": "hallway", "on": True}),
    ("switch_light", "Nobody is in the office. Turn its light off.", {"room": "office", "on": False}),
    ("book_table", "Book a table for 4 people at 19:00.", {"people": 4, "hour": 19}),
    ("book_table", "I need a table for 2 at 20:00.", {"people": 2, "hour": 20}),
    ("book_table", "Reserve a table at 12:00 for 6 people.", {"people": 6, "hour": 12}),
    ("book_table", "We are 8 and would like to eat at 18:00. Get us a table.", {"people": 8, "hour": 18}),
    ("book_table", "A table for 3 people at 21:00, please.", {"people": 3, "hour": 21}),
)


def schema(name: str) -> dict[str, Any]:
    """The function as chat templates of transformers take it."""
    description, arguments = FUNCTIONS[name]
    properties = {argument: {"type": kind, "description": f"the {argument}"} for argument, kind in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def offered(name: str) -> list[dict[str, Any]]:
    """Three functions: the right one, and the two that follow in :data:`FUNCTIONS`; in the order of the names."""
    names = list(FUNCTIONS)
    at = names.index(name)
    return [schema(one) for one in sorted(names[(at + step) % len(names)] for step in range(3))]
