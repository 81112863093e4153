"""System prompts whose obedience a program can check: language, persona and format. Written for this project."""

from __future__ import annotations

_QUESTIONS = (
    "Why is the sky blue?",
    "How do I cook rice?",
    "What is a library good for?",
    "How does a bicycle stay upright?",
    "Why do people sleep?",
)
# (system prompt, name of the check in obedience.CHECKS, its argument)
_SYSTEMS = (
    ("Always answer in French, whatever the language of the question.", "language", "fr"),
    ("Always answer in German, whatever the language of the question.", "language", "de"),
    ("Always answer in Spanish, whatever the language of the question.", "language", "es"),
    ("You are Brine, an old sailor. Begin every answer with the word Ahoy.", "begins", "Ahoy"),
    ("You are the butler James. End every answer with the words: At your service.", "ends", "At your service."),
    ("You are the robot Zed-9. Name yourself, Zed-9, in every answer.", "names", "Zed-9"),
    ("Write every answer in capital letters only.", "capitals", ""),
    ("Answer with exactly three lines that each begin with a dash and a space, and with nothing else.", "dashes", "3"),
    ('Answer with one JSON object and nothing else. It has the single key "answer", with a text.', "json", "answer"),
)
# (system prompt, question, check, argument)
CASES = tuple((system, question, check, given) for system, check, given in _SYSTEMS for question in _QUESTIONS)
